"""When to ask for spot, when to fall back to on-demand, when to return: decisions, all pure.

    plan = attempts(terms, pools, memory, on_demand=1, most=8, now=time.time())
    for attempt in plan:                                  # until one is not refused
        if launch(attempt):
            memory = memory.launched(attempt, now)
            break
        memory = memory.refused(attempt, now)

The node provider decides with this, and so does the simulated week of tests.benchmarks.cluster.
A pool is one instance type in one zone: capacity and spot prices are a pool's own. Spot is asked
for first, in the cheapest pool, and in a pool that refused it not again for a while. On-demand
follows once spot was refused for longer than a user's patience, or, for work with a deadline, once
waiting, or losing a node again, would miss it. Work with a deadline also waits for hours that are
cheap by what was seen so far and in the three days before, as many as it needs. A node is given
back, for the cluster to ask again, where another pool is cheaper by more than the restart costs: so
an on-demand node that stands in for spot ends too.
Times are Unix seconds, prices dollars an hour.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from types import MappingProxyType
from typing import Any, Literal

from raygen.errors import ConfigError

Market = Literal["spot", "on-demand"]

PRICED_S = 3600.0  # between two prices that are remembered
FEWEST = 3  # prices below which nothing is known of them
KEPT_S = 7200.0  # of the time to the deadline, for what goes wrong: not for waiting
BEFORE_S = 72 * 3600.0  # of the time before the start, whose prices are asked for
STAY = 1.2  # a node stays until it costs so many times what another would be taken for
# Before anything is known of a pool it is as if it had granted and refused so many requests.
GRANTED, REFUSED = 3.0, 1.0


@dataclass(frozen=True)
class Terms:
    """What a user allows; the keys of `provider.market` in a cluster's YAML.

    share          of the most worker nodes, so many, rounded up, may be on demand; 0: none
    max_hourly     dollars an hour of one on-demand node, at most
    patience_s     how long spot may be refused before on-demand is asked for
    spot_again_s   after a refusal, how long until that pool is asked again
    horizon_s      how long a price is expected to hold, and a node to stay
    recover_s      how long a pool is without capacity, on average
    deadline       Unix time by which the work has to be done; None: none
    work_s         seconds that the work takes on all nodes, where there is a deadline
    restart_s      seconds that a node which comes costs: boot, and start of the workers
    pause_s        seconds that every other node stands still when one comes or goes
    """

    share: float = 0.5
    max_hourly: float = math.inf
    patience_s: float = 120.0
    spot_again_s: float = 300.0
    horizon_s: float = 14400.0
    recover_s: float = 7200.0
    deadline: float | None = None
    work_s: float = 0.0
    restart_s: float = 300.0
    pause_s: float = 60.0

    @classmethod
    def parse(cls, section: Mapping[str, Any]) -> Terms:
        """Of a YAML section. Raises ConfigError for an unknown key or a value out of range."""
        known = {each.name for each in fields(cls)}
        for key, value in section.items():
            where = f"provider.market.{key}"
            if key not in known:
                raise ConfigError(
                    f"{where}: no such key; there are {', '.join(sorted(known))}", where
                )
            if key == "deadline" and value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
                raise ConfigError(f"{where} is {value!r}: give a number of at least 0", where)
            if key == "share" and value > 1:
                raise ConfigError(f"{where} is {value!r}: give a part, from 0 to 1", where)
        terms = cls(**section)
        if terms.deadline is not None and not terms.work_s:
            raise ConfigError(
                "provider.market.deadline is set: give provider.market.work_s, the seconds that "
                "the work takes on all nodes",
                "provider.market.work_s",
            )
        return terms


@dataclass(frozen=True)
class Pool:
    """An instance type in a zone, with its price as spot, and on demand."""

    type: str
    zone: str
    spot: float
    on_demand: float

    def hourly(self, market: Market) -> float:
        """What a node of it costs on a market."""
        return self.spot if market == "spot" else self.on_demand


@dataclass(frozen=True)
class Attempt:
    """To ask for a node in a pool, on a market."""

    pool: Pool
    market: Market

    @property
    def key(self) -> tuple[str, str, str]:
        """Type, zone and market: what was refused, and may be refused again."""
        return self.pool.type, self.pool.zone, self.market


@dataclass(frozen=True)
class Memory:
    """What was seen so far: when each pool and market refused last, how often a pool granted and
    refused spot, the cheapest price of each hour, since when spot is not to be had, the work done.

    `worked_s` counts seconds in which all nodes were there, half of them half, and takes a restart
    off for each node that was launched: no more than was done, where nothing else goes wrong.
    """

    refusals: Mapping[tuple[str, str, str], float] = field(
        default_factory=lambda: MappingProxyType({})
    )
    tally: Mapping[tuple[str, str, str], tuple[int, int]] = field(
        default_factory=lambda: MappingProxyType({})
    )
    prices: tuple[float, ...] = ()
    priced_at: float = -math.inf
    without_spot_since: float | None = None
    worked_s: float = 0.0
    looked_at: float | None = None

    def refused(self, attempt: Attempt, now: float) -> Memory:
        """There was no capacity."""
        since = self.without_spot_since
        if attempt.market == "spot" and since is None:
            since = now
        refusals = MappingProxyType({**self.refusals, attempt.key: now})
        tally = self._tallied(attempt, 0, 1)
        return replace(self, refusals=refusals, tally=tally, without_spot_since=since)

    def launched(self, attempt: Attempt, now: float, *, terms: Terms, most: int) -> Memory:
        """There was."""
        since = None if attempt.market == "spot" else self.without_spot_since
        worked = max(0.0, self.worked_s - terms.restart_s / most)
        tally = self._tallied(attempt, 1, 0)
        return replace(self, tally=tally, without_spot_since=since, worked_s=worked)

    def looked(self, nodes: int, now: float, *, most: int) -> Memory:
        """So many worker nodes are there; with a deadline, to be told every few seconds."""
        past = 0.0 if self.looked_at is None else now - self.looked_at
        return replace(self, looked_at=now, worked_s=self.worked_s + past * nodes / most)

    def priced(self, terms: Terms, pools: Sequence[Pool], now: float) -> Memory:
        """What spot costs now; to be told every few minutes where there is a deadline."""
        there = [p.spot for p in pools if self.chance(terms, Attempt(p, "spot"), now) > 0.5]
        if not there or now - self.priced_at < PRICED_S:
            return self
        return replace(self, prices=(*self.prices, min(there)), priced_at=now)

    def told(self, past: Sequence[Sequence[float]]) -> Memory:
        """What spot cost at each hour before the start, in each pool; unknown where it is empty."""
        known = [prices for prices in past if prices]
        return replace(self, prices=tuple(map(min, zip(*known, strict=True))) + self.prices)

    def chance(self, terms: Terms, attempt: Attempt, now: float) -> float:
        """That a pool would grant a request, 0 to 1.

        As often as it did so far, and less after a refusal: capacity comes back at a constant rate.
        """
        granted, refused = self.tally.get(attempt.key, (0, 0))
        often = (granted + GRANTED) / (granted + refused + GRANTED + REFUSED)
        last = self.refusals.get(attempt.key, -math.inf)
        return often * (1.0 - math.exp((last - now) / terms.recover_s))

    def limit(self, terms: Terms, now: float) -> float:
        """Dollars an hour that spot may cost for it to be worth taking now; else infinite.

        The part of the time left that the work needs is the part of the prices that it pays.
        """
        work = terms.work_s - self.worked_s
        left = -math.inf if terms.deadline is None else terms.deadline - now - KEPT_S
        if len(self.prices) < FEWEST or left <= work:
            return math.inf
        return sorted(self.prices)[round(max(0.0, work) / left * (len(self.prices) - 1))]

    def spare_s(self, terms: Terms, now: float) -> float:
        """Seconds that may pass without work, and the deadline is met still; else infinite."""
        if terms.deadline is None:
            return math.inf
        return terms.deadline - now - (terms.work_s - self.worked_s)

    def _tallied(
        self, attempt: Attempt, granted: int, refused: int
    ) -> Mapping[tuple[str, str, str], tuple[int, int]]:
        before = self.tally.get(attempt.key, (0, 0))
        counts = before[0] + granted, before[1] + refused
        return MappingProxyType({**self.tally, attempt.key: counts})


def attempts(
    terms: Terms,
    pools: Sequence[Pool],
    memory: Memory,
    *,
    on_demand: int,
    most: int,
    now: float,
) -> list[Attempt]:
    """What to try for the next node, in this order; nothing: wait, and ask again.

    `on_demand` worker nodes are there already or on their way, and the cluster has `most` at most.
    """
    plan = [Attempt(pool, "spot") for pool in sorted(pools, key=lambda each: each.spot)]
    limit = memory.limit(terms, now)
    plan = [x for x in plan if x.pool.spot < x.pool.on_demand and x.pool.spot <= limit]
    if _falls_back(terms, memory, now) and on_demand < allowed(terms, most):
        dear = sorted(pools, key=lambda each: each.on_demand)
        sure = [Attempt(pool, "on-demand") for pool in dear if pool.on_demand <= terms.max_hourly]
        # Were a spot node lost once more, there would be no time for another of any kind.
        last = memory.spare_s(terms, now) <= 2 * terms.restart_s
        plan = sure + plan if last else plan + sure
    ready = now - terms.spot_again_s
    return [each for each in plan if memory.refusals.get(each.key, -math.inf) <= ready]


def allowed(terms: Terms, most: int) -> int:
    """How many of at most `most` worker nodes may be on demand."""
    return math.ceil(terms.share * most - 1e-9)


def gives_back(
    terms: Terms,
    pools: Sequence[Pool],
    memory: Memory,
    node: Attempt,
    now: float,
    *,
    beside: int = 0,
) -> bool:
    """Whether a node, got by that attempt, is to be drained, for a cheaper one or a cheaper hour.

    What another pool saves while its price holds, by the chance that it has capacity, is to exceed
    what the restart costs, and what it costs the nodes `beside` it, of the same price, to stand
    still twice. Not where the deadline leaves no time for restarts.
    """
    if memory.spare_s(terms, now) <= 3 * terms.restart_s:
        return False
    hourly = next(pool for pool in pools if _same(pool, node.pool)).hourly(node.market)
    if hourly > STAY * memory.limit(terms, now):
        return True
    gain = max(
        (
            memory.chance(terms, Attempt(pool, "spot"), now) * (hourly - pool.spot)
            for pool in pools
            if node.market == "on-demand" or not _same(pool, node.pool)
        ),
        default=0.0,
    )
    lost_s = terms.restart_s + 2 * beside * terms.pause_s
    return gain * terms.horizon_s > hourly * lost_s


def _same(one: Pool, other: Pool) -> bool:
    return (one.type, one.zone) == (other.type, other.zone)


def _falls_back(terms: Terms, memory: Memory, now: float) -> bool:
    if terms.deadline is not None:
        # On-demand nodes take a restart to come, and one more may be needed before the end.
        return memory.spare_s(terms, now) <= 2 * terms.restart_s
    since = memory.without_spot_since
    return since is not None and now - since >= terms.patience_s
