"""A run's generator judged against the run's real clips: `raygen evaluate RUN`."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from raygen.config import Config
from raygen.data.catalog import Catalogue
from raygen.data.decoder import Decoder
from raygen.data.plan import Span
from raygen.errors import DataError
from raygen.export import EVALUATION, generator_of
from raygen.metrics import Evaluation, judge
from raygen.metrics.classifier import Clips, Labels
from raygen.runs import CATALOGUE, Run

SPANS = 4  # real clips cut from each video, at most


def evaluate_run(run: Run, on_note: Callable[[str], None] = lambda note: None) -> Evaluation:
    """Judges the newest averaged generator and writes evaluation.json into the run.

    As many clips of each class are generated. Raises DataError where the real clips are too few.
    """
    config = run.config
    generator = generator_of(run)
    on_note("decoding real clips")
    real, real_labels, videos = _real_clips(Catalogue.read(run.path(CATALOGUE)), config)
    on_note(f"generating {config.evaluate.clips} clips")
    count = config.evaluate.clips
    labels = np.arange(count) % len(run.classes)
    fake = generator.generate(range(count), labels.tolist())
    on_note("training the judge")
    evaluation = judge(
        real, real_labels, videos, fake, labels, run.classes, config.evaluate, config.seed
    )
    run.write_json(EVALUATION, evaluation.as_dict())
    return evaluation


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
