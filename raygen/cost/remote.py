"""An accountant in an actor, for trials in several processes.

handle = start(storage, cap=50.0, owner="search")      # in the search
fit(config, accounts=Remote(handle))                   # in a trial's process
ray.get(handle.close.remote())
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ray
from ray.exceptions import RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raygen.cost.accountant import Accountant
from raygen.cost.bill import Bill
from raygen.errors import RaygenError


def start(place: str, **terms: Any) -> Any:
    """The handle of an accountant that has begun, in an actor on this node; `terms` are its own.

    It lives as long as its driver; `close` it at the end. Raises what `Accountant.begin` raises.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    handle = ray.remote(num_cpus=0, scheduling_strategy=here)(Accountant).remote(place, **terms)
    answer(handle.begin.remote())
    return handle


class Remote:
    """An accountant in an actor, asked as if it were here: it raises what that one raises."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    def bill(self, trial: str | None = None) -> Bill:
        """As the accountant's."""
        bill: Bill = answer(self._handle.bill.remote(trial))
        return bill

    def hold(self, trial: str, demands: Mapping[str, Mapping[str, float]]) -> None:
        """As the accountant's."""
        answer(self._handle.hold.remote(trial, demands))

    def release(self, trial: str) -> None:
        """As the accountant's."""
        answer(self._handle.release.remote(trial))

    def lost(self, trial: str, since: float) -> None:
        """As the accountant's."""
        answer(self._handle.lost.remote(trial, since))

    def notes(self) -> list[str]:
        """As the accountant's."""
        notes: list[str] = answer(self._handle.notes.remote())
        return notes


def answer(reference: Any) -> Any:
    """What an actor answers. A RaygenError is raised as the one line that it was there."""
    try:
        return ray.get(reference)
    except RayTaskError as error:
        if isinstance(error.cause, RaygenError):
            raise error.cause from None
        raise
