"""AWS nodes for Ray: spot first, on demand where spot is refused, and back to spot later.

    ray up cluster/cluster.yaml      # provider: {type: external, module: cluster.provider....}

Ray's own provider asks for spot for ever. This one has the same nodes, tags and commands, and
differs in what it asks of EC2: an instance type and a zone for each node out of those that are
alike (`provider.alike`), on the market that `cluster.market` chooses within `provider.market`. It
also opens SSH to `provider.ssh_from` alone, and keeps the head's lease while there is work.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray._raylet import GcsClient  # type: ignore[attr-defined,unused-ignore]
from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
from ray.autoscaler.node_launch_exception import NodeLaunchException
from ray.autoscaler.tags import NODE_KIND_WORKER, TAG_RAY_NODE_KIND
from ray.util import get_node_ip_address

from cluster import aws
from cluster.market import (
    BEFORE_S,
    Attempt,
    Memory,
    Pool,
    Terms,
    allowed,
    attempts,
    gives_back,
)
from cluster.notices import Notice
from cluster.watcher import Head
from raygen.cost import watchdog
from raygen.cost.prices import price
from raygen.cost.spot import highest, hourly

log = logging.getLogger(__name__)

MARKET_TAG = "raygen-market"
# AWS has not got what was asked for, here and now; other errors are the user's to mend.
REFUSALS = frozenset(
    """
    InsufficientInstanceCapacity InsufficientCapacity InsufficientHostCapacity SpotMaxPriceTooLow
    MaxSpotInstanceCountExceeded SpotInstanceCountExceeded VcpuLimitExceeded InstanceLimitExceeded
    Unsupported UnfulfillableCapacity
    """.split()
)
CONSIDER_S = 60.0  # between two looks at whether a node is to be given back
NOTICE_S = 120.0  # to save and leave, as AWS gives
UNLISTED_S = 60.0  # for which EC2 may not yet list what it has launched
QUOTED_S = 600.0  # for which a spot price is taken as known
GCS_PORT = 6379  # of cluster.yaml
LEASE = Path("~/.raygen-life")  # of the head, as cluster/keep.sh has it


class SpotFallbackProvider(AWSNodeProvider):  # type: ignore[misc]
    """Ray's AWS provider with markets. Keys of `provider` beyond Ray's:

    market      cluster.market.Terms
    alike       lists of instance types that may stand in for one another
    ssh_from    addresses (CIDR) that may reach the head's SSH
    head_ttl_s  seconds that the head stays after the last worker has gone
    """

    def __init__(self, provider_config: dict[str, Any], cluster_name: str) -> None:
        super().__init__(provider_config, cluster_name)
        self._terms = Terms.parse(provider_config["market"])
        self._alike: list[list[str]] = provider_config["alike"]
        # What follows is written by `bootstrap_config` and `prepare_for_head_node`.
        self._most = int(provider_config.get("most_workers", 0))
        self._on_head = bool(provider_config.get("on_head"))
        self._memory = Memory()
        self._launching = threading.RLock()
        self._zones: dict[str, str] = {}
        self._fresh: dict[str, float] = {}
        self._quotes: dict[tuple[str, str], tuple[float, float]] = {}
        self._offers: dict[str, list[tuple[str, str]]] = {}
        self._given_back: set[str] = set()
        self._considered = 0.0
        self._looked_back = False

    @staticmethod
    def fillout_available_node_types_resources(cluster_config: dict[str, Any]) -> dict[str, Any]:
        """As it is: the YAML says what nodes have, for instance types that are alike."""
        return cluster_config

    @staticmethod
    def bootstrap_config(cluster_config: dict[str, Any]) -> dict[str, Any]:
        """Looks for what users forget, makes the security groups, and does what Ray does.

        Ends the command with one line where a key is wrong.
        """
        return aws.bootstrap(cluster_config)

    def prepare_for_head_node(self, cluster_config: dict[str, Any]) -> dict[str, Any]:
        """The configuration by which the head's provider knows where it is."""
        cluster_config["provider"]["on_head"] = True
        return cluster_config

    def non_terminated_nodes(self, tag_filters: dict[str, str]) -> list[str]:
        """As Ray's; the autoscaler's own look, every few seconds, keeps time for the head too."""
        nodes: list[str] = super().non_terminated_nodes(tag_filters)
        if self._on_head and not tag_filters:
            self._tick(time.time())
        return nodes

    def create_node(
        self, node_config: dict[str, Any], tags: dict[str, str], count: int
    ) -> dict[str, Any]:
        """Launches `count` instances or, where the terms or AWS allow no more, fewer.

        Raises NodeLaunchException where that is none.
        """
        if "InstanceMarketOptions" not in node_config:
            created: dict[str, Any] = super().create_node(node_config, tags, count)
            return created
        with self._launching:
            self._renew(time.time())
            return self._launch(node_config, tags, count)

    def _launch(
        self, node_config: dict[str, Any], tags: dict[str, str], count: int
    ) -> dict[str, Any]:
        pools = self._pools(node_config)
        self._look_back(pools, time.time())
        self._memory = self._memory.priced(self._terms, pools, time.time())
        created: dict[str, Any] = {}
        refusal = NodeLaunchException("NoCapacity", "spot was refused a moment ago", None)
        dear = self._on_demand()
        plan = attempts(
            self._terms, pools, self._memory, on_demand=dear, most=self._most, now=time.time()
        )
        # What Ray tries zone by zone is one request to it.
        for (market, _), group in itertools.groupby(
            plan, lambda each: (each.market, each.pool.type)
        ):
            zones = list(group)
            left = count - len(created)
            if market == "on-demand":
                left = min(left, allowed(self._terms, self._most) - dear)
            if not left:
                continue
            try:
                new = self._ask(node_config, tags, left, zones)
            except NodeLaunchException as error:
                if error.category not in REFUSALS:
                    raise
                refusal = error
                for attempt in zones:
                    self._memory = self._memory.refused(attempt, time.time())
                continue
            for node in new.values():
                at = next((z for z in zones if z.pool.zone == _zone(node)), zones[0])
                self._memory = self._memory.launched(
                    at, time.time(), terms=self._terms, most=self._most
                )
            if market == "on-demand":
                dear += len(new)
                self._fresh.update(dict.fromkeys(new, time.time()))
            created.update(new)
        if not created:
            raise refusal
        return created

    def _ask(
        self, node_config: dict[str, Any], tags: dict[str, str], count: int, zones: list[Attempt]
    ) -> dict[str, Any]:
        """One instance type on one market, in the first of these zones that has it."""
        first = zones[0]
        subnet = {zone: name for name, zone in self._zones.items()}
        config = {
            **node_config,
            "InstanceType": first.pool.type,
            "SubnetIds": [subnet[each.pool.zone] for each in zones],
        }
        if first.market == "on-demand":
            del config["InstanceMarketOptions"]
        log.info("asking for %d %s, %s", count, first.pool.type, first.market)
        created: dict[str, Any] = super().create_node(
            config, {**tags, MARKET_TAG: first.market}, count
        )
        return created

    def _pools(self, node_config: Mapping[str, Any]) -> list[Pool]:
        subnets = node_config["SubnetIds"]
        unknown = [name for name in subnets if name not in self._zones]
        if unknown:
            for subnet in self.ec2.subnets.filter(SubnetIds=unknown):
                self._zones[subnet.id] = subnet.availability_zone
        wanted = node_config["InstanceType"]
        types = next((names for names in self._alike if wanted in names), [wanted])
        zones = dict.fromkeys(self._zones[name] for name in subnets)
        offers = [(type_, zone) for type_ in types for zone in zones]
        self._offers.update(dict.fromkeys(types, offers))
        return [self._pool(*offer) for offer in offers]

    def _look_back(self, pools: list[Pool], now: float) -> None:
        """Once: which hours are cheap is known from AWS's history, where there is a deadline."""
        if self._terms.deadline is None or self._looked_back:
            return
        self._looked_back = True
        past = [hourly(pool.type, pool.zone, now - BEFORE_S, now) for pool in pools]
        self._memory = self._memory.told(past)

    def _pool(self, type_: str, zone: str) -> Pool:
        listed, now = price(type_), time.time()
        on_demand = listed.ceiling(zone)
        spot, until = self._quotes.get((type_, zone), (0.0, 0.0))
        if now > until:
            quote = highest(type_, zone, now - 1, now)
            typical = listed.spot * on_demand / listed.on_demand
            spot = typical if quote.refused else quote.hourly
            self._quotes[type_, zone] = spot, now + QUOTED_S
        return Pool(type_, zone, spot, on_demand)

    def _on_demand(self) -> int:
        """Worker nodes on demand that stand in for spot: those listed, and those just launched."""
        super().non_terminated_nodes({})
        now = time.time()
        self._fresh = {k: at for k, at in self._fresh.items() if now - at < UNLISTED_S}
        listed = [k for k in self.cached_nodes if self.tag_cache[k].get(MARKET_TAG) == "on-demand"]
        return len({*listed, *self._fresh})

    def _tick(self, now: float) -> None:
        kinds = {name: self.tag_cache[name].get(TAG_RAY_NODE_KIND) for name in self.cached_nodes}
        workers = [name for name, kind in kinds.items() if kind == NODE_KIND_WORKER]
        if workers:
            self._renew(now)
        with self._launching:
            self._memory = self._memory.looked(len(workers), now, most=self._most)
            if now - self._considered < CONSIDER_S:
                return
            self._considered = now
            dear = self.to_give_back(now)
        for name in dear:
            _drain(name, now + NOTICE_S)
            self._given_back.add(name)

    def to_give_back(self, now: float) -> list[str]:
        """Workers for which something cheaper is likely to be had, restart and all."""
        dear = []
        beside = max(0, len(self.cached_nodes) - 2)  # but for the head and itself
        for name, node in self.cached_nodes.items():
            market = self.tag_cache[name].get(MARKET_TAG)
            offers = self._offers.get(node.instance_type)
            if market is None or offers is None or name in self._given_back:
                continue
            pools = [self._pool(*offer) for offer in offers]
            here = Attempt(self._pool(node.instance_type, _zone(node)), market)
            self._memory = self._memory.priced(self._terms, pools, now)
            if gives_back(self._terms, pools, self._memory, here, now, beside=beside):
                dear.append(name)
        return dear

    def _renew(self, now: float) -> None:
        """The head stays for another `head_ttl_s`."""
        if self._on_head:
            ttl = float(self.provider_config["head_ttl_s"])
            watchdog.write_deadline(LEASE.expanduser(), now + ttl)


def _zone(node: Any) -> str:
    zone: str = node.placement["AvailabilityZone"]
    return zone


def _drain(instance: str, until: float) -> None:
    """Has Ray drain an instance, as for a spot notice: training on it is saved, and goes on."""
    gcs = f"{get_node_ip_address()}:{GCS_PORT}"
    for node in GcsClient(address=gcs).get_all_node_info().values():
        if node.instance_id == instance:
            Head(gcs, node.node_id.hex()).drain(Notice("tenure", until))
