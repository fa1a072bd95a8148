"""Copies of the shards in the memory of other nodes (Gemini, SOSP 2023).

Every few steps each rank leaves its part of the state in a vault on its own node and in one on the
next: a node that dies without notice costs those few steps and not a checkpoint interval. Vaults
belong to the training's board, not to its workers, and outlive them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raygen.packing import Packed

# Of the newest two one is whole, whenever the workers die.
KEPT = 2
ANSWER_S = 5.0
GIVE_S = 120.0  # for all the parts of a step


@dataclass(frozen=True)
class Part:
    """What one rank of `world_size` held after `step` steps; rank 0's has the state as well.

    `group` tells groups of workers apart: one that was lost, and one that went on from an older
    step, both have parts of the steps between, which do not belong together.
    """

    group: str
    step: int
    rank: int
    world_size: int
    states: Packed
    consumed: Sequence[tuple[int, int]]
    state: Mapping[str, Any] | None = None


class Vault:
    """An actor that keeps the newest parts that it was given."""

    def __init__(self) -> None:
        self._groups: dict[str, int] = {}  # in the order in which they came
        self._parts: dict[tuple[int, int], dict[int, Part]] = {}  # by group and step, by rank

    def keep(self, part: Part) -> None:
        """Takes a part; the oldest step goes when there are more than two."""
        # Out of the object store, whose copies go with the worker that sent it.
        part = replace(part, states=part.states.owned())
        group = self._groups.setdefault(part.group, len(self._groups))
        self._parts.setdefault((group, part.step), {})[part.rank] = part
        for key in sorted(self._parts)[:-KEPT]:
            del self._parts[key]

    def held(self) -> list[tuple[str, int, int, int]]:
        """(group, step, rank, world size) of every part."""
        parts = [part for by_rank in self._parts.values() for part in by_rank.values()]
        return [(part.group, part.step, part.rank, part.world_size) for part in parts]

    def give(self, group: str, step: int, rank: int) -> Part:
        """A part that it holds."""
        return self._parts[self._groups[group], step][rank]

    def forget_after(self, step: int) -> None:
        """Drops what a run that goes on from `step` must not come back to."""
        self._parts = {key: parts for key, parts in self._parts.items() if key[1] <= step}


@dataclass(frozen=True)
class Whole:
    """A step of which every rank's part is held; `vaults`: by rank, one that holds it."""

    group: str
    step: int
    vaults: Mapping[int, Any]

    def fetch(self) -> list[Part]:
        """Every rank's part, by rank. Raises RayError where a vault has died meanwhile."""
        asked = [
            self.vaults[rank].give.remote(self.group, self.step, rank)
            for rank in sorted(self.vaults)
        ]
        parts: list[Part] = ray.get(asked, timeout=GIVE_S)
        return parts


class Vaults:
    """The vaults of a training, by node; those that died with their nodes are passed over."""

    def __init__(self, handles: Mapping[str, Any]) -> None:
        self._handles = handles

    @staticmethod
    def start(node: str) -> Any:
        """The handle of a new vault on `node`; it lives as long as the process that calls this."""
        here = NodeAffinitySchedulingStrategy(node, soft=False)
        return ray.remote(num_cpus=0, scheduling_strategy=here)(Vault).remote()

    @staticmethod
    def alive(handle: Any) -> bool:
        """Whether a vault still answers: its node may be there, and its process gone."""
        try:
            ray.get(handle.held.remote(), timeout=ANSWER_S)
        except RayError:
            return False
        return True

    def near(self, node: str, nodes: Sequence[str]) -> list[Any]:
        """Where a rank on `node` leaves its part: there, and on the next of the group's nodes."""
        ring = sorted(set(nodes))
        after = ring[(ring.index(node) + 1) % len(ring)]
        return [self._handles[where] for where in {node: None, after: None}]

    def whole(self) -> list[Whole]:
        """The steps of which every rank's part is held, oldest first."""
        found: dict[tuple[int, str, int], dict[int, Any]] = {}
        for vault, held in self._ask("held"):
            for group, step, rank, world_size in held:
                found.setdefault((step, group, world_size), {})[rank] = vault
        return [
            Whole(group, step, vaults)
            for (step, group, world_size), vaults in sorted(found.items(), key=lambda item: item[0])
            if len(vaults) == world_size
        ]

    def forget_after(self, step: int) -> None:
        """In all of them."""
        self._ask("forget_after", step)

    def _ask(self, method: str, *arguments: Any) -> list[tuple[Any, Any]]:
        if not self._handles:
            return []
        answers = {getattr(v, method).remote(*arguments): v for v in self._handles.values()}
        # Together: a node that was cut off keeps the others waiting once.
        done, _ = ray.wait(list(answers), num_returns=len(answers), timeout=ANSWER_S)
        found = []
        for answer in done:
            try:
                found.append((answers[answer], ray.get(answer)))
            except RayError:  # died with its node
                continue
        return found
