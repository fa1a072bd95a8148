"""What a replica costs, of nodes that say what they are, and of those that do not."""

from __future__ import annotations

import pytest

from raygen.cost.node import Identity
from raygen.cost.prices import price
from serve.costs import share_of

TYPE = "g5.xlarge"
GPU_NODE = {
    "Labels": {"raygen.io/instance-type": TYPE, "ray.io/market-type": "spot"},
    "Resources": {"CPU": 4.0, "GPU": 1.0},
}


def test_a_replica_costs_its_largest_share_of_the_node() -> None:
    hour = price(TYPE).spot
    assert share_of(GPU_NODE, {"CPU": 1.0}, None) == pytest.approx(hour / 4)
    assert share_of(GPU_NODE, {"CPU": 1.0, "GPU": 0.5}, None) == pytest.approx(hour / 2)
    assert share_of(GPU_NODE, {"CPU": 1.0, "GPU": 1.0, "none": 1.0}, None) == pytest.approx(hour)


def test_the_cloud_knows_better_than_labels() -> None:
    fallen_back = Identity(TYPE, "us-east-1a", "on-demand")
    assert share_of(GPU_NODE, {"GPU": 1.0}, fallen_back) == price(TYPE).on_demand


def test_a_node_without_a_word_is_local_and_an_unknown_one_has_no_price() -> None:
    mute = {"Resources": {"CPU": 2.0}}
    assert share_of(mute, {"CPU": 2.0}, None) == price("local").on_demand
    assert share_of(mute, {"CPU": 2.0}, Identity("m1.enormous")) is None
