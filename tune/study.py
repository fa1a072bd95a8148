"""`python -m tune study STORAGE`: a search as a study of Optuna's, for optuna-dashboard.

    python -m tune study searches/tiny
    optuna-dashboard sqlite:///searches/tiny/study.db

A copy of what the search has recorded so far: it may be made while a search runs, and again. The
search itself never reads it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raygen.data import store
from raygen.errors import ConfigError, StorageError
from tune.progress import state_of
from tune.records import Records, Trial, trial_name

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial


def write(storage: str, output: str = "") -> str:
    """Writes a new SQLite file about the search at `storage`, by default STORAGE/study.db; where.

    Raises StorageError where there is no search, ConfigError where Optuna is not installed.
    """
    records = Records.find(storage)
    if records is None:
        raise StorageError(
            f"no search at {storage}: give the --storage of one, as in searches/tiny", storage
        )
    try:
        import optuna
    except ImportError:
        raise ConfigError("a study needs Optuna: pip install 'raygen[optuna]'") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    destination = output or records.path("study.db")
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch, "study.db")
        study = optuna.create_study(
            storage=f"sqlite:///{file}",
            study_name=records.storage.rsplit("/", 1)[-1],
            direction="minimize" if records.mode == "min" else "maximize",
        )
        study.set_user_attr("metric", records.metric)
        space = {key: _distribution(kept) for key, kept in records.document["space"].items()}
        for _, trial in sorted(records.trials.items()):
            study.add_trial(_frozen(records, trial, space))
        store.write_bytes(destination, file.read_bytes())
    return destination


def _frozen(records: Records, trial: Trial, space: Mapping[str, BaseDistribution]) -> FrozenTrial:
    """A trial as Optuna has it: complete as soon as it has a figure, which is its best one's.

    A paused trial's checkpoint may be the best of all; that it is paused is among its attributes.
    """
    from optuna.trial import TrialState, create_trial

    best, times = trial.best(records.mode), [each.at for each in trial.results]
    state = TrialState.COMPLETE if best else TrialState.FAIL if trial.detail else TrialState.RUNNING
    attributes: dict[str, Any] = {
        "name": trial.name,
        "state": state_of(trial, len(records.document["levels"]), state == TrialState.RUNNING),
        "dollars": trial.dollars,
        "level": trial.level,
    }
    attributes |= {"step": best.step, **best.figures} if best else {}
    attributes |= {"detail": trial.detail} if trial.detail else {}
    attributes |= {} if trial.parent is None else {"parent": trial_name(trial.parent)}
    made = create_trial(
        state=state,
        value=best.score if best else None,
        params=trial.values,
        distributions=dict(space),
        # Optuna takes infinities for missing as well, but its plots do not.
        intermediate_values={r.step: r.score for r in trial.results if abs(r.score) < 1e300},
        user_attrs=attributes,
    )
    made.datetime_start = datetime.fromtimestamp(min(times)) if times else datetime.now()
    if state.is_finished():
        made.datetime_complete = datetime.fromtimestamp(max(times)) if times else datetime.now()
    return made


def _distribution(kept: Mapping[str, Any]) -> BaseDistribution:
    """A dimension, as Space.document has it."""
    from optuna.distributions import (
        CategoricalDistribution,
        FloatDistribution,
        IntDistribution,
    )

    if kept["is"] == "Choice":
        return CategoricalDistribution(kept["options"])
    if kept["is"] == "Whole":
        step = kept["step"]
        top = kept["low"] + (kept["high"] - kept["low"]) // step * step
        return IntDistribution(kept["low"], top, step=step)
    return FloatDistribution(kept["low"], kept["high"], log=kept["log"])
