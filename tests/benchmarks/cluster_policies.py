"""One job on one node through a simulated week: under raygen's policy, and without it.

raygen's is the code that a cluster runs: cluster.market decides, raygen.cost.cap leases the time.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

from cluster.market import Attempt, Memory, Terms, attempts, gives_back
from raygen.cost import cap as capped
from raygen.cost.book import Book
from raygen.cost.cap import Look, Node
from raygen.cost.entries import Lease, Reason
from tests.benchmarks.cluster_week import HOUR, MINUTE, Week

RESTART = 5  # minutes from a node's launch, or from a notice, to the next step


@dataclass(frozen=True)
class Job:
    """Minutes of work, and the minute by which it has to be done."""

    work: int
    deadline: int


@dataclass(frozen=True)
class Outcome:
    """Dollars of the cloud's bill and of the ledger, which leases at the highest price; the minute
    at which the work was done, infinite if it was not; nodes launched, and minutes on demand.
    """

    dollars: float
    booked: float
    done: float
    launches: int = 0
    on_demand: int = 0


@dataclass
class _Running:
    attempt: Attempt
    pool: int
    id: str
    since: int


def raygen(world: Week, job: Job, terms: Terms, cap: float = math.inf) -> Outcome:
    """Spot first, on demand as the terms say; every notice is a checkpoint, so no work is lost.

    Without a deadline in the terms it may run on to the end of the week.
    """
    end = job.deadline if terms.deadline is not None else world.spot_PT.shape[1]
    money, names = capped.Terms(cap), (str(number) for number in itertools.count())
    book, memory = Book(), Memory().told(world.past_PH.tolist())
    node: _Running | None = None
    dollars, worked, launches, dear = 0.0, 0, 0, 0
    for minute in range(end):
        now = minute * MINUTE
        gone: dict[str, Reason] = {}
        if node is not None and _ends(world, node, terms, memory, minute):
            gone, node = {node.id: "preempted"}, None
        memory = memory.looked(0 if node is None else 1, now, most=1)
        memory = memory.priced(terms, world.now(minute), now)
        if node is None:
            plan = attempts(terms, world.now(minute), memory, on_demand=0, most=1, now=now)
            for attempt in plan:
                pool = _index(world, attempt)
                if attempt.market == "spot" and not world.up_PT[pool, minute]:
                    memory = memory.refused(attempt, now)
                    continue
                memory = memory.launched(attempt, now, terms=terms, most=1)
                node = _Running(attempt, pool, f"n{launches}", minute)
                launches += 1
                break
        there = {} if node is None else {node.id: _node(node)}
        entries = capped.plan(
            book,
            money,
            Look(now, there, gone),
            lambda x, at: _paid(world, x, at),
            lambda: next(names),
        )
        for entry in entries:
            book.add(entry)
        if now >= capped.stop_at(book, there) or capped.full(entries, now):
            # It saves and is gone in what was kept for that: a minute.
            dollars += 0.0 if node is None else _price(world, node, minute) / HOUR
            return Outcome(dollars, book.spent(now + MINUTE), math.inf, launches, dear)
        if node is None:
            continue
        dollars += _price(world, node, minute) / HOUR
        dear += node.attempt.market == "on-demand"
        worked += minute - node.since >= RESTART
        if worked == job.work:
            return Outcome(dollars, book.spent(now + MINUTE), minute + 1, launches, dear)
    return Outcome(dollars, book.spent(end * MINUTE), math.inf, launches, dear)


def on_demand(world: Week, job: Job) -> Outcome:
    """On demand from the first minute on."""
    dollars = world.on_demand * (job.work + RESTART) / HOUR
    return Outcome(dollars, dollars, job.work + RESTART, 1, job.work + RESTART)


def without_checkpoints(world: Week, job: Job) -> Outcome:
    """The cheapest spot there is; a node that is taken takes all work with it. On demand from the
    last minute from which all of it can be done by the deadline.
    """
    dollars, worked, launches = 0.0, 0, 0
    pool, since = -1, 0
    for minute in range(job.deadline - job.work - RESTART):
        if pool >= 0 and (world.hit_PT[pool, minute] or not world.up_PT[pool, minute]):
            pool, worked = -1, 0
        if pool < 0 and world.up_PT[:, minute].any():
            prices = [
                spot if up else math.inf
                for spot, up in zip(world.spot_PT[:, minute], world.up_PT[:, minute], strict=True)
            ]
            pool, since, launches = prices.index(min(prices)), minute, launches + 1
        if pool >= 0:
            dollars += world.spot_PT[pool, minute] / HOUR
            worked += minute - since >= RESTART
        if worked == job.work:
            return Outcome(dollars, dollars, minute + 1, launches)
    rest = on_demand(world, job)
    total = dollars + rest.dollars
    return Outcome(total, total, job.deadline, launches + 1, rest.on_demand)


def _ends(world: Week, node: _Running, terms: Terms, memory: Memory, minute: int) -> bool:
    spot, pool = node.attempt.market == "spot", node.pool
    if spot and (world.hit_PT[pool, minute] or not world.up_PT[pool, minute]):
        return True
    return gives_back(terms, world.now(minute), memory, node.attempt, minute * MINUTE)


def _index(world: Week, attempt: Attempt) -> int:
    wanted = attempt.pool.type, attempt.pool.zone
    return [(pool.type, pool.zone) for pool in world.pools].index(wanted)


def _node(node: _Running) -> Node:
    pool = node.attempt.pool
    return Node(
        id=f"{node.id}",
        type=pool.type,
        zone=f"{node.pool}",
        market=node.attempt.market,
        ceiling=pool.on_demand,
        since=node.since * MINUTE,
    )


def _price(world: Week, node: _Running, minute: int) -> float:
    if node.attempt.market == "spot":
        return float(world.spot_PT[node.pool, minute])
    return node.attempt.pool.on_demand


def _paid(world: Week, lease: Lease, end: float) -> float:
    """As raygen.cost.accountant: the highest spot price in the time of the lease."""
    if lease.market != "spot":
        return lease.hourly
    first, last = int(lease.since // MINUTE), int(max(end, lease.since) // MINUTE)
    return float(world.spot_PT[int(lease.zone), first : last + 1].max())
