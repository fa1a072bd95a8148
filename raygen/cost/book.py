"""The arithmetic of a ledger: entries in, dollars out. Pure, and as cheap at the millionth entry.

A lease that nobody settled is charged in full, up to the moment by which its node must be gone:
spent until then as time passes, reserved for the rest. Nodes are paid from launch to termination,
so what no trial held is booked too: idle, or head.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise

from raygen.cost.entries import (
    Entry,
    Freed,
    Held,
    Kept,
    Lease,
    Lost,
    Opened,
    Released,
    Settled,
)

HOUR = 3600.0


@dataclass(frozen=True)
class Spending:
    """Where dollars went. `trials` without what was lost with nodes; all of it sums to `total`."""

    trials: dict[str, float]
    lost: dict[str, float]
    idle: float
    head: float

    @property
    def total(self) -> float:
        """All dollars."""
        return sum(self.trials.values()) + sum(self.lost.values()) + self.idle + self.head


@dataclass
class _Hold:
    entry: Held
    until: float = float("inf")


@dataclass
class Book:
    """What the entries so far, in their order, come to."""

    opened: Opened | None = None
    leases: dict[str, Lease] = field(default_factory=dict)
    settled: dict[str, Settled] = field(default_factory=dict)
    open: dict[str, Lease] = field(default_factory=dict)
    _holds: dict[str, _Hold] = field(default_factory=dict)
    _on_node: dict[str, list[_Hold]] = field(default_factory=lambda: defaultdict(list))
    _lost: dict[str, list[Lost]] = field(default_factory=lambda: defaultdict(list))
    _kept: dict[str, Kept] = field(default_factory=dict)
    _written_off: dict[str, Kept] = field(default_factory=dict)
    _paid: float = 0.0
    _owed: float = 0.0

    @classmethod
    def of(cls, entries: Iterable[Entry]) -> Book:
        """The book of these entries."""
        book = cls()
        for entry in entries:
            book.add(entry)
        return book

    def add(self, entry: Entry) -> None:
        """Takes the next entry."""
        match entry:
            case Lease():
                self.leases[entry.id] = self.open[entry.id] = entry
                self._owed += entry.dollars
            case Settled():
                lease, earlier = self.leases[entry.lease], self.settled.get(entry.lease)
                if earlier is None:
                    del self.open[entry.lease]
                    self._owed = self._owed - lease.dollars if self.open else 0.0
                else:
                    self._paid -= _paid(lease, earlier)
                self.settled[entry.lease] = entry
                self._paid += _paid(lease, entry)
            case Held():
                self._holds[entry.id] = hold = _Hold(entry)
                self._on_node[entry.node].append(hold)
            case Released():
                self._holds[entry.held].until = entry.until
            case Lost():
                self._lost[entry.trial].append(entry)
            case Kept():
                self._kept[entry.id] = entry
            case Freed():
                # Of a driver before this one it was charged, until somebody knew better.
                before = self._written_off.pop(entry.kept, None)
                self._paid -= 0.0 if before is None else before.dollars
                self._kept.pop(entry.kept, None)
            case Opened():
                self.opened = entry
                self._paid += self.kept
                self._written_off |= self._kept
                self._kept = {}

    @property
    def committed(self) -> float:
        """Dollars that are gone or may yet go without another lease: spent and reserved."""
        return self._paid + self._owed + self.kept

    @property
    def kept(self) -> float:
        """Dollars kept back for nodes that are to come."""
        return sum(entry.dollars for entry in self._kept.values())

    def lapsed(self, now: float) -> float:
        """Of that, what nobody will use or free: its driver's leases have all run out by `now`."""
        return 0.0 if any(x.gone_by > now for x in self.open.values()) else self.kept

    def spent(self, now: float) -> float:
        """Dollars spent up to `now`, and up to then what is still open at its highest price."""
        return self._paid + sum(_accrued(lease, now) for lease in self.open.values())

    def between(self, begin: float, end: float) -> float:
        """Dollars spent from one moment to another."""
        spans = [self._span(lease, end) for lease in self.leases.values()]
        off = [entry for entry in self._written_off.values() if begin <= entry.at < end]
        return sum(
            hourly * max(0.0, min(until, end) - max(since, begin)) / HOUR
            for since, until, hourly in spans
        ) + sum(entry.dollars for entry in off)

    def reserved(self, now: float) -> float:
        """Dollars that may still go after `now`: on open leases, drain-down included, and kept."""
        owed = sum(lease.dollars - _accrued(lease, now) for lease in self.open.values())
        return owed + self.kept

    def figures(self, now: float) -> dict[str, float]:
        """What of it is exported: see raygen.gauges."""
        here = [lease for lease in self.open.values() if lease.gone_by > now]
        markets = Counter(lease.market for lease in here)
        ends = Counter(settled.reason for settled in self.settled.values())
        return {
            "raygen_dollars": self.spent(now),
            "raygen_dollars_per_hour": sum(lease.hourly for lease in here),
            "raygen_dollars_reserved": self.reserved(now),
            "raygen_nodes_spot": markets["spot"],
            "raygen_nodes_on_demand": markets["on-demand"],
            "raygen_nodes_preempted": ends["preempted"],
            "raygen_nodes_failed": ends["failed"],
        }

    def lease_of(self, node: str) -> Lease | None:
        """The open lease of a node."""
        return next((lease for lease in self.open.values() if lease.node == node), None)

    def holds(self, trial: str | None = None) -> list[Held]:
        """What is held still, by `trial` or by any."""
        return [
            hold.entry
            for hold in self._holds.values()
            if hold.until == float("inf") and trial in (None, hold.entry.trial)
        ]

    def unmatched(self, now: float) -> list[Lease]:
        """Leases charged in full, whose node must be gone by `now`: nobody saw when it went."""
        presumed = [
            lease
            for lease in (self.leases[name] for name in self.settled)
            if lease.instance and self.settled[lease.id].end == lease.gone_by
        ]
        return [x for x in [*self.open.values(), *presumed] if x.gone_by <= now]

    def spending(self, now: float) -> Spending:
        """Where what was spent up to `now` went.

        Trials get their share of each node's time; shares that exceed the node together are scaled
        down to it. The rest is idle, or, on the head's node, head.
        """
        trials: dict[str, float] = defaultdict(float)
        lost: dict[str, float] = defaultdict(float)
        rest = {"head": 0.0, "worker": 0.0}
        for lease in self.leases.values():
            begin, end, hourly = self._span(lease, now)
            if end <= begin:
                # Settled before it began: whatever it cost, no trial had anything of it.
                continue
            holds = [
                hold
                for hold in self._on_node.get(lease.node, ())
                if hold.entry.since < end and hold.until > begin
            ]
            cuts = {begin, end}
            for hold in holds:
                windows = self._lost.get(hold.entry.trial, ())
                cuts.update((hold.entry.since, hold.until))
                cuts.update(edge for window in windows for edge in (window.since, window.until))
            inside = sorted(cut for cut in cuts if begin <= cut <= end)
            for left, right in pairwise(inside):
                dollars, middle = hourly * (right - left) / HOUR, (left + right) / 2
                active = [h.entry for h in holds if h.entry.since <= middle < h.until]
                held = sum(entry.share for entry in active)
                for entry in active:
                    part = dollars * entry.share / max(1.0, held)
                    windows = self._lost.get(entry.trial, ())
                    gone = any(window.since <= middle < window.until for window in windows)
                    (lost if gone else trials)[entry.trial] += part
                rest[lease.purpose] += dollars * max(0.0, 1.0 - held)
        rest["worker"] += sum(entry.dollars for entry in self._written_off.values())
        return Spending(dict(trials), dict(lost), idle=rest["worker"], head=rest["head"])

    def curve(self, now: float, points: int = 200) -> list[tuple[float, float]]:
        """(seconds, dollars spent by then) at evenly spaced times from the first lease to `now`."""
        spans = [self._span(lease, now) for lease in self.leases.values()]
        spans = [span for span in spans if span[1] > span[0]]
        if not spans:
            return []
        # Sums over leases that began, less those over leases that ended: linear in time.
        starts = sorted((begin, hourly) for begin, _, hourly in spans)
        ends = sorted((end, hourly) for _, end, hourly in spans)
        first, last = starts[0][0], max(ends[-1][0], starts[0][0])
        times = [first + (last - first) * k / (points - 1) for k in range(points)]
        off = [(entry.at, entry.dollars) for entry in self._written_off.values()]
        return [
            (t, _ramp(starts, t) - _ramp(ends, t) + sum(dollars for at, dollars in off if at <= t))
            for t in times
        ]

    def _span(self, lease: Lease, now: float) -> tuple[float, float, float]:
        settled = self.settled.get(lease.id)
        if settled is None:
            return lease.since, min(now, lease.gone_by), lease.hourly
        return lease.since, min(now, settled.end), settled.hourly


def _paid(lease: Lease, settled: Settled) -> float:
    return settled.hourly * max(0.0, settled.end - lease.since) / HOUR


def _accrued(lease: Lease, now: float) -> float:
    return lease.hourly * max(0.0, min(now, lease.gone_by) - lease.since) / HOUR


def _ramp(events: list[tuple[float, float]], t: float) -> float:
    count = bisect_right(events, (t, float("inf")))
    return sum(hourly * (t - at) for at, hourly in events[:count]) / HOUR
