"""Which clip, which span, in which order: a pure function of (seed, position).

A position counts the clips of a whole training, epoch after epoch. Workers only share them out,
so the order does not depend on how many there are, and a run that has consumed every position
before p goes on at p: that number is the whole cursor.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

GOLDEN = 0.6180339887498949
CENTRE = (0.5, 0.5)


@dataclass(frozen=True)
class Span:
    """Row `row` of the catalogue, from `start` in [0, 1): the share of its spare time.

    `crop` is where the picture is cut, as fractions in [0, 1] of the spare width and height.
    """

    row: int
    start: float
    crop: tuple[float, float] = CENTRE


class Weights:
    """How often each row should come, relative to the others: float [clips], at least 0."""

    def __init__(self, values: NDArray[np.float32]) -> None:
        self.values = values
        self._digest = hash(values.tobytes())

    def __hash__(self) -> int:
        return self._digest

    def __eq__(self, other: object) -> bool:
        same = isinstance(other, Weights) and self._digest == other._digest
        return same and np.array_equal(self.values, other.values)  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Plan:
    """A new order of `clips` rows each epoch, and for each of them one drawn start.

    Without `weights` every row stands in an epoch exactly once. With them a row stands there in
    proportion, rounded up or down by systematic resampling (Kitagawa 1996), so that even rare
    rows come as often as their weight says.
    """

    clips: int
    seed: int
    weights: Weights | None = None
    random_crop: bool = False

    def span(self, position: int) -> Span:
        """What stands at `position`."""
        epoch, offset = divmod(position, self.clips)
        drawn = _draw(self.clips, self.seed, epoch, self.weights)
        crop_x, crop_y = drawn.crops[offset].tolist() if self.random_crop else CENTRE
        return Span(int(drawn.rows[offset]), float(drawn.starts[offset]), (crop_x, crop_y))


def balanced(labels: NDArray[np.int32]) -> Weights:
    """Weights under which every class of `labels` comes equally often."""
    return Weights((1.0 / np.bincount(labels)[labels]).astype(np.float32))


def shot(
    cuts: Sequence[float], duration: float, seconds: float, start: float
) -> tuple[float, float, float]:
    """The shot that a clip of `seconds` is taken from, so that it straddles no cut.

    `start` in [0, 1) is its share of the spare time of all shots together. Returns the shot's
    beginning and end in seconds, and the share of that shot's own spare time.
    """
    edges = [0.0, *cuts, duration]
    shots = [(a, b) for a, b in itertools.pairwise(edges) if b - a >= seconds - 1e-3]
    spare = [max(b - a - seconds, 0.0) for a, b in shots]
    if not sum(spare):
        at = start * len(shots)
        return *shots[int(at)], at % 1
    left = start * sum(spare)
    for (low, high), room in zip(shots, spare, strict=True):
        if left < room:
            return low, high, left / room
        left -= room
    return *shots[-1], float(np.nextafter(1, 0))


@dataclass(frozen=True)
class _Epoch:
    rows: NDArray[np.int64]  # [clips]
    starts: NDArray[np.float64]  # [clips]
    crops: NDArray[np.float64]  # [clips, 2]


# Two: a position near the end of an epoch is asked for beside one after it.
@functools.lru_cache(maxsize=2)
def _draw(clips: int, seed: int, epoch: int, weights: Weights | None) -> _Epoch:
    rng = np.random.default_rng((seed, epoch))
    rows, starts, crops = rng.permutation(clips), rng.random(clips), rng.random((clips, 2))
    if weights is None:
        return _Epoch(rows, starts[rows], crops[rows])
    edges = np.cumsum(weights.values[rows], dtype=np.float64)
    ticks = (rng.random() + np.arange(clips)) * (edges[-1] / clips)
    rows = rows[np.searchsorted(edges, ticks, side="right").clip(max=clips - 1)]
    rows = rng.permutation(rows)
    # The n-th time that a row stands in an epoch, its start is n golden ratios further on.
    turns = _occurrence(rows) * GOLDEN
    return _Epoch(rows, (starts[rows] + turns) % 1, (crops[rows] + turns[:, None]) % 1)


def _occurrence(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """How often each entry has stood before in `rows`."""
    order = np.argsort(rows, kind="stable")
    in_order = rows[order]
    first = np.searchsorted(in_order, in_order, side="left")
    counts = np.empty_like(rows)
    counts[order] = np.arange(len(rows)) - first
    return counts
