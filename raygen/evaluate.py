"""A run's generator judged against its real clips: `raygen evaluate RUN`, or while it trains."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from raygen.conditioning import rows_of
from raygen.config import Config
from raygen.data import store
from raygen.data.catalog import Catalogue
from raygen.data.decoder import Decoder
from raygen.data.plan import Span
from raygen.errors import DataError
from raygen.export import generator_of
from raygen.metrics import Evaluation, judge
from raygen.metrics.classifier import Clips, Labels
from raygen.runs import CATALOGUE, EVALUATION, Run

SPANS = 4  # real clips cut from each video, at most


def evaluate_run(run: Run, on_note: Callable[[str], None] = lambda note: None) -> Evaluation:
    """Judges the run's averaged generator and writes evaluation.json into the run.

    As many clips of each class are generated. Raises DataError where the real clips are too few.
    """
    evaluation = _judged(run, on_note)
    run.write_json(EVALUATION, evaluation.as_dict())
    return evaluation


def judge_checkpoint(uri: str, checkpoint: str) -> dict[str, float]:
    """Judges one checkpoint of the run at `uri`, beside its training.

    Writes evaluation.json into the checkpoint; returns its single figures.
    """
    run = Run.open(uri).at(checkpoint)
    evaluation = _judged(run, lambda note: None)
    score = evaluation.score if math.isfinite(evaluation.score) else None
    document = evaluation.as_dict() | {"score": score}
    store.write_bytes(store.join(checkpoint, EVALUATION), json.dumps(document).encode())
    return {key: value for key, value in document.items() if isinstance(value, float)}


def _judged(run: Run, on_note: Callable[[str], None]) -> Evaluation:
    config = run.config
    generator = generator_of(run)
    on_note("decoding real clips")
    catalogue = Catalogue.read(run.path(CATALOGUE))
    real, real_labels, videos = _real_clips(catalogue, config)
    on_note(f"generating {config.evaluate.clips} clips")
    count = config.evaluate.clips
    labels = np.arange(count) % len(run.classes)
    fake = generator.generate(range(count), **_asked(catalogue, labels.tolist(), config))
    on_note("training the judge")
    return judge(real, real_labels, videos, fake, labels, run.classes, config.evaluate, config.seed)


def _asked(catalogue: Catalogue, labels: list[int], config: Config) -> dict[str, Any]:
    """What is asked of the generator: these classes, in the words and vectors of real clips.

    A first frame is not given: clips that begin as real ones do would be judged too kindly.
    """
    kinds, rows = config.conditions.kinds, rows_of(catalogue.labels(), labels, config.seed)
    return {
        "labels": labels if "class" in kinds else None,
        "text": catalogue.captions(rows) if "text" in kinds else None,
        "vector": catalogue.vectors(rows) if "vector" in kinds else None,
    }


def _real_clips(catalogue: Catalogue, config: Config) -> tuple[Clips, Labels, Labels]:
    """uint8 [N, T, H, W, 3], class ids [N] and catalogue rows [N], spread over all videos."""
    spans = max(1, min(SPANS, config.evaluate.clips // len(catalogue)))
    rows = np.random.default_rng(config.seed).permutation(len(catalogue))
    rows = rows[: config.evaluate.clips]
    wanted = [Span(row, (k + 0.5) / spans) for row in rows.tolist() for k in range(spans)]
    decoder = Decoder(catalogue, config.data)
    try:
        found = decoder.decode(dict(enumerate(wanted))).columns
    finally:
        decoder.close()
    if not len(found["clip"]):
        raise DataError(f"no clip at {config.data.uri} can be decoded any more", config.data.uri)
    return found["clip"], found["label"], found["row"]
