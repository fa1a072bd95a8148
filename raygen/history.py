"""`history.json` of a run: when its workers came and went, and why. Written by the driver.

started | resumed        a driver began, with so many workers
lost | stalled           workers died without notice, or stood still
preempted | grew         a drained node was left, a new one taken in
rewound                  back to an older checkpoint with a lower learning rate
ended | stopped | failed the run's end
"""

from __future__ import annotations

import contextlib
import json
import time
from dataclasses import asdict, dataclass
from typing import Literal

from raygen.data import store
from raygen.errors import StorageError

HISTORY = "history.json"

Kind = Literal[
    "started", "resumed", "lost", "stalled", "preempted", "grew", "rewound", "ended", "stopped",
    "failed",
]  # fmt: skip
UNANNOUNCED: tuple[Kind, ...] = ("lost", "stalled")


@dataclass(frozen=True)
class Event:
    """What happened at `time` (Unix seconds) after `step` steps, to a group of `workers`."""

    time: float
    event: Kind
    step: int
    workers: int
    detail: str = ""


class History:
    """The events of the run at `run_uri`, oldest first."""

    def __init__(self, run_uri: str) -> None:
        self._uri = store.join(run_uri, HISTORY)
        self.events: list[Event] = []
        if store.exists(self._uri):
            self.events = [Event(**event) for event in json.loads(store.read_bytes(self._uri))]

    def add(self, event: Kind, *, step: int, workers: int, detail: str = "") -> None:
        """Appends an event of now, and writes it: with the next one, where storage fails now."""
        self.events.append(Event(time.time(), event, step, workers, detail))
        document = json.dumps([asdict(event) for event in self.events], indent=1)
        with contextlib.suppress(StorageError):
            store.write_bytes(self._uri, document.encode())

    def count(self, *kinds: Kind) -> int:
        """How many events there are of these kinds."""
        return sum(event.event in kinds for event in self.events)

    def figures(self) -> dict[str, float]:
        """What of it is exported: see raygen.gauges."""
        return {
            "raygen_preempted": self.count("preempted"),
            "raygen_lost": self.count(*UNANNOUNCED),
            "raygen_grew": self.count("grew"),
        }
