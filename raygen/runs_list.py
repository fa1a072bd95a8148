"""The runs of a storage at a glance: what each has become, how far it is and what it cost.

raygen runs STORAGE

Of each run only small documents are read (run.json, history.json, the ledger, the newest
checkpoint's state.json and evaluation.json), of many runs at once; no checkpoint's files are
listed.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import pyarrow.fs as pafs

from raygen.data import store
from raygen.errors import AccessError, StorageError
from raygen.history import Event, History
from raygen.runs import EVALUATION, MANIFEST, STATE, Run, checkpoint_name

FRESH_S = 600.0  # a run that has left no trace for longer is not training any more
AT_ONCE = 32
_FINAL = {"ended", "stopped", "failed"}
_SET_BACK = {"lost", "stalled", "preempted", "grew", "rewound"}


COLUMNS = "run state step G C accuracy Fréchet clips $ changed restarts".split()


@dataclass(frozen=True)
class Line:
    """One run.

    `state` is training, interrupted (neither training nor brought to an end), ended, stopped or
    failed; `changed` is in Unix seconds, 0 where nothing tells; `restarts` counts the times that
    its workers began again, for whatever reason; `losses` are those of the newest checkpoint.
    """

    name: str
    uri: str
    state: str
    step: int
    steps: int
    clips: int
    dollars: float
    restarts: int
    changed: float
    losses: Mapping[str, float]
    evaluation: Mapping[str, Any]
    detail: str

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)

    def cells(self, now: float) -> list[str]:
        """The text of each of COLUMNS; `now` in Unix seconds."""
        return [
            self.name,
            self.state,
            f"{self.step:,}/{self.steps:,}",
            _figure(self.losses.get("loss/generator"), ".2f"),
            _figure(self.losses.get("loss/critic"), ".2f"),
            _figure(self.evaluation.get("class_accuracy"), ".2f"),
            _figure(self.evaluation.get("frechet"), ".3g"),
            f"{self.clips:,}",
            f"{self.dollars:.4f}",
            _ago(now - self.changed) if self.changed else "",
            str(self.restarts) if self.restarts else "",
        ]


def find(storage: str, now: float | None = None) -> tuple[list[Line], list[str]]:
    """The runs of `storage`, the newest change first, and a note on each folder that is none.

    `now` is the Unix time to judge by. Raises StorageError where there is no such place, or no
    run in it.
    """
    storage = store.absolute(storage)
    if store.exists(store.join(storage, MANIFEST)):
        parent = storage.rpartition("/")[0]
        raise StorageError(f"{storage} is a run, not a storage of runs: give {parent}", storage)
    folders = store.prefixes(storage)
    if not folders:
        raise StorageError(
            f"no run in {storage}; `raygen train PRESET storage={storage}` begins one", storage
        )
    filesystem, _ = store.open_storage(storage)
    when = time.time() if now is None else now
    with ThreadPoolExecutor(AT_ONCE) as pool:
        found = list(pool.map(lambda uri: _read(uri, filesystem, when), folders))
    lines = [line for line in found if isinstance(line, Line)]
    notes = [note for note in found if isinstance(note, str)]
    if not lines:
        raise StorageError(f"no run in {storage}; first of {len(notes)}: {notes[0]}", storage)
    return sorted(lines, key=lambda line: (-line.changed, line.name)), notes


def _read(uri: str, filesystem: pafs.FileSystem, now: float) -> Line | str:
    """The run at `uri`, or why there is none."""
    name = uri.rpartition("/")[2]
    try:
        manifest = store.join(uri, MANIFEST)
        if not store.exists(manifest):
            return f"skipped {name}: no {MANIFEST} in it"
        return _line(Run(uri, json.loads(store.read_bytes(manifest))), name, filesystem, now)
    except AccessError:
        raise
    except StorageError as error:
        return f"skipped {name}: {error}"
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        # Documents that are not ours, or torn: whatever is wrong with them, it is in there.
        return f"skipped {name}: not as raygen writes it ({type(error).__name__}: {error})"


def _line(run: Run, name: str, filesystem: pafs.FileSystem, now: float) -> Line:
    steps = int(run.manifest["config"]["train"]["steps"])
    checkpoints, events = run.checkpoints(), History(run.uri).events
    state: dict[str, Any] = {"step": 0, "clips_seen": 0}
    judged, changed = None, 0.0
    if checkpoints:
        where = store.join(checkpoints[-1], STATE)
        state = json.loads(store.read_bytes(where))
        changed = filesystem.get_file_info(where.removeprefix("s3://")).mtime.timestamp()
        judged = run.read_json(f"{checkpoint_name(state['step'])}/{EVALUATION}")
    changed = max([changed, *(event.time for event in events)])
    return Line(
        name=name,
        uri=run.uri,
        state=_state(events, done=state["step"] >= steps, age=now - changed),
        step=int(state["step"]),
        steps=steps,
        clips=int(state["clips_seen"]),
        dollars=run.dollars,
        restarts=_restarts([event.event for event in events]),
        changed=changed,
        losses=dict(state.get("losses", {})),
        evaluation=run.read_json(EVALUATION) or judged or {},
        detail=events[-1].detail if events else "",
    )


def _state(events: Sequence[Event], done: bool, age: float) -> str:
    if events and events[-1].event in _FINAL:
        return events[-1].event
    if done:
        return "ended"
    return "training" if age < FRESH_S else "interrupted"


def _restarts(kinds: Sequence[str]) -> int:
    # A driver that resumes after its workers were lost has begun them again once, not twice.
    resumed = [before not in _SET_BACK for before, kind in pairwise(kinds) if kind == "resumed"]
    return sum(kind in _SET_BACK for kind in kinds) + sum(resumed)


def _figure(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _ago(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit} ago"
    return f"{max(0, seconds):.0f} s ago"
