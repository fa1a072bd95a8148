"""Ray's nodes as an accountant sees them, and a steward on each rented one that keeps its watchdog.

A steward is an actor without resources: it asks its node's metadata service what the node is, and
hands the lease's end on to the watchdog, which needs neither it nor Ray from then on.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raygen.cost import watchdog
from raygen.cost.cap import Node
from raygen.cost.entries import Lease, Purpose, Reason
from raygen.cost.node import Identity, ask_metadata, identify, share
from raygen.cost.prices import price, prices
from raygen.errors import ConfigError

HEAD = "node:__internal_head__"
IDENTIFY_S = 15.0  # for a steward to start and to say what its node is
# The last part of the drain-down is for the machine: until then Ray on it may save and end.
LAST = 0.25
# Ray's NodeDeathInfo.Reason.
_REASONS: dict[int, Reason] = {1: "done", 2: "failed", 3: "preempted", 4: "idle"}


class Steward:
    """An actor on a node."""

    def __init__(self, node: str) -> None:
        place = Path(tempfile.gettempdir()) / f"raygen-lease-{node[:16]}"
        self._lease = Path(os.environ.get("RAYGEN_LEASE", place))
        self._watched = False

    def identity(self) -> Identity | None:
        """What the metadata service says."""
        return ask_metadata()

    def renew(self, until: float) -> None:
        """The node may stay until then, and not longer unless this is called again."""
        watchdog.write_deadline(self._lease, until)
        if not self._watched:
            self._watched = True
            watchdog.start(self._lease, os.getppid())

    def release(self) -> None:
        """The node may stay as long as others want it."""
        self._lease.unlink(missing_ok=True)


class Cluster:
    """Nodes by Ray's ids. `otherwise` is the type of those that do not say what they are.

    With `guard`, rented nodes get watchdogs: those whose labels or metadata name a market.
    """

    def __init__(self, otherwise: str, *, guard: bool) -> None:
        self._otherwise, self._guard = otherwise, guard
        self._here = ray.get_runtime_context().get_node_id()
        self._began = time.time()
        self._since: dict[str, float] = {}
        self._known: dict[str, Node] = {}
        self._rented: set[str] = set()
        self._gone: set[str] = set()
        self._capacity: dict[str, Mapping[str, float]] = {}
        self._stewards: dict[str, Any] = {}
        self._answers: dict[str, Any] = {}
        self._told: dict[str, float] = {}

    def look(self, *, wait: bool = False) -> tuple[dict[str, Node], dict[str, Reason], list[str]]:
        """Nodes that are there and known, those that went since the last look, and notes.

        With `wait` those that are there are known when it returns.
        """
        there: dict[str, Node] = {}
        gone: dict[str, Reason] = {}
        notes: list[str] = []
        for item in ray.nodes():
            node = item["NodeID"]
            if item["Alive"]:
                self._capacity[node] = item["Resources"]
                if node not in self._known:
                    self._meet(node, item, notes, wait)
                if node in self._known:
                    there[node] = self._known[node]
            elif node in self._known and node not in self._gone:
                self._gone.add(node)
                self._stewards.pop(node, None)
                gone[node] = _REASONS.get(item.get("DeathReason", 2), "failed")
        return there, gone, notes

    def share(self, node: str, kinds: Mapping[str, float]) -> float:
        """The largest part, 0 to 1, that amounts of resources are of what a node has of them."""
        return share(kinds, self._capacity.get(node, {}))

    def renew(self, leases: Mapping[str, Lease]) -> None:
        """Tells the stewards of rented nodes how long each may stay."""
        for node, lease in leases.items():
            until = lease.gone_by - LAST * lease.drain_s
            if not self._guard or node not in self._rented or self._told.get(node) == until:
                continue
            with contextlib.suppress(RayError):
                self._steward(node).renew.remote(until)
                self._told[node] = until

    def close(self, *, at_cap: bool) -> set[str]:
        """Lets the nodes be; or, at a cap, lets the watchdogs end the workers' nodes, and returns
        their ids.
        """
        doomed = set()
        for node in self._told:
            if node in self._gone:
                continue
            if at_cap and self._known[node].purpose == "worker":
                doomed.add(node)
                continue
            with contextlib.suppress(RayError):
                ray.get(self._steward(node).release.remote(), timeout=IDENTIFY_S)
        return doomed

    def _meet(self, node: str, item: Mapping[str, Any], notes: list[str], wait: bool) -> None:
        since = self._since.setdefault(node, time.time())
        metadata: Identity | None = None
        if os.environ.get("AWS_EC2_METADATA_DISABLED", "").lower() != "true":
            if node == self._here:
                metadata = ask_metadata()
            else:
                if node not in self._answers:
                    self._answers[node] = self._steward(node).identity.remote()
                patience = IDENTIFY_S - (time.time() - since)
                done, _ = ray.wait([self._answers[node]], timeout=max(0, patience) if wait else 0)
                if not done and patience > 0:
                    return
                with contextlib.suppress(RayError):
                    metadata = ray.get(done[0]) if done else None
        found = identify(item.get("Labels", {}), metadata, self._otherwise)
        try:
            listed = price(found.type)
        except ConfigError as error:
            if wait:
                raise
            # Under a cap it is charged no less than it may cost.
            dearest = max(prices(), key=lambda each: each.on_demand)
            listed = dearest if self._guard else price(self._otherwise)
            notes.append(f"{error}; it is charged as {listed.node}")
        purpose: Purpose = "head" if HEAD in item["Resources"] else "worker"
        self._known[node] = Node(
            id=node,
            type=listed.node,
            zone=found.zone,
            market=found.market,
            ceiling=listed.ceiling(found.zone),
            since=max(self._began, found.launched or since),
            purpose=purpose,
            instance=found.instance,
        )
        if found.rented:
            self._rented.add(node)

    def _steward(self, node: str) -> Any:
        if node not in self._stewards:
            on_it = NodeAffinitySchedulingStrategy(node, soft=False)
            actor = ray.remote(num_cpus=0, scheduling_strategy=on_it, max_restarts=-1)(Steward)
            self._stewards[node] = actor.remote(node)
        return self._stewards[node]
