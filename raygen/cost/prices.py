"""The price table that ships with raygen, dated: what a node costs on demand, and about, as spot.

raygen prices
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from raygen.errors import ConfigError

TABLE = Path(__file__).with_name("prices.yaml")


@dataclass(frozen=True)
class Price:
    """What a node type costs, dollars an hour: on demand, and typically as spot.

    `cloud` is aws, gcp or local; `cpus` is its number of vCPUs.
    """

    node: str
    cloud: str
    hardware: str
    cpus: int
    on_demand: float
    spot: float

    def ceiling(self, zone: str = "") -> float:
        """The most that an hour costs in a zone, on whatever market: the on-demand price.

        The table is of one region a cloud; in others it is dearer, by a factor that it bounds.
        """
        home = not zone or self.cloud == "local" or zone.startswith(tuple(_document()["home"]))
        return self.on_demand if home else self.on_demand * float(_document()["elsewhere"])

    def usual(self, zone: str = "") -> float:
        """What an hour of spot usually costs in a zone: dearer by as much as on demand is."""
        return self.spot * self.ceiling(zone) / self.on_demand

    def dollars(self, seconds: float, nodes: int = 1) -> float:
        """What `nodes` such nodes cost for `seconds`, on demand."""
        return self.on_demand * nodes * seconds / 3600


def table_date() -> date:
    """When the prices of the table were list prices."""
    dated: date = _document()["date"]
    return dated


def prices() -> list[Price]:
    """The whole table."""
    return [Price(node, *entry) for node, entry in _document()["types"].items()]


def price(node: str) -> Price:
    """The price of a node type. Raises ConfigError naming those that are known."""
    types = _document()["types"]
    if node not in types:
        raise ConfigError(
            f"no price for nodes of type {node!r} in the table of {table_date()}; known are "
            f"{', '.join(types)}",
            "train.node",
        )
    return Price(node, *types[node])


@cache
def _document() -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load(TABLE.read_text(encoding="utf-8"))
    return document
