"""Which clip, which span, in which order: a pure function of (seed, position).

A position counts the clips of a whole training: global batch k holds the positions from k x B to
k x B + B - 1. Workers only share them out, so the order does not depend on how many there are, and
a run that stopped after k batches goes on at position k x B.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Span:
    """Row `index` of the catalogue, from `start` in [0, 1): the share of its spare time."""

    index: int
    start: float


@dataclass(frozen=True)
class Plan:
    """A new permutation of `clips` rows each epoch, and one drawn start for each of them."""

    clips: int
    seed: int

    def span(self, position: int) -> Span:
        """What stands at `position`."""
        epoch, offset = divmod(position, self.clips)
        order, starts = _epoch(self.clips, self.seed, epoch)
        return Span(int(order[offset]), float(starts[offset]))


def positions(step: int, rank: int, world_size: int, batch_size: int) -> range:
    """The positions that `rank` takes of global batch `step`; `batch_size` is the global one."""
    share = batch_size // world_size
    first = step * batch_size + rank * share
    return range(first, first + share)


@functools.lru_cache(maxsize=4)
def _epoch(clips: int, seed: int, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    rng = np.random.default_rng((seed, epoch))
    return rng.permutation(clips), rng.random(clips)
