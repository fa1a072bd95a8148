"""The node provider against EC2's API: which market it asks, when, where, and how much of it.

moto answers, behind the proxy that refuses capacity; the provider and Ray's AWS code are as they
are.
"""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import botocore.exceptions
import pytest
from ray.autoscaler._private.aws import utils
from ray.autoscaler.node_launch_exception import NodeLaunchException
from ray.autoscaler.tags import TAG_RAY_NODE_KIND

from cluster import provider as module
from cluster.provider import MARKET_TAG, SpotFallbackProvider
from raygen.cost import watchdog
from raygen.cost.prices import price
from tests.ec2_proxy import IMAGE, Call, Proxy, read_calls, write_refusals

REGION = "us-east-1"
TYPES = ["g6.xlarge", "g5.xlarge", "g4dn.xlarge"]
CHEAPEST = min(TYPES, key=lambda name: price(name).spot)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a moto server."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with (tmp_path_factory.mktemp("moto") / "moto.log").open("wb") as log:
        moto = subprocess.Popen(words, stdout=log, stderr=subprocess.STDOUT)
    try:
        url = f"http://127.0.0.1:{port}"
        keys: dict[str, Any] = {"aws_access_key_id": "a", "aws_secret_access_key": "b"}
        client = boto3.client("ec2", region_name=REGION, endpoint_url=url, **keys)
        deadline = time.monotonic() + 60
        while True:
            try:
                client.describe_vpcs()
                break
            except botocore.exceptions.BotoCoreError:
                assert time.monotonic() < deadline
                time.sleep(0.2)
        yield url
    finally:
        moto.kill()
        moto.wait()


class Cloud:
    """The proxy's side: what was launched, and what is refused."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def refuse(self, **codes: str) -> None:
        write_refusals(self._folder, {name.replace("_", "-"): code for name, code in codes.items()})

    def launches(self) -> list[Call]:
        return [call for call in read_calls(self._folder) if call.action == "RunInstances"]

    def asked(self) -> list[tuple[str, str]]:
        """Type and market of each, in order, zones aside."""
        pairs = [(call.params["InstanceType"], call.market) for call in self.launches()]
        return [pair for k, pair in enumerate(pairs) if k == 0 or pairs[k - 1] != pair]


@pytest.fixture
def cloud(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cloud:
    proxy = Proxy(tmp_path, server)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    threading.Thread(target=proxy.serve, args=("127.0.0.1", port), daemon=True).start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "HEAD")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("ray.autoscaler._private.aws.node_provider.BOTO_CREATE_MAX_RETRIES", 1)
    utils.resource_cache.cache_clear()
    return Cloud(tmp_path)


Make = Callable[..., SpotFallbackProvider]


@pytest.fixture
def make(cloud: Cloud, tmp_path: Path) -> Make:
    """Makes the head's provider of a cluster of its own, of four workers, with such terms."""

    def provider(**terms: Any) -> SpotFallbackProvider:
        config = {
            "region": REGION,
            "market": {"patience_s": 0, "spot_again_s": 0} | terms,
            "alike": [TYPES],
            "cache_stopped_nodes": False,
            "most_workers": 4,
            "on_head": True,
            "head_ttl_s": 600,
        }
        return SpotFallbackProvider(config, tmp_path.name)

    return provider


def launch(provider: SpotFallbackProvider, count: int = 1) -> dict[str, Any]:
    subnets = [subnet.id for subnet in provider.ec2.subnets.all()][:3]
    config = {
        "InstanceType": TYPES[0],
        "ImageId": IMAGE,
        "SubnetIds": subnets,
        "InstanceMarketOptions": {"MarketType": "spot"},
    }
    tags = {TAG_RAY_NODE_KIND: "worker", "ray-launch-config": "x"}
    return provider.create_node(config, tags, count)


def test_it_asks_for_spot_of_the_cheapest_type(make: Make, cloud: Cloud) -> None:
    nodes = launch(make(), 2)
    assert len(nodes) == 2
    assert cloud.asked() == [(CHEAPEST, "spot")]
    assert {node.instance_lifecycle for node in nodes.values()} == {"spot"}


def test_with_a_deadline_it_asks_once_what_spot_cost_before(
    make: Make, cloud: Cloud, tmp_path: Path
) -> None:
    provider = make(deadline=time.time() + 90_000, work_s=3600)
    launch(provider)
    launch(provider)
    asked = [c for c in read_calls(tmp_path) if c.action == "DescribeSpotPriceHistory"]
    back = [c for c in asked if c.params["EndTime"][:10] != c.params["StartTime"][:10]]
    subnets = len([*provider.ec2.subnets.all()][:3])
    assert len(back) == len(TYPES) * subnets
    assert cloud.asked() == [(CHEAPEST, "spot")]


