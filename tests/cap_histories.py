"""Random histories of nodes, prices and crashes under a cap: what a cloud would have charged.

    python -m tests.cap_histories --histories 10000

The cloud here bills each node from launch to termination at a price that jumps; the entries are
those that raygen.cost makes. Nodes boot for a while before they are seen, are lost at any time or
cut off, when they run on and nobody sees it, and go late when told to; the driver dies and begins
again with what it reads from the ledger, or the head with it; what ends the nodes then is their
watchdogs, at the end of what was leased. Of a node that was gone before any driver saw it the cloud
tells later. `late_s` lets nodes outlive even their watchdogs, which is what the cap's bound is
stated in.
"""

from __future__ import annotations

import argparse
import math
import random
import time
from dataclasses import dataclass, field, replace

from raygen.cost.book import HOUR, Book
from raygen.cost.cap import BOOT_S, Look, Node, Terms, full, plan, stop_at, to_come
from raygen.cost.entries import (
    Entry,
    Freed,
    Kept,
    Lease,
    Opened,
    Reason,
    Settled,
    decode,
    encode,
)

STEP_S = (1.0, 20.0)  # between looks


@dataclass(frozen=True)
class Outcome:
    """Dollars: the cap, what the cloud charged, what the ledger says, and the bound on `excess`.

    `crashes` and `losses` are counts.
    """

    cap: float
    charged: float
    booked: float
    bound: float
    nodes: int
    crashes: int
    losses: int

    @property
    def excess(self) -> float:
        """Dollars that the cloud charged above the cap."""
        return max(0.0, self.charged - self.cap)


@dataclass
class _Machine:
    """A node as the cloud knows it: billed from `launched` to `ended`."""

    id: str
    ceiling: float
    spot: bool
    launched: float
    joins: float
    ended: float = math.inf
    deadline: float = math.inf  # of its watchdog
    late_s: float = 0.0
    cut: bool = False  # it runs, and nobody sees it
    prices: list[tuple[float, float]] = field(default_factory=list)  # (from when on, an hour)

    def charge(self, end: float) -> float:
        """Dollars up to `end`."""
        end, total = min(end, self.ended), 0.0
        for k, (at, hourly) in enumerate(self.prices):
            until = self.prices[k + 1][0] if k + 1 < len(self.prices) else math.inf
            total += hourly * max(0.0, min(until, end) - at) / HOUR
        return total

    def highest(self, since: float, until: float) -> float:
        """The highest price in a time."""
        held = [p for k, (at, p) in enumerate(self.prices) if at < until and self._end(k) > since]
        return max(held, default=self.ceiling)

    def _end(self, k: int) -> float:
        return self.prices[k + 1][0] if k + 1 < len(self.prices) else math.inf


