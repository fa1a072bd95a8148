"""What may be bought under a cap. Pure: a book, the time and the nodes in, entries out.

    spent + reserved + drain-down + this <= cap

Time is bought for all nodes at once, up to one common moment, at the highest price it can have. At
half of it more is bought, as long as the cap allows: a full lease, or what is left of the money to
the second. When no more can be bought, work stops at the end of the lease, and within `drain_s`,
which has been paid from the start, the last state is saved and the nodes are gone.

So the cap holds to the cent if (1) each node is gone `drain_s` after its lease, (2) no price is
above the one that was bought at, (3) what is kept covers nodes that are not leased yet. Where a
node stays x seconds longer than that, the cap may be exceeded by what x seconds of it cost, and by
nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from raygen.cost.book import HOUR, Book
from raygen.cost.entries import Entry, Lease, Purpose, Reason, Settled
from raygen.errors import ConfigError

BOOT_S = 180.0  # from the launch of a node until it joins

Paid = Callable[[Lease, float], float]
"""The price an hour that a lease did cost up to a moment; never above the lease's own."""


@dataclass(frozen=True)
class Terms:
    """A cap in dollars, infinite for none; how long a lease is, and how long it takes to be gone.

    What is extended by less than `least_s` is not worth an entry.
    """

    cap: float = math.inf
    lease_s: float = 240.0
    drain_s: float = 60.0

    @property
    def least_s(self) -> float:
        """Seconds."""
        return self.lease_s / 100


@dataclass(frozen=True)
class Node:
    """A node that is there and is paid since `since`: `ceiling` is the most that an hour costs."""

    id: str
    type: str
    zone: str
    market: str
    ceiling: float
    since: float
    purpose: Purpose = "worker"
    instance: str = ""


@dataclass(frozen=True)
class Look:
    """What an accountant sees: nodes that are there, and those it saw go, and why."""

    now: float
    nodes: Mapping[str, Node]
    gone: Mapping[str, Reason] = field(default_factory=dict)


def plan(book: Book, terms: Terms, look: Look, paid: Paid, name: Callable[[], str]) -> list[Entry]:
    """What to enter now: the ends of leases, and new ones; `name` makes their ids.

    A node that the cap has no room for gets a lease that ends at once: it is paid until it is gone.
    """
    now, mine = look.now, {lease.node: lease for lease in book.open.values()}
    over = [mine[node] for node in look.gone if node in mine]
    ends = [_settled(lease, look.gone[lease.node], now, paid) for lease in over]
    entries: list[Entry] = [*ends]
    committed = book.committed - sum(lease.dollars for lease in over)
    committed += sum(
        end.hourly * (end.end - lease.since) / HOUR for lease, end in zip(over, ends, strict=True)
    )
    fresh = [node for node in look.nodes.values() if node.id not in mine]
    held = [mine[node] for node in look.nodes if node in mine]
    if not fresh and all(lease.until - now >= terms.lease_s / 2 for lease in held):
        return entries
    money = terms.cap - committed
    until = _until(money, terms, look, fresh, held, paid)
    if until is None and fresh:
        # As if they were not there, but for what it takes them to go.
        entries += [_lease(node, now, terms, name()) for node in fresh]
        money -= sum(node.ceiling * (now - node.since + terms.drain_s) / HOUR for node in fresh)
        fresh = []
        until = _until(money, terms, look, [], held, paid)
    if until is None:
        # As if those whose time is over had gone.
        held = [lease for lease in held if lease.until > now]
        until = _until(money, terms, look, [], held, paid)
    if until is None:
        return entries
    for lease in held:
        # In one breath: a crash finds either the old lease or the new one.
        node = replace(look.nodes[lease.node], since=now)
        entries.append(Settled(lease.id, now, paid(lease, now), "renewed"))
        entries.append(_lease(node, until, terms, name()))
    return entries + [_lease(node, until, terms, name()) for node in fresh]


