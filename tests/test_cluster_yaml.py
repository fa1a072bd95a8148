"""cluster/cluster.yaml and cluster/iam: what Ray takes, what is safe, and what belongs together."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from cluster import aws
from cluster.market import Terms
from raygen.cost.prices import price
from raygen.errors import ConfigError

ROOT = Path(__file__).resolve().parents[1]
IAM = ROOT / "cluster" / "iam"


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """The file as Ray has it, of a user who has a token."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("token")
    monkeypatch.chdir(ROOT)
    logging.disable(logging.WARNING)
    given = yaml.safe_load((ROOT / "cluster" / "cluster.yaml").read_text())
    prepared: dict[str, Any] = prepare_config(given)
    logging.disable(logging.NOTSET)
    return prepared


def nodes(cluster: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {name: each["node_config"] for name, each in cluster["available_node_types"].items()}


def statements(name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((IAM / name).read_text())["Statement"]
    return found


def test_ray_takes_the_file_as_it_is(cluster: dict[str, Any]) -> None:
    validate_config(cluster)
    aws.check(cluster)
    mounted = [local for local in cluster["file_mounts"].values() if not local.startswith("~")]
    assert all((ROOT / local).exists() for local in mounted)


def test_what_the_user_edits_stands_in_three_marked_lines() -> None:
    lines = (ROOT / "cluster" / "cluster.yaml").read_text().splitlines()
    marked = [line for line in lines if any(f"# {n}:" in line for n in (1, 2, 3))]
    assert [line.partition(":")[0].strip() for line in marked] == [
        "region",
        "ssh_from",
        "max_hourly",
    ]


def test_the_head_runs_no_training_and_is_not_spot(cluster: dict[str, Any]) -> None:
    head = cluster["available_node_types"][cluster["head_node_type"]]
    assert head["resources"] == {"CPU": 0, "GPU": 0}
    assert head["max_workers"] == 0
    assert "InstanceMarketOptions" not in head["node_config"]


def test_workers_are_spot_of_several_types_whose_prices_are_known(cluster: dict[str, Any]) -> None:
    alike = cluster["provider"]["alike"]
    for name, node in nodes(cluster).items():
        if name == cluster["head_node_type"]:
            continue
        assert node["InstanceMarketOptions"]["MarketType"] == "spot"
        types = next(types for types in alike if node["InstanceType"] in types)
        assert len(types) >= 2
        resources = cluster["available_node_types"][name]["resources"]
        assert min(price(type_).cpus for type_ in types) == resources["CPU"]
        # The cheapest of them may be had on demand where spot is refused, for the one-GPU types.
        assert name != "gpu" or any(
            price(type_).on_demand <= cluster["provider"]["market"]["max_hourly"] for type_ in types
        )
    assert 0 < Terms.parse(cluster["provider"]["market"]).share < 1


def test_every_node_is_launched_safely_and_leaves_no_bill(cluster: dict[str, Any]) -> None:
    for name, node in nodes(cluster).items():
        assert node["MetadataOptions"]["HttpTokens"] == "required"
        assert node["MetadataOptions"]["HttpPutResponseHopLimit"] == 2
        disks = [disk["Ebs"] for disk in node["BlockDeviceMappings"]]
        assert all(disk["Encrypted"] and disk["VolumeType"] == "gp3" for disk in disks)
        assert all(disk["DeleteOnTermination"] for disk in disks)
        # The watchdogs end a machine by shutting it down.
        assert node["InstanceInitiatedShutdownBehavior"] == "terminate"
        tagged = {each["ResourceType"] for each in node["TagSpecifications"]}
        assert tagged == {"instance", "volume"}
        assert node["ImageId"]
        role = "raygen-head" if name == cluster["head_node_type"] else "raygen-worker"
        assert node["IamInstanceProfile"] == {"Name": role}
    provider = cluster["provider"]
    assert provider["cache_stopped_nodes"] is False
    assert provider["use_internal_ips"] is True
    assert 0 < cluster["idle_timeout_minutes"] <= 10
    assert provider["head_ttl_s"] <= 86400


def test_ray_wants_a_token_and_its_dashboard_is_on_loopback(cluster: dict[str, Any]) -> None:
    head, worker = cluster["head_start_ray_commands"], cluster["worker_start_ray_commands"]
    started = next(command for command in head if "ray start --head" in command)
    assert "--dashboard-host=127.0.0.1" in started
    assert "~/.ray/auth_token" in cluster["file_mounts"]
    # What a node is it says itself, and something ends it, whoever dies.
    for commands in (head, worker):
        assert any("cluster.watcher --labels" in each and "ray start" in each for each in commands)
        assert any("cluster/keep.sh" in each for each in commands)
    assert "export RAY_AUTH_MODE=token" in (ROOT / "cluster" / "node.sh").read_text()


def test_what_is_wrong_is_said_in_one_line_with_the_fix(cluster: dict[str, Any]) -> None:
    provider = cluster["provider"]
    cases: list[tuple[dict[str, Any], str]] = [
        ({"ssh_from": ["0.0.0.0/0"]}, "everybody"),
        ({"ssh_from": []}, "checkip.amazonaws.com"),
        ({"ssh_from": ["me"]}, "'me' does not appear to be"),
        ({"market": {"shares": 1}}, "no such key"),
        ({"alike": [["g9.large"]]}, "no price for nodes of type 'g9.large'"),
    ]
    for edit, said in cases:
        with pytest.raises(ConfigError, match="(?s)" + said) as caught:
            aws.check(cluster | {"provider": provider | edit})
        assert "\n" not in str(caught.value)
    Path("~/.ray/auth_token").expanduser().unlink()
    with pytest.raises(ConfigError, match="ray get-auth-token --generate"):
        aws.check(cluster)


@pytest.mark.parametrize("name", ["user.json", "head.json", "worker.json"])
def test_no_permission_is_more_than_it_says(name: str) -> None:
    for each in statements(name):
        assert each["Effect"] == "Allow"
        assert not any("*" in action for action in each["Action"])
        # What changes anything is bound to a kind of resource, what ends or tags to an owner.
        looks = all(action.partition(":")[2].startswith("Describe") for action in each["Action"])
        assert (each["Resource"] == "*") == looks
        if "ec2:TerminateInstances" in each["Action"]:
            owned = {"aws:ResourceTag/ray-cluster-name": "raygen*"}
            assert each["Condition"] == {"StringLike": owned}


def test_the_policies_fit_the_cluster(cluster: dict[str, Any]) -> None:
    allowed = {
        name: next(s for s in statements(name) if s["Sid"] == "LaunchOwnInstances")["Condition"]
        for name in ("user.json", "head.json")
    }
    head = cluster["available_node_types"]["head"]["node_config"]["InstanceType"]
    assert allowed["user.json"]["StringEquals"]["ec2:InstanceType"] == [head]
    alike = {type_ for types in cluster["provider"]["alike"] for type_ in types}
    assert set(allowed["head.json"]["StringEquals"]["ec2:InstanceType"]) == alike
    assert cluster["cluster_name"].startswith("raygen")
    every = [each for name in allowed for each in statements(name)]
    passed = {each["Resource"] for each in every if each["Sid"] == "HandOnRole"}
    profiles = {node["IamInstanceProfile"]["Name"] for node in nodes(cluster).values()}
    assert {each.rpartition("/")[2] for each in passed} == profiles


def test_the_bucket_refuses_what_is_not_encrypted_on_its_way() -> None:
    denied = [s["Condition"] for s in statements("bucket.json") if s["Effect"] == "Deny"]
    assert {"Bool": {"aws:SecureTransport": "false"}} in denied
    rules = json.loads((IAM / "lifecycle.json").read_text())["Rules"]
    assert any("AbortIncompleteMultipartUpload" in rule for rule in rules)
    # Nothing of a run that is there is ever deleted by time alone.
    assert not any("Days" in rule.get("Expiration", {}) for rule in rules)