class _World:
    """One history, from its first node until the last one is gone."""

    def __init__(self, seed: int, late_s: float) -> None:
        chance = self.chance = random.Random(seed)
        self.late_s = late_s
        self.terms = Terms(
            cap=chance.uniform(0.5, 8.0),
            lease_s=chance.choice([60.0, 120.0, 240.0, 600.0]),
            drain_s=chance.choice([20.0, 60.0, 120.0]),
        )
        self.wanted = chance.randint(1, 6)
        self.ceilings = [chance.uniform(0.3, 4.0) for _ in range(3)]
        self.loss_every = chance.choice([300.0, 1200.0, 1e9])
        self.crash_every = chance.choice([600.0, 2400.0, 1e9])
        self.jump_every = chance.choice([120.0, 900.0])
        self.now = 0.0
        self.machines: list[_Machine] = []
        self.live: list[_Machine] = []
        self.dead: list[_Machine] = []  # and no lease was ever written for them
        self.leased: set[str] = set()
        self.entries: list[Entry] = []
        self.book = Book()
        self.names = self.crashes = self.losses = 0

    def run(self) -> Outcome:
        while self._session():
            self.crashes += 1
            # Nobody renews: a while later somebody starts the same command again.
            self._pass(self.chance.uniform(1.0, 1500.0), watched=False)
        # Whatever is there is told to go; some only hear it from their watchdogs.
        for machine in list(self.live):
            told = math.inf if machine.cut else self.now + self.chance.uniform(0, 90)
            self._end(machine, min(self._doom(machine), told))
        self._write(self._unseen())
        late = sum(m.late_s * m.ceiling for m in self.machines) / HOUR
        return Outcome(
            cap=self.terms.cap,
            charged=sum(machine.charge(math.inf) for machine in self.machines),
            booked=self.book.committed,
            bound=late,
            nodes=len(self.machines),
            crashes=self.crashes,
            losses=self.losses,
        )

    def _session(self) -> bool:
        """One driver, from its start until the cap ends it, or a crash (True)."""
        # What a driver knows is what it reads; a torn or lost line was never acted upon.
        self.entries = decode(encode(self.entries, ""))
        self.book = Book.of(self.entries)
        kept = to_come(max(self.ceilings), self.wanted, self.terms)
        if self.book.committed + kept + self._rate() * self.terms.drain_s / HOUR >= self.terms.cap:
            return False
        started = Kept(self._name(), self.now, kept)
        self._write([Opened(self._name(), self.now, self.terms.cap), started])
        known: dict[str, Node] = {}
        is_full = False
        crash_at = self.now + self.chance.expovariate(1 / self.crash_every)
        while self.now < crash_at:
            self._write(self._unseen())
            there = {m.id: m for m in self.live if m.joins <= self.now and not m.cut}
            for machine in there.values():
                known.setdefault(machine.id, _node(machine, self.now))
            gone: dict[str, Reason] = {name: "failed" for name in known if name not in there}
            nodes = {name: node for name, node in known.items() if name in there}
            known = dict(nodes)
            look = Look(self.now, nodes, gone)
            planned = plan(self.book, self.terms, look, self._paid, self._name)
            self._write(planned)
            is_full = is_full or full(planned, self.now)
            for lease in self.book.open.values():
                if lease.node in there:
                    there[lease.node].deadline = lease.gone_by
            over = bool(nodes) and stop_at(self.book, nodes) <= self.now
            if over or (is_full and not self._visible()):
                self._wind_down(nodes, started)
                return False
            if not is_full:
                self._launch()
            self._pass(self.chance.uniform(*STEP_S), watched=True)
        if self.chance.random() < 0.4:
            # The head as well: its machine, and Ray on all others.
            for machine in self.live[:1]:
                self._end(machine, self.now)
        return True

    def _wind_down(self, nodes: dict[str, Node], kept: Kept) -> None:
        """Saves and ends; nodes go when they are told, or when their watchdog says so."""
        for machine in list(self.live):
            told = self.now + self.chance.uniform(0.0, 1.5 * self.terms.drain_s)
            self._end(
                machine, self._doom(machine) if machine.cut else min(told, self._doom(machine))
            )
        self._write([Freed(kept.id)] if self.chance.random() < 0.5 else [])

    def _unseen(self) -> list[Entry]:
        """What the cloud tells of nodes that were gone before a driver saw them."""
        entries: list[Entry] = []
        for machine in self.dead:
            lease = Lease(
                self._name(), machine.id, "any", "", "spot", machine.ceiling, machine.launched,
                machine.ended, 0.0,
            )  # fmt: skip
            paid = self._paid(lease, machine.ended)
            entries += [lease, Settled(lease.id, machine.ended, paid, "failed")]
        self.dead = []
        return entries

    def _launch(self) -> None:
        booting = [m for m in self.live if m.joins > self.now]
        short = self.wanted - len(self._visible())
        if short > 0 and len(booting) < self.wanted and self.chance.random() < 0.7:
            ceiling, boot = (
                self.chance.choice(self.ceilings),
                self.chance.uniform(20.0, 0.8 * BOOT_S),
            )
            spot = self.chance.random() < 0.8
            price = ceiling * (self.chance.uniform(0.1, 1.0) if spot else 1.0)
            machine = _Machine(
                f"n{len(self.machines)}", ceiling, spot, self.now, self.now + boot,
                prices=[(self.now, price)], late_s=self.late_s * self.chance.random(),
            )  # fmt: skip
            # What boots has a watchdog with a time-to-live, and no lease yet.
            machine.deadline = self.now + BOOT_S + self.terms.drain_s
            self.machines.append(machine)
            self.live.append(machine)

    def _pass(self, seconds: float, *, watched: bool) -> None:
        """Time goes by: prices jump, nodes are taken, watchdogs look at their leases."""
        end = self.now + seconds
        for machine in list(self.live):
            if machine.spot and self.chance.random() < seconds / self.jump_every:
                at = self.chance.uniform(max(self.now, machine.launched), end)
                price = machine.ceiling * self.chance.uniform(0.1, 1.0)
                machine.prices.append((at, price))
            if self.chance.random() < seconds / self.loss_every:
                self.losses += 1
                if machine.id in self.leased and self.chance.random() < 0.3:
                    machine.cut = True
                    continue
                self._end(machine, min(self._doom(machine), self.chance.uniform(self.now, end)))
            elif self._doom(machine) <= end:
                self._end(machine, self._doom(machine))
        self.now = end

    def _visible(self) -> list[_Machine]:
        return [machine for machine in self.live if not machine.cut]

    def _doom(self, machine: _Machine) -> float:
        return machine.deadline + machine.late_s

    def _end(self, machine: _Machine, at: float) -> None:
        machine.ended = max(at, machine.launched)
        self.live.remove(machine)
        if machine.id not in self.leased:
            self.dead.append(machine)

    def _paid(self, lease: Lease, end: float) -> float:
        machine = self.machines[int(lease.node[1:])]
        return min(lease.hourly, machine.highest(lease.since, end))

    def _rate(self) -> float:
        return sum(machine.ceiling for machine in self.live)

    def _write(self, entries: list[Entry]) -> None:
        self.entries += entries
        for entry in entries:
            self.book.add(entry)
            if isinstance(entry, Lease):
                self.leased.add(entry.node)

    def _name(self) -> str:
        self.names += 1
        return str(self.names)


