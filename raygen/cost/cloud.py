"""What AWS says of machines whose leases nobody settled: `raygen cost PLACE --settle`."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from datetime import UTC, datetime

import boto3
import botocore.exceptions as aws

from raygen.cost.book import HOUR, Book
from raygen.cost.entries import Entry, Lease, Settled
from raygen.cost.ledger import Ledger
from raygen.cost.prices import price
from raygen.cost.spot import region
from raygen.errors import AccessError

# As in "User initiated (2026-11-23 03:00:00 GMT)".
_WHEN = re.compile(r"\((\d{4}-\d\d-\d\d \d\d:\d\d:\d\d) (?:GMT|UTC)\)")


def settle(ledger: Ledger) -> list[str]:
    """Settles leases that were charged in full by when AWS ended their machines; a line for each.

    Of machines that run, or that AWS has forgotten (an hour after their end), nothing changes.
    Raises AccessError where AWS does not answer.
    """
    ledger.refresh()
    ends = {lease.id: _ended(lease) for lease in ledger.book.unmatched(time.time())}
    known = {name: end for name, end in ends.items() if end is not None}
    lines: list[str] = []

    def decide(book: Book) -> Sequence[Entry]:
        lines.clear()
        entries: list[Entry] = []
        for lease in book.unmatched(time.time()):
            if lease.id in known:
                end = max(lease.since, known[lease.id])
                entries.append(Settled(lease.id, end, lease.hourly, "failed"))
                back = lease.dollars - lease.hourly * (end - lease.since) / HOUR
                less = "less" if back >= 0 else "more"  # it may have outlived its driver
                said = f"${abs(back):.4f} {less} than was leased"
                lines.append(f"{lease.type} {lease.instance}: {said}")
        return entries

    ledger.commit(decide)
    return lines


def _ended(lease: Lease) -> float | None:
    """When the machine of a lease was ended, where AWS says so."""
    if not lease.instance or price(lease.type).cloud != "aws":
        return None
    try:
        client = boto3.client("ec2", region_name=region(lease.zone))
        found = client.describe_instances(InstanceIds=[lease.instance])
    except aws.ClientError as error:
        if error.response["Error"]["Code"].startswith("InvalidInstanceID"):
            return None
        raise AccessError(f"AWS says nothing of {lease.instance}: {error}") from None
    except aws.BotoCoreError as error:
        raise AccessError(f"AWS says nothing of {lease.instance}: {error}") from None
    instance = found["Reservations"][0]["Instances"][0]
    when = _WHEN.search(instance.get("StateTransitionReason", ""))
    if instance["State"]["Name"] not in ("shutting-down", "terminated") or when is None:
        return None
    return datetime.fromisoformat(when[1]).replace(tzinfo=UTC).timestamp()
