"""A run from its first group of workers to its last, on nodes that come and go.

Each group is one Ray Train job, which ends saved (a drained node was left, there is room for more
workers, the run is over) or is lost with its node. The next starts with as many workers as there
is room for, from the newest state in memory or on storage. What was announced is no failure; what
was not, is one of `train.max_failures`; an error in the code ends the run at once.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import ray
from ray.exceptions import RayError

from raygen.board import Look, Status, start_board
from raygen.capacity import Capacity
from raygen.config import Config
from raygen.cost.bill import Purse
from raygen.data.catalog import Catalogue
from raygen.errors import ClusterError, Interrupted, TrainingError
from raygen.gauges import TRAINING, Gauges
from raygen.group import Group
from raygen.history import UNANNOUNCED, History
from raygen.interrupts import counted_interrupts
from raygen.job import Job
from raygen.judging import Judging
from raygen.runs import Run, step_of
from raygen.tidying import Tidier

LOOK_EVERY_S = 0.25
# Room that came is taken once nothing more has come for so long; after a loss at once, nearly.
GROW_SETTLE_S = 15.0
START_SETTLE_S = 4.0
STEPS_SEEN = 10_000
# Of the time to end under a cap, what the workers have; the rest is for all else to end.
PATIENT = 0.7
# Groups in a row that were lost before their first step: it is not the nodes.
BARREN = 3
# The first step waits for the workers to start and, on a GPU, for kernels to be chosen.
START_S = 600.0
_WHY = {
    "lost": "workers were lost",
    "stalled": "workers stood still",
    "preempted": "a drained node was left",
    "grew": "there is room for more",
    "rewound": "rewound",
}
_TOLD = ("class_accuracy", "frechet", "motion_ratio")


@dataclass(frozen=True)
class _Outcome:
    """How a group ended: its last status, and what Ray Train raised if it was lost."""

    status: Status
    error: BaseException | None = None
    stalled: bool = False


class _Broke(Exception):
    """The cap is reached, and no group of workers is there to save what it has."""


class Supervisor:
    """Runs one run; `run` returns when it has ended and is saved."""

    def __init__(
        self,
        config: Config,
        run: Run,
        catalogue: Catalogue,
        purse: Purse,
        on_status: Callable[[Status], None],
        on_note: Callable[[str], None],
        stop: threading.Event,
        judge: Any = None,
    ) -> None:
        self.stop = stop
        self.config, self._run, self.catalogue = config, run, catalogue
        self.purse, self.bill = purse, purse.bill()
        self.on_status, self.on_note = on_status, on_note
        self.history = History(run.uri)
        self.gauges = Gauges(TRAINING, "run", config.name)
        self.board = start_board()
        self.judging = Judging(run, config.evaluate, self._judged, on_note, judge)
        self.tidier = Tidier(run, config.train.keep_checkpoints)
        self.onset: int | None = None
        self.interrupts: list[int] = []
        # When each step of this group was seen, Unix seconds; after a loss, of the group before.
        self.passed: deque[tuple[float, int]] = deque(maxlen=STEPS_SEEN)
        self.status = Status(step=0, steps=config.train.steps, fraction=0, elapsed_s=0, dollars=0)

    def run(self) -> None:
        """Raises a RaygenError for what a user can mend, what a worker raised for a bug."""
        with counted_interrupts(self.interrupts):
            try:
                self._groups()
            except _Broke:
                step = self._run.status["step"] if self._run.checkpoints() else 0
                self.history.add("ended", step=step, workers=0, detail=self.bill.stop)
                self.on_note(f"{self.bill.stop}: the last checkpoint is of step {step}")

    def _groups(self) -> None:
        resumes, barren = bool(self._run.checkpoints()), 0
        workers = self._room(first=True)
        self.history.add("resumed" if resumes else "started", step=0, workers=workers)
        while True:
            before = self.status.step
            outcome = self._group_or_fail(workers)
            self.status = status = outcome.status
            if outcome.error is None and status.ended not in ("grew", "preempted", "unhealthy"):
                return self._over(status, workers)
            if outcome.error is not None:
                barren = barren + 1 if status.step <= before else 0
                self._lost(outcome, barren, workers)
            elif status.ended == "unhealthy":
                self._rewind(status, workers)
            elif status.ended in ("grew", "preempted"):
                self.history.add(status.ended, step=status.step, workers=workers)
            doubted = status.nodes if outcome.error is not None else ()
            was, workers = workers, self._room(doubted=doubted)
            why = _WHY[self.history.events[-1].event]
            self.on_note(f"step {status.step}: {why}; {was} -> {workers} workers")

    def _group_or_fail(self, workers: int) -> _Outcome:
        try:
            return self._group(workers)
        except (Interrupted, _Broke):
            raise
        except Exception as error:
            step = self.status.step
            self.history.add("failed", step=step, workers=workers, detail=_last_line(error))
            raise

    @property
    def _asked_to_stop(self) -> bool:
        return bool(self.interrupts) or self.stop.is_set()

    @property
    def _stopping(self) -> bool:
        return self._asked_to_stop or bool(self.bill.stop)

    def _rewind(self, status: Status, workers: int) -> None:
        """Back to the newest checkpoint from before the trouble. Raises TrainingError."""
        health, done = self.config.health, self.history.count("rewound")
        good = self.tidier.good_before(status.onset)
        if done >= health.rewinds:
            self.history.add("failed", step=status.step, workers=0, detail=status.detail)
            raise TrainingError(
                f"{status.detail}; rewound {done} times (health.rewinds={health.rewinds}), at last "
                f"with {self._lr_scale():g} of the learning rates. Lower optim.*.lr or raise "
                f"loss.gamma under another name=; {good or 'no'} is the last good checkpoint",
                status.step,
            )
        self.passed.clear()
        step, self.onset = 0 if good is None else step_of(good), status.onset
        self.history.add("rewound", step=step, workers=workers, detail=status.detail)
        self.tidier.rewound(step)
        self.status = replace(status, step=step, saved_at=step)
        self.on_note(
            f"{status.detail}: going on from step {step} with {self._lr_scale():g} of the "
            "learning rates"
        )

    def _lr_scale(self) -> float:
        return self.config.health.lr_factor ** self.history.count("rewound")

    def _lost(self, outcome: _Outcome, barren: int, workers: int) -> None:
        assert outcome.error is not None
        self.history.add(
            "stalled" if outcome.stalled else "lost",
            step=outcome.status.step,
            workers=workers,
            detail=_last_line(outcome.error),
        )
        failures, most = self.history.count(*UNANNOUNCED), self.config.train.max_failures
        if barren >= BARREN:
            self.history.add("failed", step=outcome.status.step, workers=0, detail="no step")
            raise outcome.error
        if failures > most:
            self.history.add("failed", step=outcome.status.step, workers=0, detail="failures")
            raise ClusterError(
                f"workers were lost {failures} times without notice, more than "
                f"train.max_failures={most}; the same command with a larger one goes on"
            ) from outcome.error

    def _over(self, status: Status, workers: int) -> None:
        self.on_status(status)
        broke = bool(self.bill.stop) or status.dollars >= self.bill.limit
        stopped = status.ended == "stopped" and (self._asked_to_stop or not broke)
        if not stopped and not broke:
            self.judging.finish()
        self.tidier.finish(status.onset)
        self.history.add("stopped" if stopped else "ended", step=status.step, workers=workers)
        if broke:
            most = self.config.budget.dollars
            why = self.bill.stop or f"of ${most:g} only what it takes to end is left"
            self.on_note(f"{why}: saved and ended at step {status.step}")
        if stopped:
            raise Interrupted(
                f"stopped and saved at step {status.step}; the same command goes on from there"
            )

    def _room(self, *, first: bool = False, doubted: Sequence[str] = ()) -> int:
        """Waits until there is room for the fewest workers; how many there is room for.

        At `first` nodes may still be coming; later those that are there are not waited for, but
        for the `doubted`, of which workers were lost.
        """
        capacity, said = Capacity(self.config.train, doubted=doubted), time.monotonic()
        try:
            while True:
                settled = not first and capacity.taken()
                workers = capacity.size(0 if settled else START_SETTLE_S)
                if workers:
                    return workers
                self.bill = self.purse.bill()
                if self.bill.stop:
                    raise _Broke
                if self._stopping:
                    raise Interrupted("stopped; the same command goes on from the last checkpoint")
                if time.monotonic() - said > 60:
                    said = time.monotonic()
                    self.on_note("waiting for nodes to join the cluster")
                time.sleep(LOOK_EVERY_S)
        finally:
            capacity.release()

    def _group(self, workers: int) -> _Outcome:
        """One group of workers, from its start to its end."""
        ray.get(self.board.begin.remote())
        group = Group(self._job(), workers)
        stopping_since: float | None = None
        more: Capacity | None = None
        status = replace(self.status, ended="", closed=False)
        moved, allowed_s = time.monotonic(), START_S
        stalled = asked = False
        try:
            while not group.over(LOOK_EVERY_S) and not status.closed:
                look, now = self._look(), time.monotonic()
                if look.status is not None:
                    if more is None:
                        self._book(look.status)
                    # What it goes on from is settled, and it has its own room.
                    self.onset = None
                    more = more or Capacity(self.config.train, base=workers)
                    if look.status.step != status.step:
                        self.passed.append((time.time(), look.status.step))
                        moved, allowed_s = now, self.config.train.stall_s
                    if look.status.ended:
                        allowed_s = START_S  # it saves, and storage may be slow
                    status = look.status
                if look.failure is not None:
                    # The others may wait for the one that failed until kingdom come.
                    if not group.over(5):
                        self._kill()
                    raise look.failure
                if len(self.interrupts) > 1:
                    raise Interrupted(
                        "stopped at once; the same command goes on from the last checkpoint"
                    )
                if self.bill.stop:
                    stopping_since = stopping_since or now
                    # Before its first word a group has nothing to save.
                    patience = 0.0 if more is None else PATIENT * self.config.budget.drain_s
                    if now - stopping_since >= patience:
                        self._kill()
                        raise _Broke
                if self._stopping and not asked:
                    asked = True
                    self.board.ask.remote("stop")
                elif more and not self.bill.grow:
                    more.release()
                elif not asked and more and more.size(GROW_SETTLE_S) > workers:
                    asked = True
                    self.board.ask.remote("grow")
                if now - moved > allowed_s and not stalled:
                    stalled = True
                    self.on_note(f"no step for {now - moved:.0f} s: restarting the workers")
                    self._kill()
        finally:
            if more is not None:
                more.release()
            self.purse.release()
        look = self._look()
        if look.failure is not None:
            raise look.failure
        status = look.status or status
        return _Outcome(status, None if status.closed else group.error, stalled)

    def _look(self) -> Look:
        self.bill = self.purse.bill()
        look: Look = ray.get(self.board.look.remote(self.bill))
        if look.status is not None:
            self.gauges.show(**look.status.figures(), **self.history.figures())
            self.on_status(look.status)
            self.judging.look(look.status.saved_at)
            self.tidier.look(look.status.saved_at, look.status.onset, self.judging.step)
        for note in [*look.notes, *self.purse.notes()]:
            self.on_note(note)
        return look

    def _book(self, first: Status) -> None:
        """A new group holds its nodes; what the one before did beyond its start is lost."""
        train = self.config.train
        self.purse.hold(first.nodes, {"CPU": train.cpus_per_worker, "GPU": train.gpus_per_worker})
        lost = [at for at, step in self.passed if step > first.started_at]
        if lost:
            self.purse.lost(lost[0])
        self.passed.clear()

    def _judged(self, step: int, figures: dict[str, float]) -> None:
        self.board.judged.remote(step, {f"evaluate/{k}": v for k, v in figures.items()})
        named = ", ".join(f"{name} {figures[name]:.3g}" for name in _TOLD if name in figures)
        self.on_note(f"step {step} judged: {named}")

    def _kill(self) -> None:
        for worker in ray.get(self.board.workers.remote()):
            try:
                ray.kill(worker)
            except RayError:  # it died meanwhile
                continue

    def _job(self) -> Job:
        return Job(
            self.config,
            self._run.uri,
            self.catalogue,
            self.board,
            elapsed_s=self.status.elapsed_s,
            bill=self.bill,
            failures=self.history.count(*UNANNOUNCED),
            lr_scale=self._lr_scale(),
            onset=self.onset,
        )


def _last_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]
