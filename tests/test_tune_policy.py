"""The policy of the BudgetScheduler, in simulated time on a toy problem; the peers beside it."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.benchmarks.search_data import LEVELS, World
from tests.benchmarks.search_peers import PEERS
from tests.benchmarks.search_sim import RESTART, WORKERS, Outcome, Pool, simulate
from tune.model import Drop, Process, Shape, improvement, normal_cdf
from tune.policy import Policy
from tune.terms import Job, Rules

TRIED = settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def toy(seed: int = 0, configs: int = 200, early: int = 0) -> World:
    """A bowl in two dimensions whose curves fall like 1 / level; `early` of them end at half."""
    rng = np.random.default_rng(seed)
    vector_ND = rng.random((configs, 2))
    final_N = ((vector_ND - (0.3, 0.7)) ** 2).sum(1)
    level_L = np.arange(1, LEVELS + 1)
    loss_NL = final_N[:, None] + (0.2 + rng.random((configs, 1))) / level_L
    seconds_NL = np.tile(level_L / LEVELS, (configs, 1))
    levels_N = np.full(configs, LEVELS)
    levels_N[:early] = LEVELS // 2
    last = loss_NL[np.arange(configs), levels_N - 1]
    scale = float(np.quantile(last, 0.75) - last.min())
    return World(vector_ND, loss_NL, seconds_NL, levels_N, float(last.min()), scale, 1.0)


def policy(pool: Pool, cap: float, seed: int = 0, rules: Rules | None = None) -> Policy:
    return Policy(
        pool,
        money=cap,
        levels=LEVELS,
        workers=WORKERS,
        level_dollars=1 / LEVELS,
        restart_dollars=RESTART,
        seed=seed,
        rules=rules,
    )


class Watched:
    """A policy, its every answer written down; `restored` after so many of them."""

    def __init__(self, policy: Policy, again: int | None = None) -> None:
        self.policy, self.again = policy, again
        self.said: list[Job | int | None] = []
        self.begun: list[float] = []  # what was left when one was begun

    def _say(self, answer: Job | int | None) -> None:
        self.said.append(answer)
        if len(self.said) == self.again:
            kept = json.loads(json.dumps(self.policy.state()))
            self.policy = Policy.restore(self.policy.space, kept)

    def next(self, left: float) -> Job | None:
        job = self.policy.next(left)
        if job is not None and job.since == 0:
            self.begun.append(left)
        self._say(job)
        return job

    def report(self, trial: int, level: int, dollars: float, score: float) -> int | None:
        until = self.policy.report(trial, level, dollars, score)
        self._say(until)
        return until

    def ended(self, trial: int) -> None:
        self.policy.ended(trial)


def run(cap: float, seed: int = 0, again: int | None = None) -> tuple[Outcome, Watched]:
    world = toy(seed)
    pool = Pool(world)
    watched = Watched(policy(pool, cap, seed), again)
    return simulate(watched, pool, world, cap), watched


@TRIED
@given(cap=st.floats(0.2, 4.0), seed=st.integers(0, 50))
def test_never_asks_for_more_than_its_money(cap: float, seed: int) -> None:
    """The simulator would let it spend double."""
    world = toy(seed)
    pool = Pool(world)
    outcome = simulate(policy(pool, cap, seed), pool, world, 2 * cap)
    assert outcome.spent <= cap + 1e-9


@TRIED
@given(cap=st.floats(1.0, 3.0), seed=st.integers(0, 20), data=st.data())
def test_goes_on_alike_wherever_it_was_kept_and_restored(
    cap: float, seed: int, data: st.DataObject
) -> None:
    _, whole = run(cap, seed)
    again = data.draw(st.integers(1, len(whole.said)))
    assert run(cap, seed, again)[1].said == whole.said


def test_spends_the_end_on_what_is_open() -> None:
    outcome, watched = run(6.0)
    # What is new could hardly get anywhere. (Curves there cost one a trial.)
    assert min(watched.begun) >= Rules().deep
    assert outcome.spent > 5.5


def test_what_was_interrupted_before_its_first_result_is_begun_again() -> None:
    pool = Pool(toy())
    mine = policy(pool, 4.0)
    first = mine.next(4.0)
    mine.interrupted()
    assert first is not None
    assert mine.next(4.0) == first


def test_what_the_purse_refused_costs_nothing() -> None:
    mine = policy(Pool(toy()), 4.0)
    job = mine.next(4.0)
    assert job is not None
    assert mine.committed == pytest.approx(job.dollars)
    mine.withdrawn(job.trial)
    assert mine.committed == 0


def test_goes_on_at_a_rung_only_with_what_the_purse_has_left() -> None:
    def told(left: float) -> int | None:
        mine = policy(Pool(toy()), 4.0, rules=Rules(random=1))
        job = mine.next(4.0)
        assert job is not None
        return mine.report(job.trial, job.until, 0.1, 0.5, left)

    assert told(4.0) == 8
    assert told(0.05) is None  # the next rung costs 0.1; the policy's own money is 4


def test_no_money_no_job() -> None:
    assert policy(Pool(toy()), 4.0).next(RESTART) is None


def test_a_pool_that_is_used_up_is_run_to_its_end() -> None:
    world = toy(configs=6, early=2)
    pool = Pool(world)
    outcome = simulate(policy(pool, 30.0), pool, world, 30.0)
    assert outcome.trials == outcome.whole == 6
    assert outcome.regret_K[-1] == 0


@pytest.mark.parametrize("name", PEERS)
def test_peers_find_what_is_good_and_keep_to_the_cap(name: str) -> None:
    regrets = []
    for seed in range(3):
        world = toy(seed, early=20)
        pool = Pool(world)
        outcome = simulate(PEERS[name](pool, seed, 8.0), pool, world, 8.0)
        assert outcome.spent <= 8.0 + 1e-9
        assert outcome.trials >= 8
        regrets.append(outcome.regret_K[-1])
    assert np.mean(regrets) < 0.4


def test_finds_better_than_the_median_of_the_toy() -> None:
    ours = [run(8.0, seed)[0].regret_K[-1] for seed in range(3)]
    assert np.mean(ours) < 0.3


def test_curves_that_differ_are_doubted() -> None:
    span_N = np.full(12, 1.5)
    prior = Drop(0.2, 0.04, 2.0, 1.5)
    same = prior.learnt(0.3 * span_N, span_N)
    other = prior.learnt(np.linspace(-1.7, 2.3, 12) * span_N, span_N)
    assert same(np.array([2.0]))[0] == pytest.approx(other(np.array([2.0]))[0], abs=0.02)
    assert other(np.array([2.0]))[1] > 10 * same(np.array([2.0]))[1]
    assert same(np.zeros(1))[1] == 0


def test_the_process_knows_what_it_was_told_and_doubts_the_rest() -> None:
    x_ND = np.array([[0.1], [0.5], [0.9]])
    process = Process(x_ND, np.array([1.0, 0.0, 1.0]), np.zeros(3), Shape((0.3,), 0.02))
    mean, var = process.own()
    assert mean == pytest.approx([1, 0, 1], abs=0.02)
    far = process.fresh(np.array([[0.5], [3.0]]))[1]
    assert var.max() < 0.01 < 10 * far[0] < far[1]


def test_improvement_is_that_of_draws() -> None:
    draws = np.random.default_rng(0).normal(0.3, 0.5, 200_000)
    found = improvement(0.1, np.array([0.3]), np.array([0.25]))[0]
    assert found == pytest.approx(np.maximum(0.1 - draws, 0).mean(), rel=0.02)
    far = improvement(0.0, np.linspace(1, 30, 300), np.ones(300))
    assert (np.diff(far) < 0).all()  # and still in order where there is next to none
    assert far[-1] > 0
    assert normal_cdf(np.array([-1.96, 0, 1.96])) == pytest.approx([0.025, 0.5, 0.975], abs=1e-3)


def test_rungs_are_even_and_end_with_the_last_level() -> None:
    rules = replace(Rules(), steps=4)
    assert policy(Pool(toy()), 4.0, rules=rules).rungs == (13, 26, 39, 52)
    mine = Policy(Pool(toy()), money=4.0, levels=3, rules=rules)
    assert mine.rungs == (1, 2, 3)
