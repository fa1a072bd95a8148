"""Where in a shot a clip may begin, counted in frames at the target rate.

The one place that turns a start in [0, 1) into a first frame. Clips for the cache begin on a grid,
so that one epoch meets those of another.
"""

from __future__ import annotations

import math
from typing import Protocol

from raygen.data.decode import frame_count


class Timing(Protocol):
    """Frames of a clip, and frames per second; a DataConfig has both."""

    @property
    def frames(self) -> int:
        """Frames of a clip (T)."""

    @property
    def fps(self) -> float:
        """Frames per second."""


def first_of(start: float, low: float, high: float, timing: Timing) -> int:
    """The first frame of the clip at `start`, in [0, 1) of what the shot can spare.

    The shot lasts from `low` to `high`, in seconds; frames are counted from the video's beginning.
    """
    begin, spare = _room(low, high, timing)
    return begin + int(start * (spare + 1))


def starts(low: float, high: float, timing: Timing) -> range:
    """First frames of the clips that the shot from `low` to `high` seconds is divided into.

    Where clips begin only there, an epoch meets those of the one before. The rest at the end of
    the shot, shorter than a clip, belongs to none.
    """
    begin, spare = _room(low, high, timing)
    return range(begin, begin + spare + 1, timing.frames)


def start_of(first: int, low: float, high: float, timing: Timing) -> float:
    """The start in [0, 1) whose clip begins at frame `first`."""
    begin, spare = _room(low, high, timing)
    return (first - begin + 0.5) / (spare + 1)


def snap(start: float, low: float, high: float, timing: Timing) -> float:
    """`start` moved to that of a clip of `starts`."""
    firsts = starts(low, high, timing)
    return start_of(firsts[int(start * len(firsts))], low, high, timing)


def _room(low: float, high: float, timing: Timing) -> tuple[int, int]:
    """The first frame of a shot, and how many frames a clip in it may move."""
    begin = math.ceil(low * timing.fps - 1e-3)
    return begin, max(0, frame_count(high, timing.fps) - begin - timing.frames)
