"""A trial under Ray Tune: raygen's own training from rung to rung, judged and reported.

The driver holds no CPU: its workers do, as a Ray Train job of its own, elastic and preemptible. At
a rung the run ends, saved; the scheduler then says whether it goes on or pauses, and a trial that
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
from raygen.cost.bill import Purse
from raygen.cost.remote import Remote
from raygen.data import store
from raygen.errors import Interrupted, RaygenError
from raygen.runs import Run, checkpoint_name, step_of
from raygen.train import fit
from tune.desk import Standing
from tune.judge import figures
from tune.measure import measure
from tune.perturb import branch
from tune.records import CATALOGUE, trial_name
from tune.space import Space

POST_EVERY_S = 1.0
# A run goes on to its next rung, and a branch under a name of its own.
_EXPECTED = tuple(f"changed since the last checkpoint: {key}:" for key in ("budget.steps", "name"))


@dataclass(frozen=True)
class Handed:
    """What all trials share: the search, where it is kept, and its actors."""

    space: Space
    storage: str
    desk: Any
    judge: Any
    accountant: Any
    rungs: tuple[int, ...]  # levels at which a trial reports; those between are judged beside it

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
                "budget.dollars": None,  # the search's accountant holds the cap
                "budget.steps": step,
                "evaluate.every": space.levels[0],
                # The best by the score is spared; by another figure, all have to be.
                "train.keep_checkpoints": keep if space.metric == "score" else len(space.levels),
            },
        )


class _Driver:
    def __init__(
        self, handed: Handed, number: int, values: Mapping[str, Any], parent: int | None
    ) -> None:
        self.handed, self.number, self.values, self.parent = handed, number, values, parent
        self.accounts = Remote(handed.accountant)
        self.purse = Purse(self.accounts, trial_name(number), trial=True)
        self.stop = threading.Event()
        self.status: Status | None = None
        self._answer: Any = None
        self._posted_at = 0.0

    def level(self, level: int, done: int) -> dict[str, Any]:
        """Trains up to a level, after `done` levels, and has it judged; what is to be reported."""
        handed, step = self.handed, self.handed.space.levels[level - 1]
        config = handed.config(self.number, self.values, step)
        run = Run.find(config)
        self._hold(config)
        if run is None and self.parent is not None:
            parent = Run.open(store.join(config.storage, trial_name(self.parent)))
            run = branch(parent, config, handed.space.levels[done - 1])
        self._post("start", 0 if run is None or not run.checkpoints() else run.status["step"])
        # One that was trained, and perhaps judged, when the last driver was killed.
        if run is None or run.path(checkpoint_name(step)) not in run.checkpoints():
            run = fit(
                config,
                on_status=self._seen,
                on_note=self._note,
                stop=self.stop,
                accounts=self.accounts,
                judge=handed.judge.judge,
            )
        checkpoint = run.path(checkpoint_name(step))
        if checkpoint not in run.checkpoints():
            raise Interrupted("the cap was reached before the level")
        if figures(checkpoint) is None:
            self._post("judge", step)
            self._hold(config)
            ray.get(handed.judge.judge.remote(run.uri, checkpoint))
        at, found = self._best(run)
        return {
            "trial": self.number,
            "level": level,
            "step": at,
            "dollars": self.purse.bill().dollars,
            "figures": found,
            handed.space.metric: found[handed.space.metric],
        }

    def leave(self) -> None:
        """Holds nothing, and is not running."""
        self.purse.release()
        ray.get(self.handed.desk.gone.remote(self.number))

    def _hold(self, config: Config) -> None:
        """Pays for its place while its workers start, and while it is judged.

        Another trial could not start and end in that time; where workers will be is a guess.
        """
        train = config.train
        each = {"CPU": train.cpus_per_worker, "GPU": train.gpus_per_worker}
        each = {kind: amount for kind, amount in each.items() if amount}
        fits = [
            node["NodeID"]
            for node in ray.nodes()
            if node["Alive"] and all(node["Resources"].get(k, 0) >= n for k, n in each.items())
        ]
        nodes = () if self.status is None else self.status.nodes
        self.purse.hold(nodes or fits[:1] * train.least_workers, each)

    def _best(self, run: Run) -> tuple[int, dict[str, float]]:
        """The best of the judged checkpoints that are kept: its step, and its figures."""
        metric, better = self.handed.space.metric, self.handed.space.better
        best: tuple[int, dict[str, float]] | None = None
        for checkpoint in run.checkpoints():
            found = figures(checkpoint)
            if found is None:
                continue
            if metric not in found:
                raise RuntimeError(
                    f"metric: the judge says nothing about {metric} of it; it reports "
                    f"{', '.join(sorted(found))}"
                )
            if best is None or better(found[metric], best[1][metric]):
                best = step_of(checkpoint), found
        assert best is not None  # the last one has just been judged
        return best

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
        if not text.startswith(_EXPECTED):
            self.handed.desk.note.remote(f"{trial_name(self.number)}: {text}")


def run_trial(config: Mapping[str, Any], handed: Handed) -> None:
    """The trainable: `config` has the trial's number, its values, the levels it has `done`, and
    its `parent`, if it is a branch: then these are the parent's at first.

    Returns when all levels are done, or after it was told to stop, saved. Raises RuntimeError with
    one line where the training failed for good.
    """
    number, values, done = config["trial"], config["values"], config["done"]
    driver = _Driver(handed, number, values, config["parent"])
    try:
        if done == 0 and handed.space.constraints.profiled:
            base = handed.space.config(values)
            broken = measure(base).violation(handed.space.constraints, base)
            if broken is not None:
                raise RuntimeError(broken)
        for level in handed.rungs:
            if level > done:
                found = driver.level(level, done)
                # A pause ends this process while it reports: nothing after that is sure to run.
                driver.leave()
                tune.report(found)
    except Interrupted:
        return
    except RaygenError as error:
        # Across processes a line travels better than a class.
        raise RuntimeError(str(error)) from None
    finally:
        driver.leave()
