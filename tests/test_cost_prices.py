"""What a node is and what it costs: the table, AWS's spot prices, labels and instance metadata."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path

import boto3
import pytest

from raygen.cost import spot
from raygen.cost.cloud import settle
from raygen.cost.entries import Lease, Settled
from raygen.cost.ledger import Ledger
from raygen.cost.node import Identity, ask_metadata, identify
from raygen.cost.prices import price, prices, table_date
from raygen.errors import ConfigError
from tests.metadata import Aws, Page, served

ON_DEMAND = price("g5.xlarge").on_demand


def test_two_nodes_for_half_an_hour_cost_one_node_hour() -> None:
    assert price("g5.xlarge").dollars(1800, nodes=2) == pytest.approx(ON_DEMAND)


def test_an_unknown_node_names_the_known_and_the_tables_date() -> None:
    with pytest.raises(
        ConfigError, match=r"'g5.tiny' in the table of 20\d\d-\d\d-\d\d.*g5\.xlarge"
    ):
        price("g5.tiny")


def test_the_table_is_dated_and_sane() -> None:
    assert date(2024, 1, 1) < table_date() <= date.today()
    for each in prices():
        assert 0.01 < each.on_demand < 200
        assert 0.1 * each.on_demand < each.spot <= each.on_demand
    assert {each.cloud for each in prices()} == {"aws", "gcp", "local"}


def test_the_bound_is_higher_where_the_table_is_not_at_home() -> None:
    assert price("g5.xlarge").ceiling("us-east-1b") == ON_DEMAND
    assert price("g5.xlarge").ceiling("sa-east-1a") > 1.3 * ON_DEMAND
    assert price("local").ceiling("here") == price("local").on_demand


def test_motos_dummy_of_2006_is_refused(s3: str) -> None:
    # The fixture's server is moto's for every service, and the environment leads there.
    now = time.time()
    quote = spot.highest("g5.xlarge", "us-east-1a", now - 300, now)
    assert quote.hourly == ON_DEMAND
    assert "is of 2006-01-02" in quote.refused
    assert str(table_date()) in quote.refused


@contextmanager
def aws_tells(
    changes: list[tuple[float, float]], monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """An API of AWS's form that knows one history: dollars, and Unix time from when on."""
    items = "".join(
        f"<item><instanceType>g5.xlarge</instanceType><spotPrice>{each}</spotPrice>"
        f"<timestamp>{datetime.fromtimestamp(at, UTC):%Y-%m-%dT%H:%M:%S.000Z}</timestamp></item>"
        for each, at in changes
    )
    body = (
        '<DescribeSpotPriceHistoryResponse xmlns="http://ec2.amazonaws.com/doc/2016-11-15/">'
        f"<spotPriceHistorySet>{items}</spotPriceHistorySet></DescribeSpotPriceHistoryResponse>"
    )
    with served(Page(body)) as url:
        named = {"ENDPOINT_URL": url, "ACCESS_KEY_ID": "a", "SECRET_ACCESS_KEY": "b"}
        for name, value in named.items():
            monkeypatch.setenv(f"AWS_{name}", value)
        yield


