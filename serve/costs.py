"""What a replica costs: its share of what its node does, for Prometheus and cluster/grafana.

    hourly()        # dollars an hour, in a replica

The share is the largest that it holds of any of the node's resources, as a trial's is in the
ledger. Prices are those of `raygen prices`: usual spot prices for a spot node, or on demand.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ray

from raygen.cost.node import Identity, ask_metadata, identify, share
from raygen.cost.prices import price
from raygen.errors import ConfigError


def hourly() -> float | None:
    """Dollars an hour that the calling actor costs; None where its node has no price."""
    context = ray.get_runtime_context()
    node = next(item for item in ray.nodes() if item["NodeID"] == context.get_node_id())
    return share_of(node, context.get_assigned_resources(), ask_metadata())


def share_of(
    node: Mapping[str, Any], held: Mapping[str, float], metadata: Identity | None
) -> float | None:
    """The same of a node, as `ray.nodes` has it, and of what is held of its resources."""
    found = identify(node.get("Labels", {}), metadata)
    try:
        listed = price(found.type)
    except ConfigError:
        return None
    spot = found.market == "spot"
    dollars = listed.usual(found.zone) if spot else listed.ceiling(found.zone)
    return dollars * share(held, node["Resources"])
