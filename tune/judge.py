"""One judge for all trials of a search: it learns the real clips once, and judges one by one.

Training a judge costs more than judging a checkpoint, and all trials must stand before the same.
"""

from __future__ import annotations

import json
import math
import time
from typing import Any

import ray

from raygen.data import store
from raygen.data.catalog import Catalogue
from raygen.evaluate import Bench, drawn, scored
from raygen.runs import CATALOGUE, EVALUATION, Run, step_of

CLIP_S = "clip_s"
"""Among a checkpoint's figures: the seconds that drawing one clip took where it was judged."""


class TrialJudge:
    """The actor."""

    def __init__(self) -> None:
        self._bench: Bench | None = None

    def judge(self, run_uri: str, checkpoint: str) -> dict[str, float]:
        """The figures of a checkpoint; they are kept in it, as evaluation.json."""
        if (known := figures(checkpoint)) is not None:
            return known
        run = Run.open(run_uri).at(checkpoint)
        if self._bench is None:
            self._bench = Bench(Catalogue.read(run.path(CATALOGUE)), run.config)
        began = time.perf_counter()
        fake, labels = drawn(run, self._bench.catalogue)
        clip_s = (time.perf_counter() - began) / len(fake)
        evaluation = self._bench.judge(fake, labels, run_uri).evaluation
        document = scored(evaluation) | {"step": step_of(checkpoint), CLIP_S: clip_s}
        store.write_bytes(store.join(checkpoint, EVALUATION), json.dumps(document).encode())
        return _single(document)


def figures(checkpoint: str) -> dict[str, float] | None:
    """What was said of a checkpoint; None where it was not judged. An infinite score is inf."""
    uri = store.join(checkpoint, EVALUATION)
    return _single(json.loads(store.read_bytes(uri))) if store.exists(uri) else None


def start_judge(cpus: float) -> Any:
    """The handle of a judge; `cpus` are reserved for it."""
    # Where it dies with its node, another learns the same on another.
    return ray.remote(num_cpus=cpus, max_restarts=-1, max_task_retries=3)(TrialJudge).remote()


def _single(document: dict[str, Any]) -> dict[str, float]:
    known = document | {"score": math.inf if document["score"] is None else document["score"]}
    return {key: value for key, value in known.items() if isinstance(value, float)}
