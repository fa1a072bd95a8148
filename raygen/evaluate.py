"""Generated clips judged against real ones: `raygen evaluate RUN_OR_FOLDER`, or while it trains."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from raygen.conditioning import rows_of
from raygen.config import Config
from raygen.data import store
from raygen.data.catalog import Catalogue
from raygen.data.plan import Span
from raygen.export import generator_of
from raygen.generated import decode, known, read_folder, usable
from raygen.metrics import Evaluation, Judge, Judgement
from raygen.metrics.classifier import Clips, Labels
from raygen.metrics.features import check
from raygen.runs import CATALOGUE, EVALUATION, Run

SPANS = 8  # real clips cut from each video, at most

OnNote = Callable[[str], None]


@dataclass(frozen=True)
class Findings:
    """A judgement and what it is about: clips uint8 [M,T,H,W,3] and [N,T,H,W,3], class ids."""

    judgement: Judgement
    fake: Clips
    labels: Labels
    real: Clips
    real_labels: Labels
    classes: Sequence[str]
    fps: float
    title: str

    @property
    def evaluation(self) -> Evaluation:
        """Its figures."""
        return self.judgement.evaluation


def evaluate_run(run: Run, on_note: OnNote = lambda note: None) -> Evaluation:
    """Judges the run's averaged generator and writes evaluation.json into the run.

    As many clips of each class are generated. Raises DataError where the real clips are too few.
    """
    evaluation = judge_run(run, on_note).evaluation
    run.write_json(EVALUATION, evaluation.as_dict())
    return evaluation


def judge_checkpoint(uri: str, checkpoint: str) -> dict[str, float]:
    """Judges one checkpoint of the run at `uri`, beside its training.

    Writes evaluation.json into the checkpoint; returns its single figures.
    """
    run = Run.open(uri).at(checkpoint)
    document = scored(judge_run(run).evaluation)
    store.write_bytes(store.join(checkpoint, EVALUATION), json.dumps(document).encode())
    return {key: value for key, value in document.items() if isinstance(value, float)}


def scored(evaluation: Evaluation) -> dict[str, object]:
    """The evaluation as JSON, with its score; null where that is infinite."""
    score = evaluation.score if math.isfinite(evaluation.score) else None
    return evaluation.as_dict() | {"score": score}


def judge_run(run: Run, on_note: OnNote = lambda note: None, against: str = "") -> Findings:
    """Judges the run's averaged generator against its own clips, or those at `against`.

    Raises DataError where the real clips are too few, or lack a class that the run has.
    """
    config = run.config
    check(config.evaluate.features)
    catalogue = usable(against, config) if against else Catalogue.read(run.path(CATALOGUE))
    on_note(f"generating {config.evaluate.clips} clips")
    fake, labels = drawn(run, catalogue, against)
    return Bench(catalogue, config, on_note).judge(fake, labels, run.uri)


def drawn(run: Run, catalogue: Catalogue, against: str = "") -> tuple[Clips, Labels]:
    """The clips of a run that are judged, and their classes as `catalogue` numbers them."""
    config, generator = run.config, generator_of(run)
    count = config.evaluate.clips
    ids = [k % len(run.classes) for k in range(count)]
    labels = known([run.classes[k] for k in ids], catalogue.classes, against)
    return generator.generate(range(count), **_asked(catalogue, labels, ids, config)), labels


def judge_folder(
    uri: str, against: str, overrides: Sequence[str] = (), on_note: OnNote = lambda note: None
) -> Findings:
    """Judges the clips in a folder (raygen.generated) against the real ones at `against`.

    `overrides` are key=value of `data` and `evaluate`. Raises ConfigError for a wrong one,
    StorageError where there is no such place, DataError where its clips cannot be judged.
    """
    check(Config.parse({}, overrides).evaluate.features)
    on_note("reading generated clips")
    fake, names, config = read_folder(uri, overrides)
    catalogue = usable(against, config)
    labels = known(names, catalogue.classes, against)
    return Bench(catalogue, config, on_note).judge(fake, labels, uri)


class Bench:
    """Real clips and a judge that learned them, for any number of runs on the same clips.

    Raises DataError where the clips are too few.
    """

    def __init__(
        self, catalogue: Catalogue, config: Config, on_note: OnNote = lambda note: None
    ) -> None:
        on_note("decoding real clips")
        self.catalogue, self._fps, self._on_note = catalogue, config.data.fps, on_note
        self._real, self._real_labels, videos = real_clips(catalogue, config)
        on_note("training the judge")
        classes, settings = catalogue.classes, config.evaluate
        self._judge = Judge(self._real, self._real_labels, videos, classes, settings, config.seed)

    def judge(self, fake: Clips, labels: Labels, title: str) -> Findings:
        """What these generated clips are worth."""
        self._on_note("judging")
        judgement, classes = self._judge(fake, labels), self.catalogue.classes
        real = (self._real, self._real_labels)
        return Findings(judgement, fake, labels, *real, classes, self._fps, title)


def _asked(catalogue: Catalogue, labels: Labels, ids: list[int], config: Config) -> dict[str, Any]:
    """What is asked of the generator: its classes `ids`, in the words and vectors of real clips.

    `labels` are the same classes as the catalogue numbers them. A first frame is not given: clips
    that begin as real ones do would be judged too kindly.
    """
    kinds = config.conditions.kinds
    rows = rows_of(catalogue.labels(), labels.tolist(), config.seed)
    return {
        "labels": ids if "class" in kinds else None,
        "text": catalogue.captions(rows) if "text" in kinds else None,
        "vector": catalogue.vectors(rows) if "vector" in kinds else None,
    }


def real_clips(catalogue: Catalogue, config: Config) -> tuple[Clips, Labels, Labels]:
    """uint8 [N, T, H, W, 3], class ids [N] and catalogue rows [N], spread over all videos."""
    spans = max(1, min(SPANS, config.evaluate.clips // len(catalogue)))
    rows = np.random.default_rng(config.seed).permutation(len(catalogue))
    rows = rows[: config.evaluate.clips]
    wanted = [Span(row, (k + 0.5) / spans) for row in rows.tolist() for k in range(spans)]
    return decode(catalogue, wanted, config)
