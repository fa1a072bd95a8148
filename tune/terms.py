"""The policy's terms: the space that it draws from, its rules, and the jobs that it gives."""

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
    since: int  # levels already run, by its parent too; 0: a new trial
    until: int  # the level to run to, then ask `Policy.report`
    dollars: float  # what it is expected to cost, the (re)start included
    parent: int | None = None  # the trial whose checkpoint a branch begins from


@dataclass(frozen=True)
class New:
    """A trial that could be begun, what it promises, and of a branch its parent."""

    worth: float
    config: Config
    parent: int | None = None


@dataclass(frozen=True)
class Rules:
    """What the policy's behaviour hangs on: tuned on half of the benchmark's tasks."""

    steps: int = 13  # rungs, evenly spaced
    random: int = 4  # trials before the model picks
    # What is known of curves beforehand (tune.model.Drop): the mean fall and its deviation.
    # A task's own curves soon outweigh it.
    doubt: float = 0.3
    weight: float = 1.0
    power: float = 1.5
    thrift: float = 1.0  # the power of the dollars to the end that divide an improvement
    deep: float = 0.5  # of a whole trial's dollars: with less free, new ones are begun last
    drawn: int = 256  # candidates at random
    near: int = 48  # and near the best
    most: int = 200  # trials that the process looks at
    parents: int = 3  # the most that are branched from, of the best quarter
    branches: int = 4  # that are looked at of each
