"""What Ray Tune and the scheduler call back: records what trials report, says when all is over."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Mapping
from typing import Any

from ray.tune import Stopper
from ray.tune.progress_reporter import TrialProgressCallback

from tune.hparams import HParams
from tune.records import Records, Result


class _Unkept:
    """Tune pickles what it is given, for a restore that is never asked for."""

    def __reduce__(self) -> tuple[type[object], tuple[()]]:
        return object, ()


class Kept(_Unkept):
    """Keeps the scheduler's state on storage whenever it changes."""

    def __init__(self, records: Records) -> None:
        self._records = records

    def __call__(self, state: bytes) -> None:
        """Takes it."""
        self._records.save_policy(state)


class Money(_Unkept):
    """The purse as the scheduler sees it."""

    def __init__(self, accounts: Any) -> None:
        self._accounts = accounts

    def left(self) -> float:
        """Dollars that are neither spent nor promised."""
        return float(self._accounts.left())

    def admit(self, dollars: float) -> bool:
        """Whether so much more may be begun."""
        return dollars <= self.left()


class Over(_Unkept, Stopper):  # type: ignore[misc]
    """Ends Tune once the event is set."""

    def __init__(self, over: threading.Event) -> None:
        self._over = over

    def __call__(self, trial_id: str, result: Mapping[str, Any]) -> bool:
        """No trial is ended by itself."""
        return False

    def stop_all(self) -> bool:
        """Whether everything is."""
        return self._over.is_set()


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
        kept = self._records.report(result["trial"], trial.config["values"], made)
        self._hparams.add(kept, made)

    def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """All levels were judged, or it was told to stop."""

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """A trial failed for good."""
        error = trial.get_error() or trial.error_file
        lines = str(getattr(error, "cause", None) or error).strip().splitlines()
        detail = lines[-1].removeprefix("RuntimeError: ") if lines else "it failed"
        self._records.fail(trial.config["trial"], trial.config["values"], detail)
