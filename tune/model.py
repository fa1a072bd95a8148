"""What unfinished trials will reach, with honest uncertainty: curves, then configurations.

Curves: a loss falls about evenly with the logarithm of the level. How fast, and how far curves
differ in it, is learnt from the trials that went on; where early evidence misleads they differ
much, and what has not been run to the end is uncertain.

Configurations: a Gaussian process (Rasmussen and Williams, 2006, algorithm 2.1) over the points
of the space takes these as observations with their own noise each. Its length scales, one a
dimension, are climbed to by marginal likelihood.

Arrays: N trials, M candidates, D dimensions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
LENGTHS = (0.15, 0.3, 0.6, 1.2, 2.4, 5.0)
# The share of a final score's variance that the configuration does not explain.
NUGGETS = (0.02, 0.1, 0.3)


@dataclass(frozen=True)
class Warp:
    """Losses made even: the best is 0, a middling one 1, and what is far worse is pressed."""

    best: float
    spread: float

    @classmethod
    def of(cls, loss_N: Floats) -> Warp:
        """That of the best that each trial has reached."""
        best = float(loss_N.min())
        spread = float(np.quantile(loss_N, 0.5)) - best
        return cls(best, spread if spread > 0 else max(abs(best), 1.0) * 1e-6)

    def __call__(self, loss: Floats) -> Floats:
        """Losses of any shape, warped."""
        z = np.asarray((loss - self.best) / self.spread)
        return np.where(z > 1, 1 + np.log(np.maximum(z, 1)), z)


@dataclass(frozen=True)
class Drop:
    """How far curves fall over a span of log(level), in the best score's spreads.

    By `mean` times the span, with variance `var` times span^`power`: a power of 1 is a random
    walk, one of 2 a slope of each trial's own. What is known beforehand counts as `weight`
    trials' worth (the conjugate prior of Murphy, Machine Learning, 2012, section 4.6.3, with both
    counts alike).
    """

    mean: float
    var: float
    weight: float
    power: float

    def learnt(self, fell_N: Floats, span_N: Floats) -> Drop:
        """After trials that fell by `fell_N` over spans of `span_N`."""
        weight = self.weight + len(fell_N)
        mean = (self.weight * self.mean + float((fell_N / span_N).sum())) / weight
        rest = float(((fell_N - mean * span_N) ** 2 / span_N**self.power).sum())
        return Drop(mean, (self.weight * self.var + rest) / weight, weight, self.power)

    def __call__(self, span: Floats) -> tuple[Floats, Floats]:
        """Mean and variance of the fall over spans of any shape."""
        return self.mean * span, self.var * span**self.power


@dataclass(frozen=True)
class Shape:
    """The process's length scales and nugget."""

    length_D: tuple[float, ...]
    nugget: float


class Process:
    """A Gaussian process over configurations, of observations with a noise each."""

    def __init__(self, x_ND: Floats, y_N: Floats, noise_N: Floats, shape: Shape) -> None:
        weight_N = 1 / (noise_N + 0.1)
        self.mean = float(weight_N @ y_N / weight_N.sum())
        self.scale = float(weight_N @ (y_N - self.mean) ** 2 / weight_N.sum()) + 1e-3
        self.x_ND, self.shape = x_ND, shape
        n = len(x_ND)
        self.k_NN = self.scale * (
            (1 - shape.nugget) * _matern(x_ND, x_ND, shape.length_D) + shape.nugget * np.eye(n)
        )
        self.low_NN = np.linalg.cholesky(self.k_NN + np.diag(noise_N + 1e-4))
        self.z_N = np.linalg.solve(self.low_NN, y_N - self.mean)
        # Rasmussen and Williams, equation 2.30, constants apart.
        self.evidence = float(-0.5 * self.z_N @ self.z_N - np.log(np.diag(self.low_NN)).sum())

    def own(self) -> tuple[Floats, Floats]:
        """Mean and variance of the trials' own final scores."""
        return self._at(self.k_NN)

    def fresh(self, x_MD: Floats) -> tuple[Floats, Floats]:
        """Those of new trials."""
        kind = _matern(x_MD, self.x_ND, self.shape.length_D)
        return self._at(self.scale * (1 - self.shape.nugget) * kind)

    def between(self, n_K: NDArray[np.int64], x_KD: Floats) -> tuple[Floats, Floats]:
        """Mean and, before anything is known, variance of what new ones have above trials n."""
        old_KD = self.x_ND[n_K]
        alike_K = _matern(x_KD, old_KD, self.shape.length_D).diagonal()
        var_K = 2 * self.scale * (1 - (1 - self.shape.nugget) * alike_K)
        return self.fresh(x_KD)[0] - self.fresh(old_KD)[0], var_K

    @cached_property
    def _inverse(self) -> Floats:
        """The factor's inverse: asked for more often than made."""
        return np.asarray(np.linalg.inv(self.low_NN))

    def _at(self, k_MN: Floats) -> tuple[Floats, Floats]:
        half_NM = self._inverse @ k_MN.T
        var = self.scale - (half_NM * half_NM).sum(0)
        return self.mean + half_NM.T @ self.z_N, np.maximum(var, 1e-8)


def climb(x_ND: Floats, y_N: Floats, noise_N: Floats, shape: Shape) -> Shape:
    """One round of coordinate ascent on the evidence, from `shape`."""

    def prior(s: Shape) -> float:
        return -0.5 * sum((math.log(v / 0.8) / 1.0) ** 2 for v in s.length_D)

    best, top = shape, Process(x_ND, y_N, noise_N, shape).evidence + prior(shape)

    def attempt(s: Shape) -> None:
        nonlocal best, top
        value = Process(x_ND, y_N, noise_N, s).evidence + prior(s)
        if value > top:
            best, top = s, value

    for nugget in NUGGETS:
        attempt(Shape(best.length_D, nugget))
    for d in range(x_ND.shape[1]):
        now = best.length_D
        for length in LENGTHS:
            if 0.2 < length / now[d] < 5 and length != now[d]:
                attempt(Shape((*now[:d], length, *now[d + 1 :]), best.nugget))
    return best


def improvement(best: float, mean: Floats, var: Floats) -> Floats:
    """Expected improvement under `best` (Jones et al., 1998, equation 15)."""
    sd = np.sqrt(var)
    z = (best - mean) / sd
    density = np.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)
    # Far out the sum cancels to less than `normal_cdf` is right to: its asymptote there.
    return np.asarray(sd * np.where(z < -4, density / (z * z + 3), z * normal_cdf(z) + density))


def normal_cdf(z: Floats) -> Floats:
    """Abramowitz and Stegun's 26.2.17, right to 7.5e-8 (there is no erf in numpy)."""
    t = 1 / (1 + 0.2316419 * np.abs(z))
    poly = np.polyval([1.330274429, -1.821255978, 1.781477937, -0.356563782, 0.319381530, 0], t)
    tail = np.exp(-0.5 * z * z) / math.sqrt(2 * math.pi) * poly
    return np.where(z > 0, 1 - tail, tail)


def _matern(a_ND: Floats, b_MD: Floats, length_D: tuple[float, ...]) -> Floats:
    """Matern 5/2 (Rasmussen and Williams, equation 4.17); [N, M]."""
    a, b = a_ND / np.array(length_D), b_MD / np.array(length_D)
    square = (a * a).sum(1)[:, None] + (b * b).sum(1) - 2 * a @ b.T
    r = np.sqrt(5 * np.maximum(square, 0))
    return np.asarray((1 + r + r * r / 3) * np.exp(-r))
