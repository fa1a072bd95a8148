"""A running cluster at a glance: its nodes, what they are, cost and do, and the dollars of today.

raygen status [PLACE...]

It asks the Ray of RAY_ADDRESS, or the one that runs on this machine, and starts none. Dollars come
from the ledgers at the PLACEs; a day begins at midnight UTC.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import ray
from ray._private import state as ray_state

from raygen.cost.cluster import HEAD
from raygen.cost.node import identify
from raygen.cost.prices import price
from raygen.cost.report import ledgers
from raygen.errors import ClusterError, ConfigError

COLUMNS = "node address head type zone market $/hour CPU GPU runs".split()
DAY_S = 86400.0
PREEMPTED, FAILED = 3, 2  # of Ray's NodeDeathInfo.Reason
_WORK = {"RayTrainWorker": "training", "ServeReplica": "serving", "ProxyActor": "HTTP"}


@dataclass(frozen=True)
class NodeStatus:
    """One node. `hourly` is about what it costs an hour, None where nobody knows its type; `used`
    and `has` are amounts of CPU and GPU; `runs` counts actors by what they do.
    """

    id: str
    address: str
    head: bool
    type: str
    zone: str
    market: str
    hourly: float | None
    used: dict[str, float]
    has: dict[str, float]
    runs: dict[str, int]

    def cells(self) -> list[str]:
        """The text of each of COLUMNS."""
        amounts = [
            f"{self.used[kind]:g}/{self.has[kind]:g}" if self.has[kind] else ""
            for kind in ("CPU", "GPU")
        ]
        return [
            self.id[:8],
            self.address,
            "head" if self.head else "",
            self.type,
            self.zone,
            self.market,
            "" if self.hourly is None else f"{self.hourly:.4g}",
            *amounts,
            ", ".join(f"{count} {work}" for work, count in sorted(self.runs.items())),
        ]


@dataclass(frozen=True)
class ClusterStatus:
    """Nodes that are there; how many this cluster has lost, with notice and without; and of the
    ledgers, None where no place was given: dollars of today and in all, and nodes lost today.
    """

    nodes: list[NodeStatus]
    preempted: int
    failed: int
    today: float | None = None
    spent: float | None = None
    preempted_today: int | None = None
    failed_today: int | None = None

    @property
    def hourly(self) -> float:
        """Dollars an hour of all nodes whose price is known."""
        return sum(node.hourly or 0.0 for node in self.nodes)

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {**asdict(self), "hourly": self.hourly}

    def notes(self) -> list[str]:
        """What stands below the table."""
        unknown = sum(node.hourly is None for node in self.nodes)
        rate = f"{len(self.nodes)} nodes, about ${self.hourly:.4g} an hour"
        lines = [rate + (f" and {unknown} whose type has no price" if unknown else "")]
        if self.preempted or self.failed:
            lines.append(f"lost: {self.preempted} with notice, {self.failed} without")
        if self.today is not None:
            lines.append(
                f"${self.today:.4f} today (UTC), ${self.spent:.4f} in all; lost today: "
                f"{self.preempted_today} with notice, {self.failed_today} without"
            )
        return lines


def find(places: Sequence[str] = (), now: float | None = None) -> ClusterStatus:
    """Of the cluster that runs, and the ledgers at `places`, as at `now` (Unix seconds).

    Raises ClusterError where no Ray runs, StorageError where a place has no ledger.
    """
    when = time.time() if now is None else now
    books = [ledger for place in places for ledger in ledgers(place)]
    join()
    known = ray.nodes()
    gone = Counter(item.get("DeathReason") for item in known if not item["Alive"])
    found = ClusterStatus(
        nodes=sorted(_alive(known), key=lambda node: (not node.head, node.market, node.id)),
        preempted=gone[PREEMPTED],
        failed=gone[FAILED],
    )
    if not places:
        return found
    begin = when - when % DAY_S
    ends = Counter(
        settled.reason
        for ledger in books
        for settled in ledger.book.settled.values()
        if begin <= settled.end <= when
    )
    return ClusterStatus(
        nodes=found.nodes,
        preempted=found.preempted,
        failed=found.failed,
        today=sum(ledger.book.between(begin, when) for ledger in books),
        spent=sum(ledger.book.spent(when) for ledger in books),
        preempted_today=ends["preempted"],
        failed_today=ends["failed"],
    )


def join() -> None:
    """Joins the Ray that runs. Raises ClusterError where there is none."""
    if ray.is_initialized():
        return
    address = os.environ.get("RAY_ADDRESS", "auto")
    none = ClusterError(
        f"no Ray answers at {address}: run this on the cluster's head, or as a job "
        "(ray job submit -- raygen status); one that asks for a token wants RAY_AUTH_MODE=token"
    )
    host, _, port = address.rpartition(":")
    try:
        if host and port.isdigit() and "://" not in address:
            # Ray itself would try for half a minute.
            socket.create_connection((host, int(port)), timeout=5).close()
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, RuntimeError, ValueError):  # ConnectionError is an OSError
        raise none from None


def _alive(known: Sequence[dict[str, Any]]) -> list[NodeStatus]:
    free = ray_state.available_resources_per_node()
    work: dict[str, Counter[str]] = {}
    for actor in ray_state.actors(actor_state_name="ALIVE").values():
        name = actor["ActorClassName"].split(":")[0].split(".")[-1]
        does = next((what for prefix, what in _WORK.items() if name.startswith(prefix)), "")
        if does:
            work.setdefault(actor["Address"]["NodeID"], Counter())[does] += 1
    return [
        _node(item, free.get(item["NodeID"], {}), dict(work.get(item["NodeID"], {})))
        for item in known
        if item["Alive"]
    ]


def _node(item: dict[str, Any], free: dict[str, float], runs: dict[str, int]) -> NodeStatus:
    what = identify(item.get("Labels", {}), None, "")
    has = {kind: float(item["Resources"].get(kind, 0.0)) for kind in ("CPU", "GPU")}
    return NodeStatus(
        id=item["NodeID"],
        address=item["NodeManagerAddress"],
        head=HEAD in item["Resources"],
        type=what.type,
        zone=what.zone,
        market=what.market,
        hourly=_hourly(what.type, what.zone, what.market),
        used={kind: amount - float(free.get(kind, 0.0)) for kind, amount in has.items()},
        has=has,
        runs=runs,
    )


def _hourly(type_: str, zone: str, market: str) -> float | None:
    try:
        listed = price(type_)
    except ConfigError:
        return None
    return listed.usual(zone) if market == "spot" else listed.ceiling(zone)
