"""GCP's machines in the ledger: what their metadata says, and what they cost."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from raygen.cost.cloud import settle
from raygen.cost.entries import Lease
from raygen.cost.ledger import Ledger
from raygen.cost.node import ask_metadata
from raygen.cost.prices import price
from raygen.cost.spot import region
from tests.metadata import Gcp, served


@pytest.mark.parametrize(("preemptible", "market"), [("TRUE", "spot"), ("FALSE", "on-demand")])
def test_gcps_metadata_says_what_a_machine_is(
    preemptible: str, market: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_EC2_METADATA_DISABLED", raising=False)
    with served(Gcp(preemptible)) as url:
        found = ask_metadata(url)
        assert found is not None
        assert (found.type, found.zone, found.market, found.instance) == (
            "g2-standard-4", "us-central1-a", market, "4567",
        )  # fmt: skip
        assert found.rented
        assert found.launched is not None
        assert 0 < found.launched < time.time()
        # As Google's own libraries are told of it.
        monkeypatch.setenv("GCE_METADATA_HOST", url.removeprefix("http://"))
        assert ask_metadata("http://127.0.0.1:9") is not None


def test_a_zone_lies_in_a_region() -> None:
    assert region("us-central1-a") == "us-central1"
    assert region("us-east-1b") == "us-east-1"


@pytest.mark.parametrize(("zone", "factor"), [("us-central1-a", 1.0), ("europe-west4-b", 1.6)])
def test_spot_of_gcp_costs_what_the_table_says_and_elsewhere_more(zone: str, factor: float) -> None:
    listed = price("g2-standard-4")
    assert listed.ceiling(zone) == pytest.approx(factor * listed.on_demand)
    assert listed.usual(zone) == pytest.approx(factor * listed.spot)


def test_aws_is_not_asked_when_a_machine_of_gcp_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    ledger, now = Ledger(str(tmp_path)), time.time()
    lease = Lease(
        "1", "n", "g2-standard-4", "us-central1-a", "spot", 0.7, now - 90, now - 60, 1.0,
        instance="4567",
    )  # fmt: skip
    ledger.append([lease])
    assert settle(ledger) == []
