"""What stands in a ledger: time that is bought and what became of it.

Time on a node is bought by the lease, before it is used, at the most that it can cost. A lease ends
with what it did cost, and for a node that stays the next begins in the same breath, so that a node
has one open lease at most. Seconds are Unix seconds, prices dollars an hour.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

Reason = Literal["renewed", "done", "idle", "preempted", "failed"]
"""Why a lease is over: another one follows, the work is done, the node was let go unused, it was
taken after a notice, or it was gone without one."""

Purpose = Literal["head", "worker"]


@dataclass(frozen=True)
class Opened:
    """A driver, `writer`, begins at `at` under a cap in dollars, or none. The latest one holds."""

    writer: str
    at: float
    cap: float | None
    owner: str = ""


@dataclass(frozen=True)
class Lease:
    """Time on `node`, from `since` to `until`, for `hourly` at most.

    Whoever holds it stops at `until`, and the node is gone `drain_s` later. `instance` is the
    cloud's id of the machine, where it has one.
    """

    id: str
    node: str
    type: str
    zone: str
    market: str
    hourly: float
    since: float
    until: float
    drain_s: float
    purpose: Purpose = "worker"
    instance: str = ""

    @property
    def gone_by(self) -> float:
        """When the node is gone, whatever happens."""
        return self.until + self.drain_s

    @property
    def dollars(self) -> float:
        """The most that it can cost."""
        return self.hourly * (self.gone_by - self.since) / 3600


@dataclass(frozen=True)
class Settled:
    """A lease was over at `end` and cost `hourly`; of several for a lease the last one counts."""

    lease: str
    end: float
    hourly: float
    reason: Reason


@dataclass(frozen=True)
class Held:
    """`trial` holds `share`, 0 to 1, of `node` from `since` on: `max_r held_r / capacity_r`."""

    id: str
    trial: str
    node: str
    share: float
    since: float


@dataclass(frozen=True)
class Released:
    """What was held under the id `held` was given back."""

    held: str
    until: float


@dataclass(frozen=True)
class Lost:
    """What `trial` did between `since` and `until` was lost with a node, and is done again."""

    trial: str
    since: float
    until: float


@dataclass(frozen=True)
class Kept:
    """Dollars kept back for nodes that were asked for and are not there to be leased yet.

    Where its writer dies, they are charged in full, for who knows what came of those nodes.
    """

    id: str
    at: float
    dollars: float


@dataclass(frozen=True)
class Freed:
    """What was kept under the id `kept` is not needed any more."""

    kept: str


Entry: TypeAlias = Opened | Lease | Settled | Held | Released | Lost | Kept | Freed

_KINDS: dict[str, type[Any]] = {
    kind.__name__.lower(): kind
    for kind in (Opened, Lease, Settled, Held, Released, Lost, Kept, Freed)
}


def encode(entries: Iterable[Entry], writer: str) -> bytes:
    """JSON, a line: entries that are written together, all or none."""
    document = [{"kind": type(entry).__name__.lower(), **vars(entry)} for entry in entries]
    return json.dumps({"writer": writer, "entries": document}).encode() + b"\n"


def decode(line: bytes) -> list[Entry]:
    """The entries of one line. Raises ValueError where it is none."""
    try:
        return [_entry(item) for item in json.loads(line)["entries"]]
    except (KeyError, TypeError) as error:
        raise ValueError(f"no ledger entry: {error}") from None


def _entry(item: Mapping[str, Any]) -> Entry:
    fields = dict(item)
    entry: Entry = _KINDS[fields.pop("kind")](**fields)
    return entry
