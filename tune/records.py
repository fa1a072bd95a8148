"""What a search keeps on its storage, so that a driver that was killed is replaced by another.

STORAGE/
  search.json           what is searched (Space.document), its digest, the profile, how it ended
  trials.json           every trial: its values, what it reported, where it stands
  policy.json           the BudgetScheduler's own state
  catalogue.parquet     the clips that all trials train on and are judged against
  ledger...             every dollar (raygen cost STORAGE)
  trials/t0001/         a run each, as `raygen train` keeps it (raygen runs STORAGE/trials)
  tensorboard/          HParams: tensorboard --logdir STORAGE/tensorboard
  best/                 the best trial's export, once the search is over
  report.html           `python -m tune report STORAGE`
  study.db              `python -m tune study STORAGE`
"""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from raygen.data import store
from raygen.errors import ConfigError, StorageError
from tune.space import Space

SEARCH, TRIALS, POLICY = "search.json", "trials.json", "policy.json"
CATALOGUE, BEST, TENSORBOARD = "catalogue.parquet", "best", "tensorboard"
FORMAT = 2


def trial_name(number: int) -> str:
    """The name of the run of a trial, counted from 0."""
    return f"t{number:04d}"


@dataclass(frozen=True)
class Result:
    """A judged checkpoint: after `step` steps and `dollars` in all, `score` is the metric.

    `level` counts judged checkpoints from 1; `at` is Unix seconds.
    """

    level: int
    step: int
    dollars: float
    score: float
    at: float
    figures: Mapping[str, float] = field(default_factory=dict)


@dataclass
class Trial:
    """A configuration that was tried; where it failed for good, `detail` says why.

    `parent` is the number of the trial whose checkpoint a branch began from (tune.perturb).
    """

    number: int
    values: dict[str, Any]
    results: list[Result] = field(default_factory=list)
    detail: str = ""
    parent: int | None = None

    @property
    def name(self) -> str:
        """Of its run."""
        return trial_name(self.number)

    @property
    def title(self) -> str:
        """The name, and where it began."""
        return self.name if self.parent is None else f"{self.name} of {trial_name(self.parent)}"

    @property
    def level(self) -> int:
        """Judged checkpoints so far."""
        return self.results[-1].level if self.results else 0

    @property
    def dollars(self) -> float:
        """Spent up to its last judgement."""
        return self.results[-1].dollars if self.results else 0.0

    def best(self, mode: str) -> Result | None:
        """Its best checkpoint, if one has a finite metric."""
        good = [each for each in self.results if math.isfinite(each.score)]
        sign = 1 if mode == "min" else -1
        return min(good, key=lambda each: sign * each.score, default=None)


class Records:
    """What is kept at `storage` of one search. For several threads."""

    def __init__(self, storage: str, document: dict[str, Any], trials: dict[int, Trial]) -> None:
        self.storage, self.document, self.trials = storage, document, trials
        self._lock = threading.RLock()

    @classmethod
    def find(cls, storage: str) -> Self | None:
        """The search at `storage`, if there is one."""
        storage = store.absolute(storage)
        uri = store.join(storage, SEARCH)
        if not store.exists(uri):
            return None
        document = _json(uri)
        if document["format"] > FORMAT:
            raise StorageError(f"{uri} was written by a newer raygen; upgrade raygen", uri)
        trials, uri = {}, store.join(storage, TRIALS)
        if store.exists(uri):
            for each in _json(uri)["trials"]:
                results = [Result(**r | {"score": _read(r["score"])}) for r in each["results"]]
                trials[each["number"]] = Trial(**each | {"results": results})
        return cls(storage, document, trials)

    @classmethod
    def open(cls, storage: str, space: Space) -> Self:
        """The search of `space` at `storage`, new or to go on with.

        Raises ConfigError where the storage has another search, naming what differs.
        """
        found = cls.find(storage)
        if found is None:
            storage = store.absolute(storage)
            made = cls(storage, {"format": FORMAT, "digest": space.digest, **space.document}, {})
            made.save()
            return made
        if found.document["digest"] != space.digest:
            raise ConfigError(
                f"{storage} holds another search ({_difference(found.document, space)}); give this "
                "one another --storage",
                "storage",
            )
        return found

    @property
    def metric(self) -> str:
        """The figure that is wanted."""
        return str(self.document["metric"])

    @property
    def mode(self) -> str:
        """min or max."""
        return str(self.document["mode"])

    @property
    def best(self) -> tuple[Trial, Result] | None:
        """The best checkpoint of all, and its trial."""
        found = [(t, r) for t in self.trials.values() if (r := t.best(self.mode)) is not None]
        sign = 1 if self.mode == "min" else -1
        return min(found, key=lambda pair: sign * pair[1].score, default=None)

    def set(self, **values: Any) -> None:
        """Sets keys of search.json, and writes it."""
        with self._lock:
            self.document.update(values)
            self._write(SEARCH, self.document)

    def save(self) -> None:
        """Writes search.json and trials.json."""
        with self._lock:
            trials = [
                asdict(t)
                | {"results": [asdict(r) | {"score": _written(r.score)} for r in t.results]}
                for t in self.trials.values()
            ]
            self._write(SEARCH, self.document)
            self._write(TRIALS, {"trials": trials})

    def report(
        self, number: int, values: Mapping[str, Any], result: Result, parent: int | None = None
    ) -> Trial:
        """Takes what a trial reported; the same level again is the same result."""
        with self._lock:
            trial = self.trials.setdefault(number, Trial(number, dict(values), parent=parent))
            if result.level > trial.level:
                trial.results.append(result)
            self.save()
        return trial

    def fail(
        self, number: int, values: Mapping[str, Any], detail: str, parent: int | None = None
    ) -> None:
        """A trial cannot be continued."""
        with self._lock:
            trial = self.trials.setdefault(number, Trial(number, dict(values), parent=parent))
            trial.detail = detail
            self.save()

    def save_policy(self, state: bytes) -> None:
        """Keeps the scheduler's state."""
        store.write_bytes(self.path(POLICY), state)

    def load_policy(self) -> bytes | None:
        """What was kept of the scheduler."""
        uri = self.path(POLICY)
        return store.read_bytes(uri) if store.exists(uri) else None

    def path(self, *parts: str) -> str:
        """The URI of something within the search."""
        return store.join(self.storage, *parts)

    def run_uri(self, trial: Trial) -> str:
        """Where the trial's run is kept."""
        return self.path("trials", trial.name)

    def _write(self, name: str, document: Mapping[str, Any]) -> None:
        store.write_bytes(self.path(name), json.dumps(document, indent=1, default=str).encode())


def _json(uri: str) -> dict[str, Any]:
    try:
        document: dict[str, Any] = json.loads(store.read_bytes(uri))
    except ValueError:
        raise StorageError(f"{uri} is not what was written", uri) from None
    return document


def _difference(before: Mapping[str, Any], space: Space) -> str:
    now = space.document
    for part in ("metric", "mode"):
        if before[part] != now[part]:
            return f"its {part} is {before[part]}, not {now[part]}"
    for part, name in (("space", "space."), ("base", ""), ("constraints", "constraints.")):
        old, new = (json.loads(json.dumps(d[part], default=str)) for d in (before, now))
        for key in sorted(old.keys() | new.keys()):
            if old.get(key) != new.get(key):
                return f"it differs in {name}{key}"
    return "its levels differ"


def _written(score: float) -> float | str:
    # JSON has no infinity.
    return score if math.isfinite(score) else str(score)


def _read(score: float | str) -> float:
    return float(score)
