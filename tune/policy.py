"""What to start, continue or pause next, for the money that is left: no Ray, no clock, no files.

The shape of the interface; the decisions follow.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Config = dict[str, Any]


class Space(Protocol):
    """What the picker draws from (tune.space offers it)."""

    def sample(self, rng: np.random.Generator) -> Config:
        """One configuration, drawn as the space says."""
        ...

    def encode(self, config: Config) -> NDArray[np.float64]:
        """The configuration as a point of [0, 1]^d; a choice is one-hot."""
        ...

    def decode(self, vector: NDArray[np.float64]) -> Config:
        """The configuration nearest to a point of [0, 1]^d."""
        ...


@dataclass(frozen=True)
class Job:
    """A piece of training to run: from where the trial stands to a level."""

    trial: int
    config: Config
    since: int  # levels already run; 0: a new trial
    until: int  # the level to run to, then ask `Policy.report`
    dollars: float  # what it is expected to cost, the (re)start included


class Policy:
    """Decides; somebody else runs. Deterministic: the same calls give the same answers."""

    def __init__(
        self,
        space: Space,
        *,
        money: float,
        levels: int,
        workers: int = 4,
        level_dollars: float | None = None,
        restart_dollars: float = 0.0,
        seed: int = 0,
    ) -> None:
        """A search of `money` dollars in all, over trials of `levels` judged checkpoints each.

        `level_dollars` is what one level costs as far as is known before the first result.
        """

    def next(self, left: float) -> Job | None:
        """What a free worker shall do, `left` dollars being unspent; None: nothing (more) now.

        The job counts as running from here on; `left` holds the money of running jobs too.
        """
        raise NotImplementedError

    def report(self, trial: int, level: int, dollars: float, score: float) -> int | None:
        """A result of a running trial: `dollars` since its last report, `score` (less is better).

        Returns the level it is to go on to, or None: pause it (or it is whole).
        """
        raise NotImplementedError

    def ended(self, trial: int) -> None:
        """The trial has ended by itself (diverged, failed for good): it cannot be continued."""
        raise NotImplementedError

    def state(self) -> dict[str, Any]:
        """All there is, as JSON can hold it."""
        raise NotImplementedError

    @classmethod
    def restore(cls, space: Space, state: dict[str, Any]) -> Policy:
        """The policy as it was; jobs then running are paused where they last reported."""
        raise NotImplementedError
