"""AWS's own spot prices, by instance type and zone, believed only where they can be true.

A price that is old, zero, above the on-demand price or next to nothing is not taken: the on-demand
price, which no spot price exceeds, stands in for it, and a line says so.
"""

from __future__ import annotations

import bisect
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import boto3
import botocore.exceptions as aws
from botocore.config import Config as BotoConfig

from raygen.cost.prices import price, table_date

# AWS lists changes of a price, so the last one may be hours old and still hold.
STALE_S = 24 * 3600.0
HOUR_S = 3600.0
ABOVE, BELOW = 1.1, 0.01  # of the on-demand price: what is outside is absurd


@dataclass(frozen=True)
class Quote:
    """Dollars an hour, where they come from, and why it is not what was asked for, or nothing."""

    hourly: float
    source: str
    refused: str = ""


def highest(type_: str, zone: str, since: float, until: float) -> Quote:
    """The highest spot price of a type in a zone between two moments, Unix seconds.

    Where AWS gives none that can be believed it is the on-demand price of the table.
    Raises ConfigError for a type that the table does not know.
    """
    bound = price(type_).ceiling(zone)
    table = f"on demand, table of {table_date()}"
    history, why = _believed(type_, zone, since, until)
    if why:
        return Quote(bound, table, f"{why}: ${bound:g} is charged, {table}")
    value, at = max(history)
    return Quote(min(value, bound), f"spot, AWS {zone}, {at:%Y-%m-%d %H:%M}")


def hourly(type_: str, zone: str, since: float, until: float) -> list[float]:
    """What a type cost as spot at the end of each hour between two moments, Unix seconds.

    Nothing where AWS gives no prices that can be believed, or none that are so old.
    """
    history, why = _believed(type_, zone, since, until)
    changes = sorted((at.timestamp(), value) for value, at in history)
    if why or changes[0][0] > since + HOUR_S:
        return []
    starts = [at for at, _ in changes]
    hours = int((until - since) / HOUR_S)
    ends = [since + HOUR_S * (hour + 1) for hour in range(hours)]
    return [changes[bisect.bisect_right(starts, end) - 1][1] for end in ends]


def region(zone: str) -> str:
    """The region of a zone: us-east-1 of us-east-1a, us-central1 of GCP's us-central1-a."""
    return zone.rstrip("abcdefghij").rstrip("-")


def _believed(
    type_: str, zone: str, since: float, until: float
) -> tuple[list[tuple[float, datetime]], str]:
    """The prices that held in the time, and why they are not to be believed, or nothing."""
    try:
        history = _history(type_, zone, since, until)
    except (aws.BotoCoreError, aws.ClientError) as error:
        said = " ".join(str(error).split())
        return [], f"AWS gives no spot price of {type_} in {zone} ({said})"
    why = _absurd(history, since, price(type_).ceiling(zone)) if history else "has none"
    return history, why and f"the spot price that AWS gives for {type_} in {zone} {why}"


def _absurd(history: list[tuple[float, datetime]], since: float, bound: float) -> str:
    newest = max(at for _, at in history)
    if newest.timestamp() < since - STALE_S:
        return f"is of {newest:%Y-%m-%d}"
    values = [value for value, _ in history]
    if min(values) <= 0:
        return "is zero"
    if max(values) > ABOVE * bound:
        return f"is ${max(values):g}, above the on-demand ${bound:g}"
    if min(values) < BELOW * bound:
        return f"is ${min(values):g}, below {BELOW:.0%} of the on-demand ${bound:g}"
    return ""


def _history(type_: str, zone: str, since: float, until: float) -> list[tuple[float, datetime]]:
    """(dollars an hour, from when on) of each price that held in the time."""
    config = BotoConfig(retries={"mode": "standard", "max_attempts": 3}, connect_timeout=5)
    client = boto3.client("ec2", region_name=region(zone), config=config)
    pages = client.get_paginator("describe_spot_price_history").paginate(
        InstanceTypes=[type_],
        AvailabilityZone=zone,
        ProductDescriptions=["Linux/UNIX"],
        StartTime=datetime.fromtimestamp(since, UTC),
        EndTime=datetime.fromtimestamp(max(until, since + 1), UTC) + timedelta(seconds=1),
    )
    found: list[tuple[float, datetime]] = []
    for page in pages:
        found += [_point(item) for item in page["SpotPriceHistory"]]
    return found


def _point(item: dict[str, Any]) -> tuple[float, datetime]:
    return float(item["SpotPrice"]), item["Timestamp"]
