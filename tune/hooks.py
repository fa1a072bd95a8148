"""What Ray Tune and the scheduler call back: records what trials report, says when all is over."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray
from ray.tune import Stopper
from ray.tune.progress_reporter import TrialProgressCallback

from raygen.cost.bill import Accounts
from tune.budget import BudgetScheduler
from tune.hparams import HParams
from tune.records import Records, Result


class _Unkept:
    """Tune pickles what it is given, for a restore that is never asked for."""

    def __reduce__(self) -> tuple[type[object], tuple[()]]:
        return object, ()


class Kept(_Unkept):
    """Keeps the scheduler's state on storage whenever it changes, until it is closed.

    At the cap, and when Tune is ended, trials look to the scheduler as if they had come to their
    own end: that is not kept.
    """

    def __init__(self, records: Records, accounts: Accounts) -> None:
        self._records, self._accounts, self._closed = records, accounts, False

    def __call__(self, state: bytes) -> None:
        """Takes it."""
        if not self._closed and not self._accounts.bill().stop:
            self._records.save_policy(state)

    def close(self) -> None:
        """What has been kept stays."""
        self._closed = True


class Money(_Unkept):
    """The purse as the scheduler sees it, empty once it is closed."""

    def __init__(self, accountant: Any) -> None:
        self._accountant, self._closed = accountant, False

    def left(self) -> float:
        """Dollars that are neither spent nor promised."""
        return 0.0 if self._closed else float(ray.get(self._accountant.left.remote()))

    def admit(self, dollars: float) -> bool:
        """Whether so much more may be begun."""
        return dollars <= self.left()

    def close(self) -> None:
        """Nothing more is begun."""
        self._closed = True


class Over(_Unkept, Stopper):  # type: ignore[misc]
    """Ends Tune once the event is set or the scheduler is done: paused trials keep it waiting."""

    def __init__(self, event: threading.Event, scheduler: BudgetScheduler, kept: Kept) -> None:
        self._event, self._scheduler, self._kept = event, scheduler, kept

    def __call__(self, trial_id: str, result: Mapping[str, Any]) -> bool:
        """No trial is ended by itself."""
        return False

    def stop_all(self) -> bool:
        """Whether everything is; in Tune's own thread, as all that the scheduler is asked."""
        if self._scheduler.finished or self._event.is_set():
            self._kept.close()
            return True
        return False


class Recorder(_Unkept, TrialProgressCallback):  # type: ignore[misc]
    """Keeps what trials report, and prints nothing: without one, Tune has its own that does."""

    def __init__(self, records: Records, hparams: HParams) -> None:
        super().__init__()
        self._records, self._hparams = records, hparams

    def on_trial_result(
        self, iteration: int, trials: Any, trial: Any, result: Mapping[str, Any], **info: Any
    ) -> None:
        """A level was judged."""
        metric = self._records.metric
        made = Result(
            level=result["level"],
            step=result["step"],
            dollars=result["dollars"],
            score=float(result[metric]),
            at=time.time(),
            figures={k: v for k, v in result["figures"].items() if math.isfinite(v)},
        )
        tried = trial.config
        kept = self._records.report(tried["trial"], tried["values"], made, tried["parent"])
        self._hparams.add(kept, made)

    def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """All levels were judged, or it was told to stop."""

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """A trial failed for good."""
        error, file = trial.get_error(), trial.error_file
        told = str(getattr(error, "cause", None) or error)
        if error is None:
            told = Path(file).read_text() if file and Path(file).is_file() else ""
        lines = told.strip().splitlines()
        detail = lines[-1].removeprefix("RuntimeError: ") if lines else "it failed"
        tried = trial.config
        self._records.fail(tried["trial"], tried["values"], detail, tried["parent"])
