"""BudgetScheduler: tune.policy under Ray Tune, which asks it what to run and tells it results.

    scheduler = BudgetScheduler(policy, money, save)
    TuneConfig(scheduler=scheduler, search_alg=scheduler.searcher, num_samples=1_000)

A trial's Tune config is {"trial": number, "values": the space's configuration, "done": levels,
"parent": the number of the trial whose checkpoint it begins from, or None}.
It reports `level` (so many judged checkpoints, in all), the metric, and `dollars`, its own
spending in all. Paused, it is run again with `done` where it stands. Tune does not restore a
scheduler: `save` gets the policy's state whenever it changes, and after a killed driver
`BudgetScheduler(Policy.restore(space, json.loads(state)), ...)` goes on from there.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any, Protocol

from ray.tune.experiment import Trial
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher

from tune.policy import Policy
from tune.terms import Job

# What a diverged trial is taken to score: worse than all, and JSON holds it.
WORST = 1e12


class Money(Protocol):
    """Who holds the purse (raygen.cost's cap)."""

    def left(self) -> float:
        """Dollars neither spent nor set aside for what runs."""
        ...

    def admit(self, dollars: float) -> bool:
        """Whether work of at most so many dollars may begin."""
        ...


class BudgetScheduler(TrialScheduler):  # type: ignore[misc]
    """Pauses, continues and ends trials as the policy says."""

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
        policy.interrupted()
        self.policy, self._money, self._save = policy, money, save
        self._keys = (metric, level, dollars)
        self._sign = 1.0 if mode == "min" else -1.0
        self._tune: dict[int, Trial] = {}
        self._running: set[int] = set()
        self._job: Job | None = None  # decided, and not yet begun
        self._asked = False  # whether the policy has nothing until something happens
        self.searcher = _Proposals(self)

    def __reduce__(self) -> tuple[type[object], tuple[()]]:
        """Tune pickles its scheduler for a restore that is never asked for."""
        return object, ()

    @property
    def finished(self) -> bool:
        """Whether nothing runs and there is nothing more to run for the money."""
        return self._decided() is None and not self._running

    def _decided(self) -> Job | None:
        """What is to be begun next: the same until it is begun."""
        if self._job is None and not self._asked and len(self._running) < self.policy.workers:
            job = self.policy.next(self._money.left())
            if job is not None and not self._money.admit(job.dollars):
                self.policy.withdrawn(job.trial)
                job = None
            self._job, self._asked = job, job is None
            self._keep()
        return self._job

    def proposed(self) -> dict[str, Any] | None:
        """Tune's config of the job that is next, where Tune does not know its trial yet."""
        job = self._decided()
        if job is None or job.trial in self._tune or job.trial in self._running:
            return None
        self._begin(job)
        config = {"trial": job.trial, "values": job.config, "done": job.since}
        return config | {"parent": job.parent}

    def _begin(self, job: Job) -> None:
        self._job = None
        self._running.add(job.trial)

    def _rest(self, number: int) -> None:
        self._running.discard(number)
        self._asked = False

    def _keep(self) -> None:
        self._save(json.dumps(self.policy.state()).encode())

    def set_search_properties(self, metric: str | None, mode: str | None, **spec: Any) -> bool:
        """They are given to the constructor."""
        return metric is None and mode is None

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        """Tune has taken up a proposal."""
        self._tune[trial.config["trial"]] = trial

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """CONTINUE, PAUSE or STOP."""
        number = trial.config["trial"]
        metric, level, dollars = (result[key] for key in self._keys)
        score = self._sign * metric if math.isfinite(metric) else WORST
        known = self.policy.trials[number]
        more = max(dollars - known.dollars, 0.0)
        until = self.policy.report(number, level, more, score, self._money.left())
        self._keep()
        self._asked = False
        if until is not None:
            return str(self.CONTINUE)
        self._rest(number)
        trial.config["done"] = level
        return str(self.STOP if known.over else self.PAUSE)

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        """It has failed for good."""
        self._over(trial)

    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> None:
        """It has ended by itself."""
        self._over(trial)

    def on_trial_remove(self, tune_controller: Any, trial: Trial) -> None:
        """Tune has let go of it while it waited; the policy may yet go on with it."""
        self._running.discard(trial.config["trial"])

    def _over(self, trial: Trial) -> None:
        self.policy.ended(trial.config["trial"])
        self._rest(trial.config["trial"])
        self._keep()

    def choose_trial_to_run(self, tune_controller: Any) -> Trial | None:
        """A new trial that waits, or the paused one whose turn it is."""
        for number in self._running:
            trial = self._tune.get(number)
            if trial is not None and trial.status in (Trial.PENDING, Trial.PAUSED):
                return trial
        job = self._decided()
        if job is None:
            if not self._running:  # Tune would wait for ever for what is paused
                for paused in self._tune.values():
                    if paused.status == Trial.PAUSED:
                        tune_controller.stop_trial(paused)
            return None
        trial = self._tune.get(job.trial)
        if trial is None or trial.status not in (Trial.PENDING, Trial.PAUSED):
            return None
        self._begin(job)
        return trial

    def debug_string(self) -> str:
        """One line for Tune's own table."""
        return f"BudgetScheduler: {len(self.policy.trials)} trials, ${self.policy.spent:.2f}"


class _Proposals(Searcher):  # type: ignore[misc]
    """The policy's new configurations, one where there is a worker for it."""

    def __init__(self, scheduler: BudgetScheduler) -> None:
        super().__init__(metric="score", mode="min")
        self._scheduler = scheduler

    def suggest(self, trial_id: str) -> Any:
        """A config, None for not now, or FINISHED."""
        return self._scheduler.proposed() or (
            Searcher.FINISHED if self._scheduler.finished else None
        )

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """The scheduler knows."""

    def save(self, checkpoint_path: str) -> None:
        """The scheduler keeps the state."""

    def restore(self, checkpoint_path: str) -> None:
        """The scheduler has it."""
