"""BudgetScheduler: tune.policy under Ray Tune. It carries out what the policy decides, no more.

    scheduler = BudgetScheduler(policy, money, save)
    Tuner(..., tune_config=TuneConfig(scheduler=scheduler, search_alg=scheduler.searcher, ...))

New trials come to Tune through `searcher`, paused ones through `choose_trial_to_run`. A trial's
config is {"trial": the policy's number, "values": the configuration, "done": levels it has}: one
that an earlier driver left is a new trial to Tune, with the same number. Tune calls often, so the
policy is asked again only when something has changed, or some seconds later: money comes free.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from ray.tune.experiment import Trial
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher

from tune.policy import Job, Policy

ASK_EVERY_S = 2.0
# For the policy: worse than any figure, and a number.
WORST = 1e12


class Money(Protocol):
    """Who holds the purse (raygen.cost's cap)."""

    def left(self) -> float:
        """Dollars neither spent nor reserved."""
        ...

    def admit(self, dollars: float) -> bool:
        """Whether work of at most so many dollars may begin."""
        ...


class BudgetScheduler(TrialScheduler):  # type: ignore[misc]
    """Pauses, continues and ends trials as the policy says; `save` gets its state when it changes.

    A trial reports `level` (1, 2, ... judged checkpoints), the metric, and `dollars`, its own
    spending so far, in all. `searcher` is given to Tune as its `search_alg`. Once there is nothing
    more to do and nothing runs, `over` is true; trials that are paused then keep Tune waiting.
    """

    def __init__(
        self,
        policy: Policy,
        money: Money,
        save: Callable[[bytes], None],
        *,
        metric: str = "score",
        mode: str = "min",
        level: str = "level",
        dollars: str = "dollars",
    ) -> None:
        """`metric`, `level` and `dollars` name keys of what trials report."""
        super().__init__()
        self._policy, self._money, self._save = policy, money, save
        self._metric_key, self._sign = metric, 1.0 if mode == "min" else -1.0
        self._level, self._dollars = level, dollars
        self._trials: dict[int, Trial] = {}  # Tune's, by the policy's number
        self._running: set[int] = set()
        self._job: Job | None = None  # decided, and not begun yet
        self._asked_at = -math.inf
        self.over = False
        self.searcher: Searcher = _Proposals(self)

    def __reduce__(self) -> tuple[type[object], tuple[()]]:
        # Tune pickles what it is given, for a restore that is never asked for.
        return object, ()

    def job(self) -> Job | None:
        """What is to be begun next, if anything is."""
        now = time.monotonic()
        free = len(self._running) < self._policy.workers
        if self._job is None and free and now - self._asked_at > ASK_EVERY_S and not self.over:
            self._asked_at = now
            self._job = self._policy.next(self._money.left())
            if self._job is None:
                self.over = not self._running
            else:
                self._keep()
        return self._job

    def begin(self, job: Job) -> None:
        """The job runs from here on."""
        self._running.add(job.trial)
        self._job, self._asked_at = None, -math.inf

    def known(self, number: int) -> bool:
        """Whether Tune has a trial of the policy's number."""
        return number in self._trials

    def set_search_properties(self, metric: str | None, mode: str | None, **spec: Any) -> bool:
        """They were given already."""
        return True

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        """Tune has a trial."""
        self._trials[trial.config["trial"]] = trial

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: Mapping[str, Any]) -> str:
        """A level was judged: on, or not."""
        number = trial.config["trial"]
        score = self._sign * float(result[self._metric_key])
        spent = result[self._dollars] - self._policy.trials[number].dollars
        until = self._policy.report(
            number,
            result[self._level],
            max(0.0, spent),
            score if math.isfinite(score) else WORST,
        )
        self._keep()
        if until is not None:
            return str(self.CONTINUE)
        self._left(number)
        trial.config["done"] = result[self._level]
        return str(self.STOP if self._policy.trials[number].over else self.PAUSE)

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        """It failed for good."""
        self._end(trial)

    def on_trial_complete(
        self, tune_controller: Any, trial: Trial, result: Mapping[str, Any]
    ) -> None:
        """It has ended by itself: at its last level, or because it was told to stop."""
        self._left(trial.config["trial"])

    def on_trial_remove(self, tune_controller: Any, trial: Trial) -> None:
        """It was taken away while it was paused or waited."""
        self._end(trial)

    def choose_trial_to_run(self, tune_controller: Any) -> Trial | None:
        """One that was proposed and waits, or one that is paused and is to go on."""
        for number in self._running:
            trial = self._trials.get(number)
            if trial is not None and trial.status == Trial.PENDING:
                return trial
        job = self.job()
        if job is None or not self.known(job.trial):
            return None
        self.begin(job)
        return self._trials[job.trial]

    def debug_string(self) -> str:
        """For Tune's own tables."""
        return f"BudgetScheduler: {len(self._running)} running"

    def _end(self, trial: Trial) -> None:
        self._policy.ended(trial.config["trial"])
        self._left(trial.config["trial"])
        self._keep()

    def _left(self, number: int) -> None:
        self._running.discard(number)
        self._asked_at = -math.inf

    def _keep(self) -> None:
        self._save(json.dumps(self._policy.state()).encode())


class _Proposals(Searcher):  # type: ignore[misc]
    """The policy's new trials, as Tune asks for them."""

    def __init__(self, scheduler: BudgetScheduler) -> None:
        super().__init__()
        self._scheduler = scheduler

    def __reduce__(self) -> tuple[type[object], tuple[()]]:
        return object, ()

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """A trial that Tune does not have yet; None: none now."""
        job = self._scheduler.job()
        if self._scheduler.over:
            return str(Searcher.FINISHED)
        if job is None or self._scheduler.known(job.trial):
            return None
        self._scheduler.begin(job)
        return {"trial": job.trial, "values": job.config, "done": job.since}

    def set_search_properties(
        self, metric: str | None, mode: str | None, config: Mapping[str, Any], **spec: Any
    ) -> bool:
        """The scheduler was told."""
        return True

    def on_trial_complete(
        self, trial_id: str, result: Mapping[str, Any] | None = None, error: bool = False
    ) -> None:
        """The scheduler hears of it as well."""

    def save(self, checkpoint_path: str) -> None:
        """The scheduler keeps the policy's state."""

    def restore(self, checkpoint_path: str) -> None:
        """Never asked for."""