def _node(machine: _Machine, now: float) -> Node:
    there = Node(machine.id, "any", "", "spot", machine.ceiling, machine.launched)
    return replace(there, instance=machine.id)


def history(seed: int, late_s: float = 0.0) -> Outcome:
    """The random history of a seed."""
    return _World(seed, late_s).run()


def overspend_max(histories: int = 10_000, first: int = 0) -> float:
    """The largest sum in dollars by which any of so many histories exceeds its cap."""
    return max(history(seed).excess for seed in range(first, first + histories))


def main() -> None:
    """Prints what became of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--histories", type=int, default=10_000)
    parser.add_argument("--late-s", type=float, default=0.0)
    given = parser.parse_args()
    began = time.monotonic()
    found = [history(seed, given.late_s) for seed in range(given.histories)]
    count = len(found)
    took, count = time.monotonic() - began, len(found)
    nodes, losses = sum(o.nodes for o in found), sum(o.losses for o in found)
    crashes, used = sum(o.crashes for o in found), [o.charged / o.cap for o in found]
    unbooked = sum(o.booked < o.charged - 1e-9 for o in found)
    lines = (
        f"{count} histories in {took:.0f} s: {nodes} nodes, {losses} losses, {crashes} crashes",
        f"of the cap charged: {sum(used) / count:.1%}, at most {max(used):.2%}",
        f"overspend_max ${max(o.excess for o in found):.6f}, and above its bound "
        f"${max(0.0, *(o.excess - o.bound for o in found)):.6f}",
        f"histories in which the ledger knew of less than the cloud: {unbooked}",
    )
    print("\n".join(lines))  # noqa: T201


if __name__ == "__main__":
    main()
