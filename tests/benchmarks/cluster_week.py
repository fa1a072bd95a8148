"""A simulated week of spot: prices, capacity and interruptions, and the cheapest way through it.

Generated, not recorded; what a week is made of stands in `Parameters`, and a seed gives the same
week for ever. Each instance type is offered in each zone, a pool. A pool's price moves about a
level of its own; its capacity comes and goes, now and then a type's in all zones; and a node is
taken now and then by itself. Minutes count from 0; prices are dollars an hour.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cluster.market import BEFORE_S, Pool
from raygen.cost.prices import price

MINUTE = 60.0
HOUR = 60  # minutes


@dataclass(frozen=True)
class Parameters:
    """What a week is drawn from. Spells are exponential in length; hours, unless said otherwise.

    types, zones       what is offered; the table's typical spot prices are the centre
    zone_spread        of a pool's level about its type's: standard deviation of the logarithm
    price_spread       of a price about its pool's level, likewise
    price_half_life    of that deviation
    price_step         between two changes of a price
    up, down           mean spells in which a pool has capacity, and has none
    pool_spread        of those means between pools: standard deviation of the logarithm
    shortage_every     mean time between shortages of a type in all zones
    shortage           their mean length
    taken              mean life of a node whose pool has capacity
    """

    types: tuple[str, ...] = ("g5.2xlarge", "g6.2xlarge")
    zones: tuple[str, ...] = ("us-east-1a", "us-east-1b", "us-east-1c")
    zone_spread: float = 0.15
    price_spread: float = 0.12
    price_half_life: float = 24.0
    price_step: float = 4.0
    up: float = 10.0
    down: float = 3.0
    pool_spread: float = 0.5
    shortage_every: float = 36.0
    shortage: float = 2.0
    taken: float = 24.0


@dataclass(frozen=True)
class Week:
    """P pools over T minutes: spot_PT their prices, up_PT whether there is capacity, hit_PT whether
    a node there is taken at that minute. past_PH: prices at the hours before, as AWS tells them.
    """

    pools: tuple[Pool, ...]
    spot_PT: NDArray[np.float64]
    up_PT: NDArray[np.bool_]
    hit_PT: NDArray[np.bool_]
    past_PH: NDArray[np.float64]

    @property
    def on_demand(self) -> float:
        """The cheapest of the pools on demand."""
        return min(pool.on_demand for pool in self.pools)

    def now(self, minute: int) -> list[Pool]:
        """The pools with the prices of a minute."""
        return [
            Pool(pool.type, pool.zone, float(spot), pool.on_demand)
            for pool, spot in zip(self.pools, self.spot_PT[:, minute], strict=True)
        ]


def week(seed: int, minutes: int = 7 * 24 * HOUR, given: Parameters | None = None) -> Week:
    """The week of a seed."""
    parameters, chance = given or Parameters(), np.random.default_rng(seed)
    earlier = np.random.default_rng([seed, 1])
    pools, spots, ups, hits, pasts = [], [], [], [], []
    for type_ in parameters.types:
        listed = price(type_)
        short_T = _short(parameters, minutes, chance)
        for zone in parameters.zones:
            level = listed.spot * np.exp(parameters.zone_spread * chance.standard_normal())
            off_T = _wander(parameters, minutes, chance)
            spots.append(np.minimum(level * np.exp(off_T), listed.on_demand))
            off_H = _before(parameters, float(off_T[0]), earlier)
            pasts.append(np.minimum(level * np.exp(off_H), listed.on_demand))
            pools.append(Pool(type_, zone, float(level), listed.on_demand))
            ups.append(_up(parameters, minutes, chance) & ~short_T)
            hits.append(chance.random(minutes) < 1 / (parameters.taken * HOUR))
    return Week(tuple(pools), *map(np.stack, (spots, ups, hits, pasts)))


def cheapest(world: Week, work: int, deadline: int, restart: int) -> float:
    """Dollars of the cheapest way to do `work` minutes of work by a deadline, knowing the week.

    A dynamic programme, backwards in time. A job is idle, at work on a node, or moves to another:
    `restart` minutes, which are paid for and do no work, and through which the new node has to
    last. Nodes are one of each pool's spot, while it has capacity and is not taken, and one on
    demand. With E_t(w) the least that w minutes of work cost from t on without a node, and V_t^m
    the same on node m:

        E_t(w)   = min(E_t+1(w), min_m (price of m over the restart + V_t+restart^m(w)))
        V_t^m(w) = min(E_t(w), price of m + V_t+1^m(w - 1))
    """
    count = len(world.pools)
    dear_1T = np.full((1, world.spot_PT.shape[1]), world.on_demand)
    price_MT = np.concatenate([world.spot_PT, dear_1T])[:, :deadline] / HOUR
    stays_MT = np.concatenate([world.up_PT & ~world.hit_PT, np.ones_like(dear_1T, bool)])
    stays_MT = stays_MT[:, :deadline]
    # Over the restart that begins at t: what it costs, and whether the node lasts.
    paid_MT = np.cumsum(np.pad(price_MT, ((0, 0), (1, 0))), axis=1)
    held_MT = np.cumsum(np.pad(stays_MT, ((0, 0), (1, 0))), axis=1)
    end_W = np.where(np.arange(work + 1) == 0, 0.0, np.inf)
    ahead = [np.tile(end_W, (count + 1, 1)) for _ in range(restart)]  # V at t+1, t+2, ...
    idle_W = end_W
    for t in reversed(range(deadline)):
        moved_W = idle_W
        if t + restart <= deadline:
            cost_M = paid_MT[:, t + restart] - paid_MT[:, t]
            # A node that was up at t may be launched, even where another was just taken there.
            lasts_M = held_MT[:, t + restart] - held_MT[:, t + 1] == restart - 1
            lasts_M[:count] &= world.up_PT[:, t]
            moves_MW = np.where(lasts_M, cost_M, np.inf)[:, None] + ahead[-1]
            moved_W = np.minimum(idle_W, moves_MW.min(axis=0))
        worked_MW = np.full_like(ahead[0], np.inf)
        worked_MW[:, 1:] = (
            np.where(stays_MT[:, t], price_MT[:, t], np.inf)[:, None] + ahead[0][:, :-1]
        )
        idle_W = moved_W
        ahead = [np.minimum(idle_W, worked_MW), *ahead[:-1]]
    return float(idle_W[work])


def _wander(
    parameters: Parameters, minutes: int, chance: np.random.Generator
) -> NDArray[np.float64]:
    """The logarithm of a price over its level: a step every so often, back to 0 in the long run."""
    stays = 0.5 ** (parameters.price_step / parameters.price_half_life)
    step = int(parameters.price_step * HOUR)
    moves = chance.standard_normal(minutes // step + 2) * parameters.price_spread
    values = [moves[0]]
    for move in moves[1:]:
        values.append(stays * values[-1] + np.sqrt(1 - stays**2) * move)
    offset = int(chance.integers(step))
    repeated: NDArray[np.float64] = np.repeat(values, step)[offset : offset + minutes]
    return repeated


def _before(
    parameters: Parameters, value: float, chance: np.random.Generator
) -> NDArray[np.float64]:
    """What led to a value of `_wander`, at each hour: backwards it moves by the same law."""
    stays, values = 0.5 ** (1 / parameters.price_half_life), [value]
    for move in chance.standard_normal(int(BEFORE_S / HOUR / MINUTE)) * parameters.price_spread:
        values.append(stays * values[-1] + np.sqrt(1 - stays**2) * move)
    return np.array(values[:0:-1])


def _up(parameters: Parameters, minutes: int, chance: np.random.Generator) -> NDArray[np.bool_]:
    up, down = (
        mean * np.exp(parameters.pool_spread * chance.standard_normal())
        for mean in (parameters.up, parameters.down)
    )
    return _alternate(minutes, up, down, chance, chance.random() < up / (up + down))


def _short(parameters: Parameters, minutes: int, chance: np.random.Generator) -> NDArray[np.bool_]:
    return ~_alternate(minutes, parameters.shortage_every, parameters.shortage, chance, True)


def _alternate(
    minutes: int, on: float, off: float, chance: np.random.Generator, state: bool
) -> NDArray[np.bool_]:
    """Spells of True and False with these means in hours."""
    found, at = np.zeros(minutes, bool), 0
    while at < minutes:
        length = max(1, int(chance.exponential((on if state else off) * HOUR)))
        found[at : at + length] = state
        at, state = at + length, not state
    return found
