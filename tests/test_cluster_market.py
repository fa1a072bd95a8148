"""Between spot and on-demand: the decision, and what it comes to in simulated weeks."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest

from cluster.market import FEWEST, PRICED_S, Attempt, Memory, Pool, Terms, attempts, gives_back
from raygen.errors import ConfigError
from tests.benchmarks.cluster import PATIENT, bound
from tests.benchmarks.cluster_policies import RESTART, Job, on_demand, raygen, without_checkpoints
from tests.benchmarks.cluster_week import HOUR, Week, cheapest, week

CHEAP = Pool("g6.xlarge", "us-east-1b", 0.35, 0.80)
DEAR = Pool("g5.xlarge", "us-east-1a", 0.45, 1.01)
POOLS = [DEAR, CHEAP]
TERMS = Terms(share=0.25, max_hourly=1.0, patience_s=100.0, spot_again_s=300.0)


def planned(
    memory: Memory, now: float, terms: Terms = TERMS, dear: int = 0
) -> list[tuple[Pool, str]]:
    plan = attempts(terms, POOLS, memory, on_demand=dear, most=8, now=now)
    return [(attempt.pool, attempt.market) for attempt in plan]


def refusing(*pools: Pool, at: float = 0.0) -> Memory:
    memory = Memory()
    for pool in pools:
        memory = memory.refused(Attempt(pool, "spot"), at)
    return memory


def test_spot_is_asked_for_where_it_is_cheapest() -> None:
    assert planned(Memory(), 0.0) == [(CHEAP, "spot"), (DEAR, "spot")]


def test_a_pool_that_refused_is_left_alone_for_a_while() -> None:
    memory = refusing(CHEAP)
    assert planned(memory, 1.0) == [(DEAR, "spot")]
    assert planned(memory.launched(Attempt(DEAR, "spot"), 1.0, terms=TERMS, most=8), 300.0) == [
        (CHEAP, "spot"),
        (DEAR, "spot"),
    ]


def test_on_demand_follows_when_patience_is_over_within_price_and_share() -> None:
    memory = refusing(CHEAP, DEAR)
    assert planned(memory, 99.0) == []
    # The other type is dearer than the terms allow.
    assert planned(memory, 100.0) == [(CHEAP, "on-demand")]
    assert planned(memory, 100.0, dear=1) == [(CHEAP, "on-demand")]
    assert planned(memory, 100.0, dear=2) == []
    assert planned(memory, 100.0, replace(TERMS, share=0.0)) == []
    # Back to spot, first, as soon as it may be asked again; and with success patience begins anew.
    assert planned(memory, 300.0)[0] == (CHEAP, "spot")
    again = memory.launched(Attempt(CHEAP, "spot"), 300.0, terms=TERMS, most=8)
    assert planned(again.refused(Attempt(CHEAP, "spot"), 310.0), 320.0) == [(DEAR, "spot")]


def test_spot_that_is_no_cheaper_is_not_asked_for() -> None:
    same = Pool("g6.xlarge", "us-east-1b", 0.8, 0.8)
    assert attempts(TERMS, [same], Memory(), on_demand=0, most=8, now=0.0) == []


def test_a_deadline_that_waiting_would_miss_takes_on_demand_and_no_other_time() -> None:
    terms = Terms(deadline=10_000.0, work_s=6000.0, restart_s=300.0)
    memory = refusing(CHEAP, DEAR)
    assert [market for _, market in planned(memory, 3000.0, terms)] == ["spot", "spot"]
    busy = refusing(CHEAP, DEAR, at=3400.0)
    assert [market for _, market in planned(busy, 3399.0, terms)] == []
    assert [market for _, market in planned(busy, 3400.0, terms)] == ["on-demand", "on-demand"]
    # With no time for one more restart it is bought where spot could be had as well.
    assert [market for _, market in planned(Memory(), 3399.0, terms)] == ["spot", "spot"]
    both = ["on-demand", "on-demand", "spot", "spot"]
    assert [market for _, market in planned(Memory(), 3400.0, terms)] == both
    # Half of the nodes for 2000 s did a thousand seconds of its work.
    ahead = busy.looked(4, 1000.0, most=8).looked(4, 3000.0, most=8)
    assert ahead.worked_s == pytest.approx(1000.0)
    assert planned(ahead, 3400.0, terms) == []


def test_with_a_deadline_dear_hours_are_waited_out() -> None:
    terms = Terms(deadline=100 * 3600.0, work_s=24 * 3600.0)
    memory = Memory()
    for hour, hourly in enumerate((0.40, 0.30, 0.34, 0.38, 0.42)):
        memory = memory.priced(terms, [replace(CHEAP, spot=hourly)], hour * PRICED_S)
    assert len(memory.prices) == 5 > FEWEST
    # A quarter of the time is enough: of five prices the second lowest.
    limit = memory.limit(terms, 5 * PRICED_S)
    assert limit == 0.34
    assert planned(memory, 5 * PRICED_S, terms) == []
    cheap = attempts(
        terms, [replace(CHEAP, spot=0.33), DEAR], memory, on_demand=0, most=1, now=5 * PRICED_S
    )
    assert [attempt.pool.spot for attempt in cheap] == [0.33]
    dear = replace(CHEAP, spot=0.42)
    assert gives_back(terms, [dear], memory, Attempt(dear, "spot"), 5 * PRICED_S)
    assert memory.limit(TERMS, 5 * PRICED_S) == math.inf


def test_hours_before_the_start_count_as_those_since() -> None:
    terms = Terms(deadline=100 * 3600.0, work_s=24 * 3600.0)
    told = Memory().told([[0.40, 0.45, 0.34, 0.50, 0.42], [], [0.50, 0.30, 0.39, 0.38, 0.49]])
    # The cheapest pool of each hour; of one pool nothing is known.
    assert told.prices == (0.40, 0.30, 0.34, 0.38, 0.42)
    assert told.limit(terms, 0.0) == 0.34


def test_a_node_is_given_back_where_another_pool_pays_for_the_restart() -> None:
    terms = Terms(restart_s=300.0, horizon_s=3600.0, recover_s=3600.0)
    on_it = Attempt(DEAR, "spot")
    assert gives_back(terms, POOLS, Memory(), on_it, 0.0)
    # Others would stand still twice, and each costs as much as this one.
    assert gives_back(terms, POOLS, Memory(), on_it, 0.0, beside=2)
    assert not gives_back(terms, POOLS, Memory(), on_it, 0.0, beside=5)
    near = [DEAR, replace(CHEAP, spot=0.44)]
    assert not gives_back(terms, near, Memory(), on_it, 0.0)
    # What was refused just now is not there; later it may be.
    assert not gives_back(terms, POOLS, refusing(CHEAP), on_it, 60.0)
    assert gives_back(terms, POOLS, refusing(CHEAP), on_it, 7200.0)
    # A stand-in on demand leaves for spot in its own pool too.
    assert gives_back(terms, [DEAR], Memory(), Attempt(DEAR, "on-demand"), 0.0)
    late = replace(terms, deadline=1000.0, work_s=200.0)
    assert not gives_back(late, POOLS, Memory(), on_it, 0.0)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"shares": 0.5}, r"provider\.market\.shares: no such key; there are .*share"),
        ({"share": 2}, "give a part, from 0 to 1"),
        ({"patience_s": -1}, "at least 0"),
        ({"max_hourly": "1.0"}, "give a number"),
        ({"deadline": 5.0}, "give provider.market.work_s"),
    ],
)
def test_wrong_terms_are_one_line(section: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Terms.parse(section)
    assert Terms.parse({"share": 1, "deadline": None}) == Terms(share=1)


def small(minutes: int, seed: int) -> Week:
    chance = np.random.default_rng(seed)
    return Week(
        pools=(CHEAP, DEAR),
        spot_PT=chance.uniform(0.2, 0.6, (2, minutes)),
        up_PT=chance.random((2, minutes)) < 0.8,
        hit_PT=chance.random((2, minutes)) < 0.1,
        past_PH=np.empty((2, 0)),
    )


@pytest.mark.parametrize("seed", range(6))
def test_the_dynamic_programme_finds_what_trying_everything_finds(seed: int) -> None:
    minutes, work, restart = 6, 2, 2
    world = small(minutes, seed)

    def cost(path: tuple[int, ...]) -> float:
        """Of being on node 0, 1 (spot), 2 (on demand) or none (3) at each minute."""
        total, done, node, age = 0.0, 0, 3, 0
        for minute, at in enumerate(path):
            if at == 3:
                node = 3
                continue
            spot = at < 2
            taken = spot and bool(world.hit_PT[at, minute])
            if spot and not world.up_PT[at, minute]:
                return math.inf
            node, age = (at, 0) if at != node or taken else (node, age + 1)
            total += float(world.spot_PT[at, minute]) if spot else world.on_demand
            done += age >= restart
        return total / HOUR if done >= work else math.inf

    best = min(cost(path) for path in itertools.product(range(4), repeat=minutes))
    assert cheapest(world, work, minutes, restart) == pytest.approx(best)


@pytest.mark.parametrize("seed", range(3))
def test_nobody_beats_hindsight_and_the_deadline_and_the_cap_hold(seed: int) -> None:
    world, job = week(seed), Job(work=10 * HOUR, deadline=15 * HOUR)
    best = cheapest(world, job.work, job.deadline, RESTART)
    ours, others = raygen(world, job, bound(job)), on_demand(world, job)
    assert best <= ours.dollars <= others.dollars
    assert best <= without_checkpoints(world, job).dollars + 1e-9
    assert ours.done <= job.deadline
    # The ledger never books less than the cloud charges.
    assert ours.booked >= ours.dollars - 1e-9
    cap = ours.dollars / 3
    capped = raygen(world, job, PATIENT, cap)
    assert capped.done == math.inf
    assert 0.9 * cap < capped.dollars <= capped.booked <= cap + 1e-9


def test_where_there_is_no_spot_it_is_on_time_on_demand() -> None:
    world, job = week(0), Job(work=10 * HOUR, deadline=15 * HOUR)
    none = replace(world, up_PT=np.zeros_like(world.up_PT))
    found = raygen(none, job, bound(job))
    assert found.done <= job.deadline
    assert found.on_demand == job.work + RESTART
    assert found.launches == 1
    assert found.dollars == pytest.approx(on_demand(none, job).dollars)
    assert found.dollars == pytest.approx(cheapest(none, job.work, job.deadline, RESTART))
