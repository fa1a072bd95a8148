"""What a node costs: a small table of list prices, and dollars from seconds.

raygen prices
"""

from __future__ import annotations

from dataclasses import dataclass

from raygen.errors import ConfigError

TABLE_DATE = "2025-06-15"
"""When the prices below were list prices (AWS us-east-1, Linux, on demand)."""

_HOURLY = {
    # What this machine's time would cost on a rented two-core one.
    "local": ("c7i.large, 2 vCPU", 0.08925, 2),
    "c7i.large": ("2 vCPU", 0.08925, 2),
    "c7i.4xlarge": ("16 vCPU", 0.714, 16),
    "g4dn.xlarge": ("1 x T4 16 GB", 0.526, 4),
    "g5.xlarge": ("1 x A10G 24 GB", 1.006, 4),
    "g6.xlarge": ("1 x L4 24 GB", 0.8048, 4),
    "g6e.xlarge": ("1 x L40S 48 GB", 1.861, 4),
    "p4d.24xlarge": ("8 x A100 40 GB", 21.9576, 96),
    "p5.48xlarge": ("8 x H100 80 GB", 55.04, 192),
}


@dataclass(frozen=True)
class Price:
    """A node type's price in dollars an hour, on demand; spot is usually well below it.

    `cpus` is its number of vCPUs.
    """

    node: str
    hardware: str
    hourly: float
    cpus: int

    def dollars(self, seconds: float, nodes: int = 1) -> float:
        """What `nodes` such nodes cost for `seconds`."""
        return self.hourly * nodes * seconds / 3600


def prices() -> list[Price]:
    """The whole table."""
    return [Price(node, *entry) for node, entry in _HOURLY.items()]


def price(node: str) -> Price:
    """The price of a node type. Raises ConfigError naming those that are known."""
    if node not in _HOURLY:
        known = ", ".join(_HOURLY)
        raise ConfigError(f"train.node: no price for {node!r}; known are {known}", "train.node")
    return Price(node, *_HOURLY[node])
