"""The searchers that BudgetScheduler is measured against: those with a model, and all by name."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.benchmarks.search_rungs import (
    RUNGS,
    Hyperband,
    MedianStopping,
    Piece,
    PromotionAsha,
    Random,
    StoppingAsha,
)
from tests.benchmarks.search_sim import LEVELS, Pool
from tune.model import improvement

Floats = NDArray[np.float64]


class TpeAsha(StoppingAsha):
    """StoppingAsha, its configurations from a tree of Parzen estimators.

    Bergstra et al., Algorithms for Hyper-Parameter Optimization, 2011; on the highest rung with
    enough results, as in BOHB (Falkner et al., 2018). Ten at random first, 24 candidates.
    """

    def pick(self) -> dict[str, Any]:
        enough = self.pool.vector_ND.shape[1] + 3
        for level in reversed(RUNGS):
            rung = self.rungs[level]
            if len(rung) >= max(enough, 10):
                return self._pick(rung)
        return self.pool.sample(self.rng)

    def _pick(self, rung: dict[int, float]) -> dict[str, Any]:
        trials = sorted(rung, key=lambda t: rung[t])
        x_ND = np.stack([self.pool.encode(self.configs[t]) for t in trials])
        good = max(int(np.ceil(0.15 * len(trials))), 3)
        low, high = x_ND[:good], x_ND[good:]
        width = _widths(low)
        c_MD = low[self.rng.integers(len(low), size=24)]
        c_MD = np.clip(c_MD + width * self.rng.standard_normal(c_MD.shape), 0, 1)
        gain = _density(c_MD, low, width) - _density(c_MD, high, _widths(high))
        return self.pool.decode(c_MD[int(gain.argmax())])


def _widths(x_ND: Floats) -> Floats:
    """Scott's rule, no narrower than a hundredth of the range."""
    n, d = x_ND.shape
    return np.asarray(np.maximum(x_ND.std(0) * n ** (-1 / (d + 4)), 0.05))


def _density(c_MD: Floats, x_ND: Floats, width_D: Floats) -> Floats:
    """Log density of candidates, with a uniform prior of one point's weight; [M]."""
    z_MN = -0.5 * (((c_MD[:, None] - x_ND) / width_D) ** 2).sum(2)
    z_MN -= np.log(width_D * np.sqrt(2 * np.pi)).sum()
    joint = np.concatenate([z_MN, np.zeros((len(c_MD), 1))], axis=1)
    top = joint.max(1)
    return np.asarray(top + np.log(np.exp(joint - top[:, None]).sum(1)))


class FreezeThaw(Random):
    """Swersky et al., Freeze-Thaw Bayesian Optimization, 2014, by expected improvement per dollar.

    Asymptotes are a Gaussian process over configurations, what a curve still has to fall is one
    over levels with the exponential-decay kernel b^a / (t + t' + b)^a, and a job is a few levels.
    """

    first = 4
    step = 4

    def __init__(self, pool: Pool, seed: int, cap: float) -> None:
        super().__init__(pool, seed, cap)
        self.curves: dict[int, list[float]] = {}
        self.paused: dict[int, int] = {}
        self.cost: list[float] = []

    def next(self, left: float) -> Piece | None:
        if len(self.curves) < 8:
            return self.new(self.first)
        trial, config = self._choose()
        if trial is None:
            if config is None:
                return None
            self.configs.append(config)
            return Piece(len(self.configs) - 1, config, 0, self.first)
        since = self.paused.pop(trial)
        return Piece(trial, self.configs[trial], since, min(since + self.step, LEVELS))

    def report(self, trial: int, level: int, dollars: float, score: float) -> int | None:
        self.curves.setdefault(trial, []).append(score)
        self.paused[trial] = level
        self.cost.append(dollars)
        if level == LEVELS:
            del self.paused[trial]
        return None

    def ended(self, trial: int) -> None:
        self.paused.pop(trial, None)

    def _choose(self) -> tuple[int | None, dict[str, Any] | None]:
        """The best of the paused and of 30 new ones: (trial, None), (None, new), or nothing."""
        trials = list(self.curves)
        last = np.array([self.curves[t][-1] for t in trials])
        middle, spread = np.median(last), np.quantile(last, 0.75) - last.min() + 1e-9
        x_ND = np.stack([self.pool.encode(self.configs[t]) for t in trials])
        # One curve's levels tell of its asymptote with precision p and weighted mean m.
        length_N = np.array([len(self.curves[t]) for t in trials])
        y_NL = np.zeros((len(trials), LEVELS // self.step))
        for y_L, t in zip(y_NL, trials, strict=True):
            y_L[: len(self.curves[t])] = self.curves[t]
        w_NL = _weights()[length_N]
        p = w_NL.sum(1)
        m = (w_NL * np.minimum((y_NL - middle) / spread, 3.0)).sum(1) / p
        fresh = [] if self.pool.used_N.all() else [self.pool.sample(self.rng) for _ in range(30)]
        c_MD = np.stack([*x_ND, *(self.pool.encode(c) for c in fresh)])
        k_MN = _matern(c_MD, x_ND)
        k_NN = k_MN[: len(trials)] + np.diag(1 / p)
        centre = float(np.average(m, weights=p))
        solved = np.linalg.solve(k_NN, np.column_stack([m - centre, k_MN.T]))
        mean = centre + k_MN @ solved[:, 0]
        sd = np.sqrt(np.maximum(1 - (k_MN * solved[:, 1:].T).sum(1), 1e-6))
        best = min(min(c) for c in self.curves.values())
        gain = improvement((best - middle) / spread, mean, sd * sd)
        open_M = np.array([t in self.paused for t in trials] + [True] * len(fresh))
        if not open_M.any():
            return None, None
        i = int(np.where(open_M, gain, -1.0).argmax())
        return (trials[i], None) if i < len(trials) else (None, fresh[i - len(trials)])


@cache
def _weights() -> Floats:
    """What n equally spaced levels say of the asymptote, a row for each n from 0."""
    most = LEVELS // FreezeThaw.step
    w_NL = np.zeros((most + 1, most))
    for n in range(1, most + 1):
        s = np.arange(1, n + 1) * FreezeThaw.first / LEVELS
        k = 0.5 * 0.3 / (s[:, None] + s + 0.3) + 1e-3 * np.eye(n)
        w_NL[n, :n] = np.linalg.solve(k, np.ones(n))
    return w_NL


def _matern(a_ND: Floats, b_MD: Floats) -> Floats:
    """Matern 5/2 of length 0.5 for each of the root of the dimensions; [N, M]."""
    square = (a_ND * a_ND).sum(1)[:, None] + (b_MD * b_MD).sum(1) - 2 * a_ND @ b_MD.T
    r = np.sqrt(np.maximum(square, 0) * 5 / (0.25 * a_ND.shape[1] / 2))
    return np.asarray((1 + r + r * r / 3) * np.exp(-r))


PEERS: dict[str, type[Random]] = {
    "random": Random,
    "stopping_asha": StoppingAsha,
    "promotion_asha": PromotionAsha,
    "hyperband": Hyperband,
    "tpe_asha": TpeAsha,
    "median_stopping": MedianStopping,
    "freeze_thaw": FreezeThaw,
}
