"""When to save: from what saving costs and how often workers failed."""

from __future__ import annotations

import math

from raygen.config import TrainConfig

# One unannounced failure in so many seconds is expected of a run that has seen none yet: the order
# of what spot markets of 2025 do to a small group of nodes.
PRIOR_S = 4 * 3600.0
# A copy of the shards in another node's memory may take this share of the time.
SNAPSHOT_SHARE = 0.02
# Steps of a session before the first save, which measures what saving costs.
FIRST = 10


def young_daly(cost_s: float, mtbf_s: float) -> float:
    """Seconds between checkpoints that lose the least time, to first order (Young 1974).

    `cost_s` is what one checkpoint takes from the training, `mtbf_s` the mean time between
    failures. Daly (2006) refines it where the one is not small beside the other.
    """
    return math.sqrt(2 * cost_s * mtbf_s)


class Pace:
    """Rank 0's sense of time; `failures` were seen in `seconds` of training before this session."""

    def __init__(self, train: TrainConfig, *, failures: int, seconds: float) -> None:
        self.train = train
        self.failures, self.seconds = failures, seconds
        self.step_s: float | None = None
        self._steps = 0
        self._checkpoint_s: float | None = None
        self._snapshot_s: float | None = None

    def stepped(self, seconds: float) -> None:
        """A step took `seconds`."""
        self._steps += 1
        self.seconds += seconds
        if self._steps > 2:  # the first ones warm up
            before = seconds if self.step_s is None else self.step_s
            self.step_s = 0.9 * before + 0.1 * seconds

    def checkpointed(self, seconds: float) -> None:
        """A checkpoint took the training `seconds`, waiting and on its cores."""
        self._checkpoint_s = seconds

    def snapshotted(self, seconds: float) -> None:
        """A snapshot took the training `seconds`."""
        self._snapshot_s = seconds

    @property
    def checkpoint_every(self) -> int | None:
        """Steps between checkpoints; None until their cost is known."""
        if self.train.checkpoint_every is not None:
            return self.train.checkpoint_every
        if self._checkpoint_s is None or self.step_s is None:
            return None
        mtbf_s = (PRIOR_S + self.seconds) / (1 + self.failures)
        return max(1, round(young_daly(self._checkpoint_s, mtbf_s) / self.step_s))

    @property
    def snapshot_every(self) -> int | None:
        """Steps between snapshots; None until their cost is known."""
        if self.train.snapshot_every is not None:
            return self.train.snapshot_every
        if self._snapshot_s is None or self.step_s is None:
            return None
        return max(1, math.ceil(self._snapshot_s / (SNAPSHOT_SHARE * self.step_s)))

    def checkpoint_due(self, step: int, tried_at: int) -> bool:
        """Whether `step`, the last one taken, is to be kept on storage."""
        if self.train.checkpoint_every is not None:
            return step > tried_at and step % self.train.checkpoint_every == 0
        return step - tried_at >= (self.checkpoint_every or FIRST)

    def snapshot_due(self, step: int, kept_at: int) -> bool:
        """Whether `step` is to be kept in memory."""
        return step - kept_at >= (self.snapshot_every or FIRST)
