"""What trials and new configurations may yet reach: the picture between two results.

Scores are warped (tune.model.Warp: the best so far is 0, a middling trial 1). A trial's final
score is what it has, less what curves still fall from its level (tune.model.Drop), as one noisy
observation of a Gaussian process over the space. What it will have at a level before the end lies
between the two, as the fall goes with the logarithm of the level.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tune.model import Drop, Floats, Process, Shape, Warp, climb, improvement

SMALL = 1e-9
Whole = NDArray[np.int64]


@dataclass
class Trial:
    """What is known of one; `results` maps levels to the best score until then."""

    config: dict[str, Any]
    vector: list[float]
    results: dict[int, float] = field(default_factory=dict)
    dollars: float = 0.0
    starts: int = 0
    until: int | None = None  # while it runs
    over: bool = False
    level: int = 0
    fresh: bool = False  # begun (again), and its start not yet paid for
    parent: int | None = None  # of a branch: the trial whose checkpoint it began from
    since: int = 0  # and that one's level

    @property
    def heard(self) -> bool:
        """Whether it has results of its own."""
        return self.level > self.since

    @property
    def best(self) -> float:
        """The score of its best checkpoint."""
        return min(self.results.values())


@dataclass(frozen=True)
class Fresh:
    """New configurations: dollars a level, and the mean and variance of their final scores."""

    config_M: list[dict[str, Any]]
    x_MD: Floats
    rate_M: Floats
    mean_M: Floats
    var_M: Floats


@dataclass(frozen=True)
class Outlook:
    """N trials that have results, and what may become of them."""

    levels: int
    last_N: Floats  # the best so far, warped
    level_N: Floats
    tau_N: Floats  # log(levels / level): 0 where it is over
    rate_N: Floats  # dollars a level
    own_N: Floats  # the final score: mean
    spread_N: Floats  # and variance
    drop: Drop
    process: Process

    @classmethod
    def of(
        cls, trials: list[Trial], rate_N: Floats, levels: int, drop: Drop, shape: Shape, grow: bool
    ) -> Outlook:
        """From trials with results; `drop` is the prior, and `shape` the process's.

        `grow`: the shape is climbed from there. Raises nothing: one trial is enough.
        """
        warp = Warp.of(np.array([t.best for t in trials]))
        last_N = warp(np.array([t.best for t in trials]))
        level_N = np.array([float(t.level) for t in trials])
        tau_N = np.array([0.0 if t.over else np.log(levels / t.level) for t in trials])
        gone = [(n, t, min(t.results)) for n, t in enumerate(trials) if len(t.results) > 1]
        fell = (
            warp(np.array([t.results[first] for _, t, first in gone]))
            - last_N[[n for n, _, _ in gone]]
        )
        drop = drop.learnt(fell, np.log([t.level / first for _, t, first in gone]))
        fall_N, var_N = drop(tau_N)
        x_ND = np.array([t.vector for t in trials])
        if grow:
            shape = climb(x_ND, last_N - fall_N, var_N, shape)
        process = Process(x_ND, last_N - fall_N, var_N, shape)
        own_N, spread_N = process.own()
        return cls(levels, last_N, level_N, tau_N, rate_N, own_N, spread_N, drop, process)

    def going_on(self, to_N: Floats) -> Floats:
        """Expected improvement on the best, of each trial by the level `to_N`; [N]."""
        part_N = self._part(self.tau_N, to_N)
        mean_N = self.last_N + part_N * (self.own_N - self.last_N)
        return improvement(0.0, mean_N, np.maximum(part_N * self.spread_N, SMALL))

    def branched(self, n_K: Whole, x_KD: Floats, to_K: Floats) -> Floats:
        """That of going on from trial n's checkpoint with the configuration x; [K].

        What the process tells the two configurations apart by counts for the levels left alone.
        """
        part_K = self._part(self.tau_N[n_K], to_K)
        left_K = 1 - self.level_N[n_K] / self.levels
        mean_K, var_K = self.process.between(n_K, x_KD)
        own_K = self.own_N[n_K] + left_K * mean_K
        spread_K = self.spread_N[n_K] + left_K**2 * var_K
        end_K = self.last_N[n_K] + part_K * (own_K - self.last_N[n_K])
        return improvement(0.0, end_K, np.maximum(part_K * spread_K, SMALL))

    def _part(self, tau: Floats, to: Floats) -> Floats:
        """Of the way to the end, on the logarithm of the level, how much lies before `to`."""
        return np.asarray(1 - np.log(self.levels / to) / np.maximum(tau, SMALL))

    def fresh(self, config_M: list[dict[str, Any]], x_MD: Floats) -> Fresh:
        """What new configurations at these points may reach."""
        return Fresh(config_M, x_MD, self._rates(x_MD), *self.process.fresh(x_MD))

    def begun(self, new: Fresh, to_M: Floats) -> Floats:
        """That of new ones by the level `to_M`; [M]."""
        more_M, extra_M = self.drop(np.log(self.levels / to_M))
        return improvement(0.0, new.mean_M + more_M, new.var_M + extra_M)

    def apart(self, x_MD: Floats, busy_BD: Floats) -> Floats:
        """What is left of a gain so far from trials that run without a result: 0 to 1; [M]."""
        if not len(busy_BD):
            return np.ones(len(x_MD))
        length_D = np.array(self.process.shape.length_D)
        gap_M = (((x_MD[:, None] - busy_BD) / length_D) ** 2).sum(2).min(1)
        return np.asarray(1 - np.exp(-gap_M))

    def _rates(self, x_MD: Floats) -> Floats:
        """Dollars a level of new configurations: a ridge on the logarithm; [M]."""
        y_N = np.log(self.rate_N + 1e-12)
        centre_D = self.process.x_ND.mean(0)
        a_ND = self.process.x_ND - centre_D
        w_D = np.linalg.solve(a_ND.T @ a_ND + np.eye(a_ND.shape[1]), a_ND.T @ (y_N - y_N.mean()))
        return np.asarray(np.exp(y_N.mean() + (x_MD - centre_D) @ w_D))
