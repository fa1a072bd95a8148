"""Searchers without a model that BudgetScheduler is measured against, each in a few lines.

Rungs are those of eta 3 from 52 levels: 2, 6, 17, 52.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.benchmarks.search_sim import LEVELS, Pool

Floats = NDArray[np.float64]
RUNGS = (2, 6, 17, LEVELS)
ETA = 3


@dataclass(frozen=True)
class Piece:
    """A piece of training to run."""

    trial: int
    config: dict[str, Any]
    since: int
    until: int


class Random:
    """Every configuration at random, and to the end."""

    first = LEVELS

    def __init__(self, pool: Pool, seed: int, cap: float) -> None:
        self.pool, self.cap = pool, cap
        self.rng = np.random.default_rng(seed)
        self.configs: list[dict[str, Any]] = []
        self.over: set[int] = set()

    def next(self, left: float) -> Piece | None:
        return self.new(self.first)

    def new(self, until: int) -> Piece | None:
        if self.pool.used_N.all():
            return None
        config = self.pick()
        self.configs.append(config)
        return Piece(len(self.configs) - 1, config, 0, until)

    def pick(self) -> dict[str, Any]:
        return self.pool.sample(self.rng)

    def report(self, trial: int, level: int, dollars: float, score: float) -> int | None:
        return None

    def ended(self, trial: int) -> None:
        self.over.add(trial)


class StoppingAsha(Random):
    """A trial goes on from a rung if it is in the best third of those that reached it so far.

    Ray Tune's ASHAScheduler; Li et al., A System for Massively Parallel Hyperparameter Tuning,
    2020, section 3.3 (the stopping variant of its appendix).
    """

    first = RUNGS[0]

    def __init__(self, pool: Pool, seed: int, cap: float) -> None:
        super().__init__(pool, seed, cap)
        self.rungs: dict[int, dict[int, float]] = {level: {} for level in RUNGS}

    def report(self, trial: int, level: int, dollars: float, score: float) -> int | None:
        self.enter(trial, level, score)
        if level not in RUNGS[:-1]:  # it has ended
            return None
        if score > np.quantile(list(self.rungs[level].values()), 1 / ETA):
            return None
        return RUNGS[RUNGS.index(level) + 1]

    def enter(self, trial: int, level: int, score: float) -> None:
        """A run that ended between two rungs stands in the next one with what it reached."""
        self.rungs[next(r for r in RUNGS if r >= level)][trial] = score


class PromotionAsha(StoppingAsha):
    """Whoever is in the best third of a rung and not yet promoted goes on, from the top down.

    Li et al., 2020, algorithm 2.
    """

    def __init__(self, pool: Pool, seed: int, cap: float) -> None:
        super().__init__(pool, seed, cap)
        self.promoted: set[tuple[int, int]] = set()

    def next(self, left: float) -> Piece | None:
        for level, above in zip(RUNGS[-2::-1], RUNGS[:0:-1], strict=True):
            rung = self.rungs[level]
            best = sorted(rung, key=lambda t: rung[t])[: len(rung) // ETA]
            for trial in best:
                if self.free(trial, level):
                    return self.promote(trial, level, above)
        return self.new(RUNGS[0]) or self.deepen()

    def deepen(self) -> Piece | None:
        """Where every configuration there is has been begun: the next best, from the top down."""
        for level, above in zip(RUNGS[-2::-1], RUNGS[:0:-1], strict=True):
            rung = self.rungs[level]
            for trial in sorted(rung, key=lambda t: rung[t]):
                if self.free(trial, level):
                    return self.promote(trial, level, above)
        return None

    def free(self, trial: int, level: int) -> bool:
        return (trial, level) not in self.promoted and trial not in self.over

    def promote(self, trial: int, level: int, above: int) -> Piece:
        self.promoted.add((trial, level))
        return Piece(trial, self.configs[trial], level, above)

    def report(self, trial: int, level: int, dollars: float, score: float) -> int | None:
        self.enter(trial, level, score)
        return None


class Hyperband(Random):
    """Brackets of successive halving, from the most to the least eager, over and over.

    Li et al., Hyperband, 2018, algorithm 1. A bracket waits for its rung; workers that wait open
    the next one.
    """

    def __init__(self, pool: Pool, seed: int, cap: float) -> None:
        super().__init__(pool, seed, cap)
        self.brackets: list[_Bracket] = []
        self.of: dict[int, _Bracket] = {}

    def next(self, left: float) -> Piece | None:
        for bracket in self.brackets:
            if self.pool.used_N.all():
                bracket.to_open = 0
                bracket.settle()
            while (trial := bracket.take()) is not None:
                if trial in self.over:
                    bracket.done(trial, 0, bracket.last[trial])
                    continue
                return Piece(trial, self.configs[trial], bracket.since, bracket.until)
            if bracket.to_open and bracket.rung == bracket.k and (piece := self.new(bracket.until)):
                return self._opened(bracket, piece)
        if self.pool.used_N.all():
            return None
        bracket = _Bracket(len(self.brackets) % len(RUNGS))
        self.brackets.append(bracket)
        piece = self.new(bracket.until)
        return piece and self._opened(bracket, piece)

    def _opened(self, bracket: _Bracket, piece: Piece) -> Piece:
        bracket.to_open -= 1
        bracket.waiting += 1
        self.of[piece.trial] = bracket
        return piece

    def report(self, trial: int, level: int, dollars: float, score: float) -> int | None:
        self.of[trial].done(trial, level, score)
        return None


class _Bracket:
    """One run of successive halving: bracket k skips the first k rungs."""

    def __init__(self, k: int) -> None:
        self.k = self.rung = k
        most = len(RUNGS) - 1
        self.to_open = int(np.ceil((most + 1) / (most - k + 1) * ETA ** (most - k)))
        self.waiting = 0
        self.queue: list[int] = []
        self.scores: dict[int, float] = {}
        self.last: dict[int, float] = {}
        self.ended: set[int] = set()

    @property
    def until(self) -> int:
        return RUNGS[self.rung]

    @property
    def since(self) -> int:
        return RUNGS[self.rung - 1] if self.rung else 0

    def take(self) -> int | None:
        if not self.queue:
            return None
        self.waiting += 1
        return self.queue.pop(0)

    def done(self, trial: int, level: int, score: float) -> None:
        self.waiting -= 1
        self.scores[trial] = self.last[trial] = score
        if level < self.until:
            self.ended.add(trial)
        self.settle()

    def settle(self) -> None:
        """Once all of a rung are done: the best third go up."""
        while self.scores and not (self.waiting or self.queue or self.to_open):
            if self.until == LEVELS:
                return
            keep = max(len(self.scores) // ETA, 1)
            best = sorted(self.scores, key=lambda t: self.scores[t])[:keep]
            self.queue = [t for t in best if t not in self.ended]
            self.scores = {t: self.scores[t] for t in best if t in self.ended}
            self.rung += 1


class MedianStopping(Random):
    """Stops a trial whose best is worse than the median of others' running means at its level.

    Golovin et al., Google Vizier, 2017, section 3.2.
    """

    grace, step = 8, 4
    first = 8

    def __init__(self, pool: Pool, seed: int, cap: float) -> None:
        super().__init__(pool, seed, cap)
        self.curves: dict[int, list[float]] = defaultdict(list)

    def report(self, trial: int, level: int, dollars: float, score: float) -> int | None:
        curve = self.curves[trial]
        curve.append(score)
        k = len(curve)
        others = [np.mean(c[:k]) for t, c in self.curves.items() if t != trial and len(c) >= k]
        if level == LEVELS or (len(others) >= 3 and min(curve) > np.median(others)):
            return None
        return min(level + self.step, LEVELS)
