"""The accountant of a run or a search: watches Ray's nodes, leases their time, says when to stop.

    accountant = Accountant(place, cap=5.0, owner="first")   # in an actor: see remote
    accountant.begin()                   # refuses a cap that is spent, or too small for a step
    accountant.admit("trial-7", 0.12)    # before work of so many dollars begins
    accountant.bill().stop               # why to wind down now, empty to go on
    accountant.close()

A thread looks at the nodes once a second; nothing that is asked here waits for storage. When this
process dies no lease is renewed, and on rented nodes a watchdog ends each one when its lease is
over. The next accountant at that place charges what was leased in full and goes on from there.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from raygen.cost import cap as capped
from raygen.cost import spot
from raygen.cost.bill import Bill
from raygen.cost.book import HOUR, Book
from raygen.cost.cap import Look, Node, Terms
from raygen.cost.cluster import Cluster
from raygen.cost.entries import Entry, Freed, Held, Kept, Lease, Lost, Reason, Released, Settled
from raygen.cost.ledger import Ledger
from raygen.cost.prices import price
from raygen.errors import ClusterError, ConfigError, StorageError
from raygen.gauges import MONEY, Gauges

LOOK_EVERY_S = 1.0
FIRST_S = 60.0  # until workers have made a first step
READ_EVERY_S = 10.0  # between looks at what others have entered
ENTERED_S = 5.0  # how old the spending of single trials may be


@dataclass(frozen=True)
class _Snapshot:
    """What was true at `at`; costs of trials as of `entered_at`."""

    at: float = 0.0
    spent: float = 0.0
    reserved: float = 0.0
    drain: float = 0.0
    kept: float = 0.0
    rate: float = 0.0
    stop_at: float = math.inf
    rates: Mapping[str, float] = field(default_factory=dict)
    trials: Mapping[str, float] = field(default_factory=dict)
    entered_at: float = 0.0


class Accountant:
    """One place's dollars. `otherwise` is the type of nodes that do not say theirs (train.node).

    `newcomers` nodes of that type may join: what they cost before they can be leased is kept back.
    """

    def __init__(
        self,
        place: str,
        *,
        cap: float | None = None,
        owner: str = "",
        otherwise: str = "local",
        newcomers: int = 0,
        lease_s: float = Terms.lease_s,
        drain_s: float = Terms.drain_s,
    ) -> None:
        price(otherwise)
        self.cap = math.inf if cap is None else cap
        self.terms = Terms(self.cap, lease_s, drain_s)
        self.ledger = Ledger(place)
        self._owner = owner
        self._newcomers, self._newcomer = newcomers, price(otherwise)
        self._cluster = Cluster(otherwise, guard=cap is not None)
        self._known: dict[str, Node] = {}
        self._lock = threading.Lock()
        self._demands: dict[str, dict[str, float]] = {}
        self._lost: list[Lost] = []
        self._gone: dict[str, Reason] = {}
        self._promised: dict[str, tuple[float, float]] = {}
        self._notes: list[str] = []
        self._refused: set[tuple[str, str]] = set()  # types and zones of which that was said
        self._kept: Kept | None = None
        self._failing = self._stopped = self._superseded = self._full = False
        self._now = _Snapshot()
        self._read_at = 0.0
        self._gauges = Gauges(MONEY, "place", self.ledger.place)
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="accountant", daemon=True)

    def begin(self) -> None:
        """Leases the nodes that are there, and goes on doing so.

        Raises ConfigError where the cap is spent, or what is left of it too little for a step.
        """
        now = time.time()
        capped.check(self.ledger.book, self.cap, self.ledger.place)
        nodes = self._cluster.look(wait=True)[0]
        left = self.cap - self.ledger.book.committed
        needed = capped.least([node.ceiling for node in nodes.values()], self.terms, FIRST_S)
        needed += (kept := self._to_come(nodes))
        if left < needed:
            spent = self.ledger.book.committed
            raise ConfigError(
                f"budget.dollars={self.cap:g} is too little: {len(nodes)} node(s), "
                f"{FIRST_S:g} s to a first step and {self.terms.drain_s:g} s to save and end take "
                f"${needed:.3g}" + (f" beside ${spent:.3g} spent" if spent else "")
                + f"; the least that works is {capped.up(needed + spent):g}",
                "budget.dollars",
            )  # fmt: skip
        self.ledger.begin(now, None if self.cap == math.inf else self.cap, self._owner)
        # What an earlier driver held, it holds no more.
        entries: list[Entry] = [Released(held.id, now) for held in self.ledger.book.holds()]
        if kept:
            self._kept = Kept(_name(), now, kept)
            entries.append(self._kept)
        self.ledger.append(entries)
        for lease in self.ledger.book.unmatched(now):
            self._notes.append(
                f"nobody said when {lease.type} {lease.node[:8]} ended: ${lease.dollars:.4f}, all "
                "that was leased, is charged"
            )
        self._turn()
        self._thread.start()

    def bill(self, trial: str | None = None) -> Bill:
        """What was spent by now on everything, or on a trial alone; why to stop, if it is time.

        Raises ClusterError where another driver has begun at this place.
        """
        now, seen = time.time(), self._now
        if self._superseded:
            raise ClusterError(f"another driver goes on with {self.ledger.place}; this one ends")
        if self.cap < math.inf and now >= seen.stop_at:
            self._stopped = True
        stop = f"the cap of ${self.cap:g} is reached" if self._stopped else ""
        if trial is not None:
            dollars, rate = seen.trials.get(trial, 0.0), seen.rates.get(trial, 0.0)
            return Bill(
                dollars + rate * (now - seen.entered_at), rate, math.inf, stop, not self._full
            )
        limit = self.cap - seen.drain - seen.kept
        return Bill(
            seen.spent + seen.rate * (now - seen.at), seen.rate, limit, stop, not self._full
        )

    def left(self) -> float:
        """Dollars that more work may cost, beside all that is spent, reserved and promised."""
        seen, promised = self._now, 0.0
        aside = seen.drain + seen.kept
        for trial, (dollars, before) in list(self._promised.items()):
            promised += max(0.0, dollars - (self.bill(trial).dollars - before))
        ahead = max(seen.reserved - aside, promised)
        return self.cap - aside - seen.spent - ahead

    def admit(self, trial: str, dollars: float) -> bool:
        """Whether `trial` may begin, or go on with, work of so many dollars; if so it is promised.

        A new promise to a trial replaces its last one; `settle` ends it.
        """
        with self._lock:
            before = self._promised.pop(trial, None)
            if dollars <= self.left():
                self._promised[trial] = (dollars, self.bill(trial).dollars)
                return True
            if before is not None:
                self._promised[trial] = before
            return False

    def settle(self, trial: str) -> None:
        """A trial's work is over, or paused: what of its promise is left is free again."""
        with self._lock:
            self._promised.pop(trial, None)

    def hold(self, trial: str, demands: Mapping[str, Mapping[str, float]]) -> None:
        """`trial` holds these resources (kind to amount) on each node, by Ray's id, from now on."""
        shares = {node: self._cluster.share(node, kinds) for node, kinds in demands.items()}
        with self._lock:
            self._demands[trial] = {node: share for node, share in shares.items() if share > 0}

    def release(self, trial: str) -> None:
        """`trial` holds nothing any more."""
        with self._lock:
            self._demands[trial] = {}

    def lost(self, trial: str, since: float) -> None:
        """What `trial` did since `since`, Unix seconds, went with a node and is done again."""
        with self._lock:
            self._lost.append(Lost(trial, since, time.time()))

    def notes(self) -> list[str]:
        """Lines that a user should read once, since the last call."""
        with self._lock:
            notes, self._notes = self._notes, []
        return notes

    def spent(self) -> float:
        """Dollars that are spent by now, all nodes together."""
        return self.bill().dollars

    def reserved(self) -> float:
        """Dollars that leases may still cost, drain-down included."""
        return self._now.reserved

    def close(self) -> None:
        """Ends all leases. Rented nodes at a cap that is reached go, and are charged until then."""
        self._closing.set()
        self._thread.join()
        doomed = self._cluster.close(at_cap=self._stopped)
        now = time.time()
        with contextlib.suppress(StorageError):

            def decide(book: Book) -> Sequence[Entry]:
                if self.ledger.superseded:
                    return []
                mine = [x for x in book.open.values() if x.node in self._known]
                ends = [
                    Settled(lease.id, now, self._paid(lease, now), "done")
                    for lease in mine
                    if lease.node not in doomed
                ]
                free = [] if self._kept is None else [Freed(self._kept.id)]
                return [*self._held(book, now, {}), *ends, *free]

            self.ledger.commit(decide)

    def _watch(self) -> None:
        while not self._closing.wait(LOOK_EVERY_S):
            try:
                self._turn()
            except StorageError as error:
                # Nothing more is bought: under a cap work stops when what was bought is used.
                if not self._failing:
                    self._failing = True
                    self._say(f"{error}; trying again")

    def _turn(self) -> None:
        nodes, gone, capacity_notes = self._cluster.look()
        now = time.time()
        for note in capacity_notes:
            self._say(note)
        self._gone |= gone  # until it has been entered
        look = Look(now, nodes, self._gone)
        with self._lock:
            lost, wanted = list(self._lost), {t: dict(d) for t, d in self._demands.items()}
        # Once it is over nothing more is bought; a node that comes is paid until it is gone.
        terms = replace(self.terms, cap=-math.inf) if self._stopped else self.terms

        def decide(book: Book) -> Sequence[Entry]:
            if self.ledger.superseded:
                return []
            planned = capped.plan(book, terms, look, self._paid, _name)
            return [*planned, *lost, *self._held(book, now, wanted)]

        # Storage is asked when there is something to enter, or others may have entered something.
        entries: Sequence[Entry] = []
        if now - self._read_at > READ_EVERY_S or decide(self.ledger.book):
            entries, self._read_at = self.ledger.commit(decide), now
        self._full = self._full or capped.full(entries, now)
        self._failing = False
        self._stopped = self._stopped or (self._full and not nodes)
        self._gone = {}
        with self._lock:
            self._lost = self._lost[len(lost) :]
        self._superseded = self.ledger.superseded
        self._known |= nodes
        book = self.ledger.book
        leases = {x.node: x for x in book.open.values() if x.node in nodes}
        self._cluster.renew(leases)
        self._now = self._seen(book, nodes, leases, now)
        self._gauges.show(**book.figures(now))

    def _seen(
        self, book: Book, nodes: Mapping[str, Node], leases: Mapping[str, Lease], now: float
    ) -> _Snapshot:
        seen = replace(
            self._now,
            at=now,
            spent=book.spent(now),
            reserved=book.reserved(now),
            drain=capped.drain_down(book),
            kept=book.kept,
            rate=sum(lease.hourly for lease in leases.values()) / HOUR,
            stop_at=capped.stop_at(book, nodes),
        )
        if now - seen.entered_at < ENTERED_S:
            return seen
        spending = book.spending(now)
        trials = {
            trial: spending.trials.get(trial, 0.0) + spending.lost.get(trial, 0.0)
            for trial in spending.trials.keys() | spending.lost.keys()
        }
        rates: dict[str, float] = {}
        for held in book.holds():
            if held.node in leases:
                hourly = leases[held.node].hourly * held.share
                rates[held.trial] = rates.get(held.trial, 0.0) + hourly / HOUR
        return replace(seen, trials=trials, rates=rates, entered_at=now)

    def _held(
        self, book: Book, now: float, wanted: Mapping[str, Mapping[str, float]]
    ) -> list[Entry]:
        """Entries by which what is held becomes what is wanted."""
        entries: list[Entry] = []
        there: set[tuple[str, str]] = set()
        for held in book.holds():
            if wanted.get(held.trial, {}).get(held.node) == held.share:
                there.add((held.trial, held.node))
            else:
                entries.append(Released(held.id, now))
        entries += [
            Held(_name(), trial, node, share, now)
            for trial, shares in wanted.items()
            for node, share in shares.items()
            if (trial, node) not in there
        ]
        return entries

    def _paid(self, lease: Lease, end: float) -> float:
        if lease.market != "spot":
            return lease.hourly
        listed = price(lease.type)
        if listed.cloud != "aws" or not lease.zone:
            return min(listed.usual(lease.zone), lease.hourly)
        quote = spot.highest(lease.type, lease.zone, lease.since, end)
        if quote.refused and (lease.type, lease.zone) not in self._refused:
            self._refused.add((lease.type, lease.zone))
            self._say(quote.refused)
        return min(quote.hourly, lease.hourly)

    def _to_come(self, nodes: Mapping[str, Node]) -> float:
        """For nodes that boot, to come for the first time or in place of one that was lost."""
        dearest = max([self._newcomer.ceiling(), *(node.ceiling for node in nodes.values())])
        return capped.to_come(dearest, self._newcomers, self.terms)

    def _say(self, note: str) -> None:
        with self._lock:
            if note not in self._notes:
                self._notes.append(note)


def _name() -> str:
    return uuid.uuid4().hex[:12]
