"""How many workers the cluster has room for: asked by reserving it.

A placement group that Ray could fill is room, whoever else shares the cluster; one that waits is a
demand that the autoscaler sees. Nodes that are being drained take none. Of a node that is gone
without a word Ray learns only after half a minute: until then it would be taken for room.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from typing import Any

import ray
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raygen.config import TrainConfig

DOUBT_S = 120.0  # then a node that neither answers nor is dead to Ray is taken as it is


class Capacity:
    """Reservations from `base` workers up, one for each step to the next size; `release` them.

    There is room for no more than `base` until each of the `doubted` nodes has answered, or Ray
    has given it up.
    """

    def __init__(self, train: TrainConfig, *, base: int = 0, doubted: Sequence[str] = ()) -> None:
        self._base, self._sizes = base, [n for n in train.world_sizes if n > base]
        bundle = {"CPU": train.cpus_per_worker, "GPU": train.gpus_per_worker}
        self._bundle = bundle = {kind: amount for kind, amount in bundle.items() if amount}
        ladder = [base, *self._sizes]
        self._steps = [
            (upper - lower, placement_group([bundle] * (upper - lower)))
            for lower, upper in itertools.pairwise(ladder)
        ]
        self._ready: dict[int, bool] = {}
        self._since: float | None = None
        self._asked = {_ask(node): node for node in set(doubted)}
        self._trusted_at = time.monotonic() + DOUBT_S

    def size(self, settle_s: float) -> int:
        """The number of workers there is room for: `base`, or one of the sizes.

        Growth counts once nothing more has come for `settle_s`, or all has: several nodes that
        come one after the other are one change.
        """
        if self._doubts():
            return self._base
        before = sum(self._ready.values())
        for k, (_, group) in enumerate(self._steps):
            self._ready[k] = self._ready.get(k, False) or bool(group.wait(0))
        now = time.monotonic()
        if sum(self._ready.values()) > before or self._since is None:
            self._since = now
        if not all(self._ready.values()) and now - self._since < settle_s:
            return self._base
        return self._largest(self._reserved)

    def taken(self) -> bool:
        """Whether the nodes that are there could hold no more workers than have been reserved."""
        return self._largest(self._held) <= self._reserved

    def _doubts(self) -> bool:
        if not self._asked or time.monotonic() > self._trusted_at:
            return False
        alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
        done, _ = ray.wait(list(self._asked), num_returns=len(self._asked), timeout=0)
        self._asked = {
            answer: node
            for answer, node in self._asked.items()
            if answer not in done and node in alive
        }
        return bool(self._asked)

    @property
    def _reserved(self) -> int:
        return self._base + sum(n for k, (n, _) in enumerate(self._steps) if self._ready.get(k))

    @property
    def _held(self) -> int:
        """The workers that all nodes together hold when nothing else runs on them."""
        alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        return sum(
            min(int(there.get(kind, 0.0) / amount) for kind, amount in self._bundle.items())
            for there in alive
        )

    def _largest(self, workers: int) -> int:
        return max((n for n in self._sizes if n <= workers), default=self._base)

    def release(self) -> None:
        """Gives everything back."""
        for _, group in self._steps:
            remove_placement_group(group)
        self._steps = []


def _ask(node: str) -> Any:
    """An answer that comes once something has run on a node."""
    there = NodeAffinitySchedulingStrategy(node, soft=False)
    return ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=there)(_answer).remote()


def _answer() -> None:
    pass
