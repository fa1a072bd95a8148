"""A trial under Ray Tune: raygen's own training, level by level, each judged and reported.

The driver holds no CPU: its workers do, as a Ray Train job of its own, elastic and preemptible. At
a level the run ends, saved; the scheduler then says whether it goes on or pauses, and a trial that
is paused holds nothing. The run keeps its name: it goes on from its last checkpoint, whoever starts
it, on another day or after `kill -9`, and no step that reached a checkpoint is paid for twice.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ray
from ray import tune

from raygen.board import Status
from raygen.config import Config
from raygen.cost.bill import Purse, Remote
from raygen.errors import Interrupted, RaygenError
from raygen.runs import Run, checkpoint_name
from raygen.train import fit
from tune.desk import Standing
from tune.judge import figures
from tune.measure import measure
from tune.records import CATALOGUE, trial_name
from tune.space import Space

POST_EVERY_S = 1.0


@dataclass(frozen=True)
class Handed:
    """What all trials share: the search, where it is kept, and its actors."""

    space: Space
    storage: str
    desk: Any
    judge: Any
    accountant: Any

    def config(self, number: int, values: Mapping[str, Any], step: int) -> Config:
        """The run of a trial up to `step`."""
        space = self.space
        keep = space.base.train.keep_checkpoints
        return Config.parse(
            space.config(values).dump(),
            {
                "name": trial_name(number),
                "storage": f"{self.storage}/trials",
                "data.uri": f"{self.storage}/{CATALOGUE}",
                "data.split": "",  # the catalogue has been split
                "budget.steps": step,
                "evaluate.every": None,  # judged at its levels, by the judge of all
                # The best by the score is spared; by another figure, all have to be.
                "train.keep_checkpoints": keep if space.metric == "score" else len(space.levels),
            },
        )


class _Driver:
    def __init__(self, handed: Handed, number: int, values: Mapping[str, Any]) -> None:
        self.handed, self.number, self.values = handed, number, values
        self.accounts = Remote(handed.accountant)
        self.purse = Purse(self.accounts, trial_name(number), trial=True)
        self.stop = threading.Event()
        self.status: Status | None = None
        self._answer: Any = None
        self._posted_at = 0.0

    def level(self, level: int) -> dict[str, Any]:
        """Trains up to a level and has it judged; what is to be reported."""
        handed, step = self.handed, self.handed.space.levels[level - 1]
        config = handed.config(self.number, self.values, step)
        run = Run.find(config)
        checkpoint = "" if run is None else run.path(checkpoint_name(step))
        # One that was trained, and perhaps judged, when the last driver was killed.
        if run is None or checkpoint not in run.checkpoints():
            run = fit(
                config,
                on_status=self._seen,
                on_note=self._note,
                stop=self.stop,
                accounts=self.accounts,
            )
            checkpoint = run.path(checkpoint_name(step))
            if checkpoint not in run.checkpoints():
                raise Interrupted("the cap was reached before the level")
        found = figures(checkpoint)
        if found is None:
            self._post("judge", step)
            # Its place stays its own meanwhile: another trial could not start and end by then.
            if self.status is not None:
                train = config.train
                each = {"CPU": train.cpus_per_worker, "GPU": train.gpus_per_worker}
                self.purse.hold(self.status.nodes, each)
            found = ray.get(handed.judge.judge.remote(run.uri, checkpoint))
            self.purse.release()
        metric = handed.space.metric
        if metric not in found:
            raise RuntimeError(
                f"metric: the judge says nothing about {metric} of it; it reports "
                f"{', '.join(sorted(found))}"
            )
        return {
            "trial": self.number,
            "level": level,
            "step": step,
            "dollars": self.purse.bill().dollars,
            "figures": found,
            metric: found[metric],
        }

    def _seen(self, status: Status) -> None:
        self.status = status
        if time.monotonic() - self._posted_at > POST_EVERY_S:
            self._post("train", status.step)

    def _post(self, doing: str, step: int) -> None:
        if self._answer is not None and ray.wait([self._answer], timeout=0)[0]:
            if ray.get(self._answer):
                self.stop.set()
            self._answer = None
        if self._answer is None:
            self._posted_at = time.monotonic()
            nodes = () if self.status is None else self.status.nodes
            standing = Standing(self.number, step, doing, self.purse.bill().dollars, nodes)
            self._answer = self.handed.desk.post.remote(standing)

    def _note(self, text: str) -> None:
        if not text.startswith("changed since the last checkpoint: budget.steps"):
            self.handed.desk.note.remote(f"{trial_name(self.number)}: {text}")


def run_trial(config: Mapping[str, Any], handed: Handed) -> None:
    """The trainable: `config` has the trial's number, its values, and the levels it has `done`.

    Returns when all levels are done, or after it was told to stop, saved. Raises RuntimeError with
    one line where the training failed for good.
    """
    number, values, done = config["trial"], config["values"], config["done"]
    driver = _Driver(handed, number, values)
    try:
        if done == 0 and handed.space.constraints.profiled:
            base = handed.space.config(values)
            broken = measure(base).violation(handed.space.constraints, base)
            if broken is not None:
                raise RuntimeError(broken)
        for level in range(done + 1, len(handed.space.levels) + 1):
            tune.report(driver.level(level))
    except Interrupted:
        return
    except RaygenError as error:
        # Across processes a line travels better than a class.
        raise RuntimeError(str(error)) from None
    finally:
        driver.purse.release()
        handed.desk.gone.remote(number)
