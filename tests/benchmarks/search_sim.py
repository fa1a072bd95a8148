"""A search in simulated time: a searcher, a world, some workers, and money that runs out.

What a searcher sees is what it would see under Ray Tune: jobs end at the level that it asked for,
in the order of time. A job pays its seconds, and `RESTART` more where its trial is begun or taken
up again. At the cap everything stops, and what had been reached by then counts.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tests.benchmarks.search_data import LEVELS, World

Floats = NDArray[np.float64]
WORKERS = 4
RESTART = 0.02  # of a full run: about one epoch of LCBench's 52


class Job(Protocol):
    """tune.policy.Job, or a peer's."""

    @property
    def trial(self) -> int: ...
    @property
    def config(self) -> dict[str, Any]: ...
    @property
    def since(self) -> int: ...
    @property
    def until(self) -> int: ...


class Searcher(Protocol):
    """tune.policy.Policy, or a peer."""

    def next(self, left: float) -> Job | None: ...
    def report(self, trial: int, level: int, dollars: float, score: float) -> int | None: ...
    def ended(self, trial: int) -> None: ...


class Pool:
    """The world's configurations as a space: whatever is asked for, the nearest one not yet run."""

    def __init__(self, world: World) -> None:
        self.vector_ND = world.vector_ND
        self.used_N = np.zeros(len(world.vector_ND), bool)
        self.square_N = (world.vector_ND**2).sum(1)

    def sample(self, rng: np.random.Generator) -> dict[str, Any]:
        for _ in range(20):  # nearly always the first will do
            n = int(rng.integers(len(self.used_N)))
            if not self.used_N[n]:
                return {"n": n}
        free = np.flatnonzero(~self.used_N)
        return {"n": int(rng.choice(free)) if len(free) else 0}

    def encode(self, config: dict[str, Any]) -> Floats:
        return np.asarray(self.vector_ND[config["n"]])

    def decode(self, vector: Floats) -> dict[str, Any]:
        distance_N = self.square_N - 2 * (self.vector_ND @ vector)
        distance_N[self.used_N] = np.inf
        return {"n": int(distance_N.argmin())}


@dataclass(frozen=True)
class Outcome:
    """How a search went."""

    spend_K: Floats  # in full runs, rising
    regret_K: Floats  # of the best so far, from there on
    spent: float  # at the end
    trials: int
    whole: int  # of them, run to the end

    def at(self, spend: float) -> float:
        """The regret once so much was spent: 1 before anything was."""
        k = int(np.searchsorted(self.spend_K, spend, "right")) - 1
        return float(self.regret_K[k]) if k >= 0 else 1.0


@dataclass
class _Running:
    job: Job
    start: float
    begun: float
    since: int


def simulate(searcher: Searcher, pool: Pool, world: World, cap: float) -> Outcome:
    """The search until `cap` full runs are spent, or nothing more is asked for."""
    now = spent = 0.0
    clock, purse = [0.0], [0.0]
    times: list[Floats] = []
    losses: list[Floats] = []
    heap: list[tuple[float, int, int]] = []
    running: dict[int, _Running] = {}
    number = 0
    seen: dict[int, int] = {}
    whole = 0

    def dispatch(run: _Running, until: int) -> None:
        nonlocal number
        n = run.job.config["n"]
        end = int(min(until, world.levels_N[n]))
        base = world.seconds_NL[n, run.since - 1] if run.since else 0.0
        at = run.begun + (world.seconds_NL[n, run.since : end] - base) / world.full
        times.append(at)
        losses.append(world.loss_NL[n, run.since : end])
        number += 1
        running[number] = run
        heapq.heappush(heap, (float(at[-1]), number, end))

    while True:
        while len(running) < WORKERS:
            job = searcher.next(cap - spent)
            if job is None:
                break
            seen[job.trial] = job.config["n"]
            pool.used_N[job.config["n"]] = True
            dispatch(_Running(job, now, now + RESTART, job.since), job.until)
        if not heap:
            break
        then, key, level = heapq.heappop(heap)
        step = (then - now) * len(running)
        if spent + step > cap:
            now += (cap - spent) / len(running)
            spent = cap
            break
        spent, now = spent + step, then
        clock.append(now)
        purse.append(spent)
        run = running.pop(key)
        n = run.job.config["n"]
        score = float(world.loss_NL[n, level - 1])
        until = searcher.report(run.job.trial, level, now - run.start, score)
        if level == world.levels_N[n]:
            whole += 1
            searcher.ended(run.job.trial)
        elif until is not None:
            dispatch(_Running(run.job, now, now, level), until)
    clock.append(now)
    purse.append(spent)
    t = np.concatenate(times) if times else np.empty(0)
    order = np.argsort(t, kind="stable")
    t, loss = t[order], np.minimum.accumulate(np.concatenate(losses)[order])
    keep = t <= now + 1e-9
    regret = np.minimum((loss[keep] - world.best) / world.scale, 1.0)
    return Outcome(np.interp(t[keep], clock, purse), regret, spent, len(seen), whole)


__all__ = ["LEVELS", "RESTART", "WORKERS", "Outcome", "Pool", "Searcher", "simulate"]
