"""BudgetScheduler: tune.policy under Ray Tune (the interface; the rest follows)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher

from tune.policy import Policy


class Money(Protocol):
    """Who holds the purse (raygen.cost's cap)."""

    def left(self) -> float:
        """Dollars neither spent nor reserved."""
        ...

    def admit(self, dollars: float) -> bool:
        """Whether work of at most so many dollars may begin."""
        ...


class BudgetScheduler(TrialScheduler):  # type: ignore[misc]
    """Pauses, continues and ends trials as the policy says; `save` gets its state when it changes.

    A trial reports `level` (1, 2, ... judged checkpoints), the metric, and `dollars`, its own
    spending so far, in all. `searcher` is given to Tune as its `search_alg`.
    """

    def __init__(
        self,
        policy: Policy,
        money: Money,
        save: Callable[[bytes], None],
        *,
        metric: str = "score",
        mode: str = "min",
        level: str = "level",
        dollars: str = "dollars",
    ) -> None:
        """`metric`, `level` and `dollars` name keys of what trials report."""

    @property
    def searcher(self) -> Searcher:
        """What proposes the policy's own configurations to Tune."""
        raise NotImplementedError
