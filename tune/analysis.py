"""What a search has found out: the front of quality against price, and which keys mattered. Pure.

N trials, D coordinates of the unit cube, K keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

LEAST = 6  # trials below which nothing is said about keys
LENGTHS = (0.15, 0.3, 0.6, 1.2, 2.4)  # of the kernel, in sides of the unit cube
NOISES = (1e-3, 1e-2, 1e-1, 1.0)
DRAWN = 256


@dataclass(frozen=True)
class Importance:
    """Each key's share of the variance of the metric's rank by itself, and what they leave.

    `explained`, at most 1, is the part of the variance that the regression predicts of trials it
    has not seen (leave one out, R squared): near 0 or below, the shares mean nothing.
    """

    shares: dict[str, float]
    explained: float


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the points, of which less is better twice, that no other beats, by the first."""
    order = sorted(range(len(points)), key=lambda k: points[k])
    kept: list[int] = []
    for k in order:
        if not kept or points[k][1] < points[kept[-1]][1]:
            kept.append(k)
    return kept


def importance(unit_ND: Array, score_N: Array, widths: dict[str, int]) -> Importance | None:
    """Main effects of keys, each `widths[key]` coordinates wide; None where trials are too few.

    A functional ANOVA (Hutter, Hoos and Leyton-Brown, ICML 2014) of first order, on kernel ridge
    regression of the ranks where they take a forest: with tens of trials it is the steadier one.
    Length and noise of the kernel are those that predict best, one trial left out each time.
    """
    N = len(score_N)
    if N < LEAST or len(set(score_N.tolist())) < 2:
        return None
    rank_N = np.argsort(np.argsort(score_N)) / (N - 1) - 0.5
    error, length, noise = min(
        (_left_out(unit_ND, rank_N, length, noise), length, noise)
        for length in LENGTHS
        for noise in NOISES
    )
    weight_N = np.linalg.solve(_kernel(unit_ND, unit_ND, length) + noise * np.eye(N), rank_N)
    rng = np.random.default_rng(0)
    base_MD = rng.random((DRAWN, unit_ND.shape[1]))

    def predicted(x_MD: Array) -> Array:
        return np.asarray(_kernel(x_MD, unit_ND, length) @ weight_N)

    total = float(predicted(base_MD).var())
    shares, start = {}, 0
    for key, width in widths.items():
        part = slice(start, start + width)
        start += width
        # A choice's coordinates are one-hot where it was tried, and only there.
        at = np.eye(width) if width > 1 else np.linspace(0, 1, 17)[:, None]
        means = []
        for value in at:
            held_MD = base_MD.copy()
            held_MD[:, part] = value
            means.append(predicted(held_MD).mean())
        shares[key] = min(1.0, float(np.var(means)) / total) if total > 0 else 0.0
    return Importance(shares, 1 - error / float(rank_N.var()))


def _kernel(one_MD: Array, other_ND: Array, length: float) -> Array:
    squared_MN = ((one_MD[:, None] - other_ND[None]) ** 2).sum(-1)
    return np.asarray(np.exp(-squared_MN / (2 * length**2)))


def _left_out(unit_ND: Array, y_N: Array, length: float, noise: float) -> float:
    """Mean squared error of each point, predicted from the others, in closed form."""
    inverse_NN = np.linalg.inv(_kernel(unit_ND, unit_ND, length) + noise * np.eye(len(y_N)))
    return float(np.mean((inverse_NN @ y_N / np.diag(inverse_NN)) ** 2))