def full(entries: Iterable[Entry], now: float) -> bool:
    """Whether what `plan` gave sends a node away: from then on no more may be asked for.

    What is kept pays for those that were asked for before, and for no others.
    """
    return any(isinstance(entry, Lease) and entry.until <= now for entry in entries)


def stop_at(book: Book, nodes: Iterable[str]) -> float:
    """When work on these nodes has to stop unless more is bought; infinite where nothing is."""
    there = set(nodes)
    return max((x.until for x in book.open.values() if x.node in there), default=math.inf)


def room(book: Book, terms: Terms, now: float, *, promised: float = 0.0) -> float:
    """Dollars that more work may cost: what the cap leaves beside all that is spent and promised.

    `promised` is what work that was admitted may still cost. It runs on the very nodes whose leases
    are reserved, so the larger of the two counts.
    """
    aside = drain_down(book) + book.kept
    ahead = max(book.reserved(now) - aside, promised)
    return terms.cap - aside - book.spent(now) - ahead


def drain_down(book: Book) -> float:
    """Dollars until all nodes are gone, once they are told to go."""
    return sum(lease.hourly * lease.drain_s for lease in book.open.values()) / HOUR


def to_come(ceiling: float, nodes: int, terms: Terms) -> float:
    """Dollars to keep for so many nodes at once that boot, and go again where there is no room."""
    return nodes * ceiling * (BOOT_S + terms.drain_s) / HOUR


def least(ceilings: Iterable[float], terms: Terms, first_s: float) -> float:
    """Dollars below which nothing comes out: nodes of these prices up to a first step, the end."""
    return sum(ceilings) * (first_s + terms.drain_s) / HOUR


def check(book: Book, cap: float, place: str) -> None:
    """Raises ConfigError where a cap is spent already."""
    spent = book.committed
    if spent >= cap:
        raise ConfigError(
            f"budget.dollars={cap:g} is spent: {place} has cost ${spent:.4f}; raise it to go on",
            "budget.dollars",
        )


def up(dollars: float) -> float:
    """Rounded up to two digits that count."""
    unit = 10.0 ** (math.floor(math.log10(dollars)) - 1)
    return round(math.ceil(dollars / unit) * unit, 12)


def _until(
    money: float,
    terms: Terms,
    look: Look,
    fresh: Sequence[Node],
    held: Sequence[Lease],
    paid: Paid,
) -> float | None:
    """The moment up to which all of these nodes can be had with `money` more, if it is worth it."""
    now, nodes = look.now, [*fresh, *(look.nodes[lease.node] for lease in held)]
    if not nodes:
        return None
    rate = sum(node.ceiling for node in nodes)
    money -= sum(_change(lease, now, paid) for lease in held) + rate * terms.drain_s / HOUR
    money -= sum(node.ceiling * (now - node.since) for node in fresh) / HOUR
    seconds = min(terms.lease_s, money / rate * HOUR)
    reach = max((lease.until - now for lease in held), default=0.0)
    if seconds < terms.lease_s and seconds < max(reach, 0.0) + terms.least_s:
        return None
    return now + seconds


def _settled(lease: Lease, reason: Reason, now: float, paid: Paid) -> Settled:
    """The end of a lease whose node is gone, as Ray sees it.

    A rented machine of which it just heard no more may be cut off, and run until its watchdog ends
    it: it is charged in full, until somebody asks the cloud.
    """
    if reason == "failed" and lease.instance:
        return Settled(lease.id, lease.gone_by, lease.hourly, reason)
    return Settled(lease.id, max(now, lease.since), paid(lease, now), reason)


def _change(lease: Lease, now: float, paid: Paid) -> float:
    """The change of what is committed where a lease ends now: less, unless it is late."""
    return paid(lease, now) * max(0.0, now - lease.since) / HOUR - lease.dollars


def _lease(node: Node, until: float, terms: Terms, name: str) -> Lease:
    return Lease(
        id=name,
        node=node.id,
        type=node.type,
        zone=node.zone,
        market=node.market,
        hourly=node.ceiling,
        since=node.since,
        until=until,
        drain_s=terms.drain_s,
        purpose=node.purpose,
        instance=node.instance,
    )