@pytest.mark.parametrize(
    ("dollars", "hourly", "why"),
    [
        ([0.41, 0.44], 0.44, ""),
        ([0.0], ON_DEMAND, "is zero"),
        ([2.5], ON_DEMAND, r"is \$2.5, above the on-demand"),
        ([0.002], ON_DEMAND, r"is \$0.002, below 1% of the on-demand"),
        ([], ON_DEMAND, "has none"),
    ],
)
def test_a_spot_price_is_believed_where_it_can_be_true(
    dollars: list[float], hourly: float, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time()
    with aws_tells([(each, now) for each in dollars], monkeypatch):
        quote = spot.highest("g5.xlarge", "us-east-1a", now - 300, now)
    assert quote.hourly == hourly
    assert re.search(why, quote.refused)
    assert bool(why) == bool(quote.refused)


def test_a_price_holds_until_the_next_one(monkeypatch: pytest.MonkeyPatch) -> None:
    now = float(int(time.time()))
    begin = now - 4 * 3600
    with aws_tells([(0.44, now - 5400), (0.40, begin - 60), (0.41, now - 5300)], monkeypatch):
        found = spot.hourly("g5.xlarge", "us-east-1a", begin, now)
        # What AWS does not tell of is not known.
        assert spot.hourly("g5.xlarge", "us-east-1a", begin - 7200, now) == []
    assert found == [0.40, 0.40, 0.41, 0.41]
    with aws_tells([(0.0, begin)], monkeypatch):
        assert spot.hourly("g5.xlarge", "us-east-1a", begin, now) == []


def test_a_cloud_that_does_not_answer_costs_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    quote = spot.highest("g5.xlarge", "us-east-1a", 0, 1)
    assert quote.hourly == ON_DEMAND
    assert "AWS gives no spot price of g5.xlarge in us-east-1a" in quote.refused


def test_aws_knows_when_a_machine_ended_that_nobody_saw_go(s3: str, tmp_path: Path) -> None:
    client = boto3.client("ec2", region_name="us-east-1")
    (ended, runs) = client.run_instances(ImageId="ami-12c6146b", MinCount=2, MaxCount=2)[
        "Instances"
    ]
    client.terminate_instances(InstanceIds=[ended["InstanceId"]])
    now, ledger = time.time(), Ledger(str(tmp_path))
    for name, instance in (("1", ended["InstanceId"]), ("2", runs["InstanceId"]), ("3", "i-0f")):
        lease = Lease(
            name, name, "g5.xlarge", "us-east-1a", "spot", 36.0, now - 3600, now - 2, 1.0,
            instance=instance,
        )  # fmt: skip
        ledger.append([replace(lease, until=now + 600) if name == "1" else lease])
    ledger.append([replace(ledger.book.leases["1"], id="4", since=now - 1000, until=now - 500)])
    # Of the machine that is gone, one lease is over: the cloud says that it lived beyond that.
    (line,) = settle(ledger)
    assert ended["InstanceId"] in line
    assert line.endswith("more than was leased")
    assert abs(ledger.book.settled["4"].end - now) < 60
    assert list(ledger.book.settled) == ["4"]
    # Another one Ray had lost, and it was charged in full.
    over = replace(ledger.book.leases["4"], id="5")
    ledger.append([over, Settled("5", over.gone_by, 36.0, "failed")])
    (line,) = settle(ledger)
    assert line.endswith("more than was leased")
    assert abs(ledger.book.settled["5"].end - now) < 60
    assert settle(ledger) == []


def test_metadata_is_believed_before_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_EC2_METADATA_DISABLED", raising=False)
    labels = {
        "ray.io/market-type": "spot",
        "ray.io/availability-zone": "us-east-1a",
        "raygen.io/instance-type": "g5.2xlarge",
    }
    with served(Aws("on-demand")) as url:
        metadata = ask_metadata(url)
    assert metadata is not None
    assert identify(labels, metadata) == metadata
    assert (metadata.type, metadata.zone, metadata.instance) == (
        "g5.xlarge",
        "us-east-1b",
        "i-0123",
    )
    assert metadata.market == "on-demand"  # it fell back from spot, and the label does not know
    assert metadata.launched == datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC).timestamp()
    assert identify(labels, None) == Identity("g5.2xlarge", "us-east-1a", "spot")
    assert identify({}, None, "c7i.large") == Identity("c7i.large")
    assert not identify({}, None, "c7i.large").rented


def test_no_metadata_service_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_EC2_METADATA_DISABLED", raising=False)
    assert ask_metadata("http://127.0.0.1:9") is None
    with served(Page("<html>a captive portal</html>")) as url:
        assert ask_metadata(url) is None
