"""What went where: the ledgers of a storage added up, and drawn over time for a terminal.

raygen cost STORAGE
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from raygen.cost.book import HOUR, Book
from raygen.cost.entries import Lease
from raygen.cost.ledger import Ledger
from raygen.data import store
from raygen.errors import StorageError

WIDTH, HEIGHT = 64, 10  # of the plot, in characters
_BLOCKS = " ▁▂▃▄▅▆▇█"


@dataclass(frozen=True)
class Row:
    """Dollars of one run or trial: what it made use of, and what it lost with nodes."""

    name: str
    used: float
    lost: float


@dataclass(frozen=True)
class Report:
    """All dollars of a place, by whom; `reserved` may still be spent by leases that are open.

    `unsettled` are leases of nodes that nobody saw go, charged in full, as what was kept for nodes
    to come is once its driver is gone: `lapsed`, a part of `idle`. `curve` is (Unix seconds,
    dollars spent by then), without that. `cap` is that of the driver that began last, where there
    is one ledger.
    """

    place: str
    rows: list[Row]
    idle: float
    head: float
    reserved: float
    cap: float | None
    unsettled: list[Lease]
    curve: list[tuple[float, float]]
    lapsed: float = 0.0

    @property
    def total(self) -> float:
        """Dollars spent."""
        return sum(row.used + row.lost for row in self.rows) + self.idle + self.head

    def lines(self) -> list[tuple[str, float]]:
        """What for, and dollars: runs or trials first, the sum last."""
        lines = [(row.name, row.used) for row in self.rows]
        lines += [(f"{row.name}, lost with nodes", row.lost) for row in self.rows if row.lost]
        lines += [("idle", self.idle)] if self.idle else []
        lines += [("head", self.head)] if self.head else []
        return [*lines, ("all", self.total)]

    def notes(self) -> list[str]:
        """What stands beside the sum."""
        notes = []
        if self.cap is not None:
            notes.append(f"the cap is ${self.cap:g}")
        if self.reserved > 0:
            notes.append(
                f"${self.reserved:.4f} is reserved, by leases that are open and for nodes to come"
            )
        if self.unsettled:
            dollars = sum(lease.dollars for lease in self.unsettled)
            notes.append(
                f"${dollars:.4f} of it is for {len(self.unsettled)} leases of nodes that nobody "
                "saw go, charged in full"
            )
        if self.lapsed > 0:
            notes.append(
                f"${self.lapsed:.4f} of it was kept for nodes to come by a driver that is gone, "
                "charged in full for nobody saw whether they came"
            )
        return notes

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "place": self.place,
            "dollars": self.total,
            "reserved": self.reserved,
            "cap": self.cap,
            "trials": {row.name: row.used for row in self.rows},
            "lost": {row.name: row.lost for row in self.rows if row.lost},
            "idle": self.idle,
            "head": self.head,
            "unsettled": sum(lease.dollars for lease in self.unsettled),
            "lapsed": self.lapsed,
            "curve": self.curve,
        }


def report(place: str, now: float | None = None) -> Report:
    """Of a run, a search, or a storage of runs. Raises StorageError where no ledger is."""
    when = time.time() if now is None else now
    parts = [_report(ledger.place, ledger.book, when) for ledger in ledgers(place)]
    if len(parts) == 1:
        return parts[0]
    return Report(
        place=store.absolute(place),
        rows=[row for part in parts for row in part.rows],
        idle=sum(part.idle for part in parts),
        head=sum(part.head for part in parts),
        reserved=sum(part.reserved for part in parts),
        cap=None,
        unsettled=[lease for part in parts for lease in part.unsettled],
        curve=_sum([part.curve for part in parts]),
        lapsed=sum(part.lapsed for part in parts),
    )


def ledgers(place: str) -> list[Ledger]:
    """That of a run or a search, or those of a storage of runs. Raises StorageError for none."""
    place = store.absolute(place)
    if Ledger.exists(place):
        return [Ledger(place)]
    found = [Ledger(uri) for uri in store.prefixes(place) if Ledger.exists(uri)]
    if not found:
        raise StorageError(
            f"no ledger at {place}: give a run, a search, or a folder of runs, as in runs", place
        )
    return found


def spent_on(run_uri: str) -> float:
    """Dollars that went into a run: all of its own ledger, or as a trial its share of the ledger of
    its search, one or two folders above; nothing where there is neither.
    """
    now = time.time()
    if Ledger.exists(run_uri):
        return Ledger(run_uri).book.spent(now)
    above, _, name = run_uri.rstrip("/").rpartition("/")
    for place in (above, above.rpartition("/")[0]):
        if place and not place.endswith(":/") and Ledger.exists(place):
            spending = Ledger(place).book.spending(now)
            return spending.trials.get(name, 0.0) + spending.lost.get(name, 0.0)
    return 0.0


def plot(curve: Sequence[tuple[float, float]], width: int = WIDTH, height: int = HEIGHT) -> str:
    """A curve of (seconds, dollars) as text: filled columns, the scale on the left, time below."""
    begin, end = curve[0][0], curve[-1][0]
    top = max(dollars for _, dollars in curve) or 1.0
    columns = [_at(curve, begin + (end - begin) * k / (width - 1)) / top for k in range(width)]
    lines = []
    for row in reversed(range(height)):
        filled = [min(8, max(0, round((value * height - row) * 8))) for value in columns]
        left = f"${top:.4g}" if row == height - 1 else "$0" if row == 0 else ""
        lines.append(f"{left:>9} │" + "".join(_BLOCKS[n] for n in filled).rstrip())
    lines.append(" " * 10 + "└" + "─" * width)
    return "\n".join([*lines, f"{'':>10} 0{_duration(end - begin):>{width - 1}}"])


def _report(place: str, book: Book, now: float) -> Report:
    spending = book.spending(now)
    names = sorted(spending.trials.keys() | spending.lost.keys())
    lapsed = book.lapsed(now)
    rows = [Row(n, spending.trials.get(n, 0.0), spending.lost.get(n, 0.0)) for n in names]
    return Report(
        place=place,
        rows=sorted(rows, key=lambda row: -(row.used + row.lost)),
        idle=spending.idle + lapsed,
        head=spending.head,
        reserved=book.reserved(now) - lapsed,
        cap=None if book.opened is None else book.opened.cap,
        unsettled=book.unmatched(now),
        curve=book.curve(now),
        lapsed=lapsed,
    )


def _sum(curves: Sequence[Sequence[tuple[float, float]]]) -> list[tuple[float, float]]:
    times = sorted({at for curve in curves for at, _ in curve})
    return [(at, sum(_at(curve, at) for curve in curves if curve)) for at in times]


def _at(curve: Sequence[tuple[float, float]], at: float) -> float:
    """The curve at a moment, straight between its points."""
    before = curve[0]
    if at <= before[0]:
        return 0.0 if at < before[0] else before[1]
    for point in curve:
        if point[0] >= at:
            share = (at - before[0]) / (point[0] - before[0]) if point[0] > before[0] else 1.0
            return before[1] + share * (point[1] - before[1])
        before = point
    return before[1]


def _duration(seconds: float) -> str:
    for unit, length in (("d", 86400.0), ("h", HOUR), ("min", 60.0)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} s"