def test_refused_spot_of_every_type_and_zone_becomes_on_demand(make: Make, cloud: Cloud) -> None:
    cloud.refuse(spot="InsufficientInstanceCapacity")
    provider = make()
    # Patience begins with the first refusal: what is refused now is on demand at the next try.
    with pytest.raises(NodeLaunchException, match="InsufficientInstanceCapacity"):
        launch(provider)
    spot = {(c.params["InstanceType"], c.params["SubnetId"]) for c in cloud.launches()}
    assert len(spot) == len(cloud.launches()) == 9
    nodes = launch(provider)
    assert {node.instance_lifecycle for node in nodes.values()} == {None}
    cheapest = min(TYPES, key=lambda name: price(name).on_demand)
    assert cloud.asked()[-1] == (cheapest, "on-demand")
    # What a node really is stands in its tags, for people who look at the bill.
    (name,) = nodes
    provider.non_terminated_nodes({})
    assert provider.node_tags(name)[MARKET_TAG] == "on-demand"


def test_it_waits_for_its_patience_and_asks_no_zone_twice_meanwhile(
    make: Make, cloud: Cloud
) -> None:
    cloud.refuse(spot="InsufficientInstanceCapacity")
    provider = make(patience_s=3600, spot_again_s=3600)
    for _ in range(3):
        with pytest.raises(NodeLaunchException):
            launch(provider)
    assert len(cloud.launches()) == 9
    assert {call.market for call in cloud.launches()} == {"spot"}


def test_on_demand_stays_within_its_share(make: Make, cloud: Cloud) -> None:
    cloud.refuse(spot="MaxSpotInstanceCountExceeded")
    provider = make(share=0.5)
    with pytest.raises(NodeLaunchException):
        launch(provider)
    # Of four workers two; EC2's own list counts, so a provider that starts anew knows of them.
    assert len(launch(provider, 4)) == 2
    again = make(share=0.5)
    for _ in range(2):
        with pytest.raises(NodeLaunchException):
            launch(again)
    assert sum(call.market == "on-demand" for call in cloud.launches()) == 1


def test_no_on_demand_above_the_price_limit(make: Make, cloud: Cloud) -> None:
    cloud.refuse(spot="InsufficientInstanceCapacity")
    below = min(price(name).on_demand for name in TYPES) - 0.01
    provider = make(max_hourly=below)
    for _ in range(2):
        with pytest.raises(NodeLaunchException):
            launch(provider)
    assert {call.market for call in cloud.launches()} == {"spot"}


def test_it_returns_to_spot(make: Make, cloud: Cloud) -> None:
    cloud.refuse(spot="InsufficientInstanceCapacity")
    provider = make()
    with pytest.raises(NodeLaunchException):
        launch(provider)
    launch(provider)
    cloud.refuse()
    (node,) = launch(provider).values()
    assert node.instance_lifecycle == "spot"
    # And the patience begins anew.
    cloud.refuse(spot="InsufficientInstanceCapacity")
    with pytest.raises(NodeLaunchException):
        launch(make(patience_s=3600))


def test_an_error_that_is_no_lack_of_capacity_is_not_paid_around(make: Make, cloud: Cloud) -> None:
    cloud.refuse(spot="UnauthorizedOperation")
    provider = make()
    for _ in range(2):
        with pytest.raises(NodeLaunchException) as caught:
            launch(provider)
        assert caught.value.category == "UnauthorizedOperation"
    assert {call.market for call in cloud.launches()} == {"spot"}


def test_the_head_may_stay_while_there_are_workers(make: Make) -> None:
    provider = make()
    lease = module.LEASE.expanduser()
    provider.non_terminated_nodes({})
    assert not lease.exists()
    (name,) = launch(provider)
    granted = watchdog.deadline(lease)
    assert granted is not None
    assert 590 < granted - time.time() <= 600
    time.sleep(0.05)
    provider.non_terminated_nodes({})
    renewed = watchdog.deadline(lease)
    assert renewed is not None
    assert renewed > granted
    provider.terminate_nodes([name])
    provider.non_terminated_nodes({})
    provider.non_terminated_nodes({})
    assert watchdog.deadline(lease) == renewed


def test_a_stand_in_is_given_back_once_spot_is_likely_again(make: Make, cloud: Cloud) -> None:
    cloud.refuse(spot="InsufficientInstanceCapacity")
    provider = make()
    with pytest.raises(NodeLaunchException):
        launch(provider)
    (dear,) = launch(provider)
    provider.non_terminated_nodes({})
    now = time.time()
    # Right after the refusals spot is not to be had; hours later it may well be.
    assert provider.to_give_back(now) == []
    assert provider.to_give_back(now + 6 * 3600) == [dear]
