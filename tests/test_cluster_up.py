"""`ray up cluster/cluster.yaml` as it is shipped, on a bench of real hosts: minutes, root only."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from raygen.cost.prices import price
from tests.cluster_bench import GATEWAY, ROOT, Bench, why_not
from tests.cluster_runs import SMALL, edited, prepare, submit, until, up, workers
from tests.ec2_proxy import IMAGE

WHY_NOT = why_not()
pytestmark = [
    pytest.mark.root,
    pytest.mark.slow,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(bool(WHY_NOT), reason=f"the cluster bench {WHY_NOT}"),
]
LEASES = """
import json
import time
from raygen.cost.ledger import Ledger
ledger = Ledger("s3://clips/runs/dear")
leases = ledger.book.leases.values()
print("LEASES", json.dumps([[x.purpose, x.type, x.market, x.hourly] for x in leases]))
"""
LAUNCH = """
import pathlib
import boto3
ec2 = boto3.client("ec2")
key = pathlib.Path("~/.ssh/alone.pem").expanduser()
key.write_text(ec2.create_key_pair(KeyName="alone")["KeyMaterial"])
key.chmod(0o600)
subnet = ec2.describe_subnets()["Subnets"][0]["SubnetId"]
ec2.run_instances(
    ImageId="{image}", MinCount=1, MaxCount=1, KeyName="alone", SubnetId=subnet,
    MetadataOptions={options},
)
"""
NESTED = """
machine=$1 address=$2 net=10.${2#172.31.}
within() { nsenter --target="$1" --net "${@:2}"; }
unshare --net sleep 60 & first=$!
unshare --net sleep 60 & second=$!
trap 'kill $first $second' EXIT
until within $first ip link set lo up && within $second ip link set lo up; do sleep 0.1; done
sleep 0.5
link() {  # machine, container, address on the machine, address in the container
    within $1 ip link add inner type veth peer name eth0 netns $2
    within $1 ip addr add $3/25 dev inner
    within $1 ip link set inner up
    within $1 sh -c 'echo 1 >/proc/sys/net/ipv4/ip_forward'
    within $2 ip addr add $4/25 dev eth0
    within $2 ip link set eth0 up
    within $2 ip route add default via $3
}
link $machine $first $net.1 $net.2
link $first $second $net.129 $net.130
within $machine ip route add $net.128/25 via $net.2
ip route add $net.0/24 via $address
for where in $machine $first $second; do
    within $where curl -sS -o /dev/null --max-time 5 -X PUT 2>/dev/null \\
        -H 'X-aws-ec2-metadata-token-ttl-seconds: 60' http://169.254.169.254/latest/api/token
    echo $?
done
"""
"""Two namespaces, as containers have them, one within the other; curl's exit codes from each."""
WHAT_NODES_ARE = """
import json, ray
ray.init("auto", log_to_driver=False, logging_level="error")
print("NODES", json.dumps([n["Labels"] for n in ray.nodes() if n["Alive"]]))
"""


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    """A cloud with an account: a bucket with clips, and a user with a token."""
    with Bench(tmp_path / "b") as running:
        prepare(running)
        yield running


def labels(bench: Bench) -> dict[str, dict[str, str]]:
    """What Ray says of each node, by instance type."""
    done = bench.on_head(f"python -c '{WHAT_NODES_ARE}'", timeout=300)
    line = next(line for line in done.output.splitlines() if line.startswith("NODES "))
    found: list[dict[str, str]] = json.loads(line.partition(" ")[2])
    return {each["raygen.io/instance-type"]: each for each in found}


def permitted(name: str) -> set[str]:
    policy = json.loads((ROOT / "cluster" / "iam" / name).read_text())
    return {action for each in policy["Statement"] for action in each["Action"]}


def assert_nobody_else_may_enter(bench: Bench, head: dict[str, Any]) -> None:
    """Not without the token, and to the dashboard, which takes jobs, through the tunnel only."""
    where = f"GcsClient(address='{head['private']}:6379')"
    ask = f"from ray._raylet import GcsClient; print('NODES', len({where}.get_all_node_info()))"
    assert "NODES 1" in bench.python(ask, timeout=300).output
    for env in ({"RAY_AUTH_TOKEN": "0" * 64}, {"RAY_AUTH_MODE": "disabled"}):
        done = bench.run("python", "-c", ask, timeout=300, env=env)
        assert done.code != 0, env
        assert "nauthenticated" in done.output or "uthentication" in done.output, done.output
    reach = f"import socket; socket.create_connection(({head['private']!r}, 8265), 5)"
    assert "refused" in bench.python(reach).output


def test_three_lines_edited_a_training_and_nothing_is_left(bench: Bench) -> None:
    place = edited(bench)
    up(bench, place)
    (head,) = bench.instances()
    assert head["name"] == "head"
    assert head["market"] == "on-demand"
    assert_nobody_else_may_enter(bench, head)

    train = ["raygen", "train", "tiny", *SMALL, "name=first", "train.steps=6"]
    done = submit(bench, place, *train, "train.workers=2", "train.cpus_per_worker=4")
    assert done.code == 0, done.output[-4000:]
    assert "succeeded" in done.output

    shipped = yaml.safe_load(place.read_text())["available_node_types"]
    launches = bench.calls("RunInstances")
    assert {call.who for call in launches if call.market == "spot"} == {"RAYGENHEAD"}
    assert sum(int(call.params["MaxCount"]) for call in launches) == 3
    for call in launches:
        kind = "head" if call.market == "on-demand" else "gpu"
        tags = [v for k, v in call.params.items() if k.startswith("TagSpecification")]
        assert {"project", "raygen", "volume", "ray-cluster-name"} <= set(tags)
        assert call.params["MetadataOptions.HttpTokens"] == "required"
        assert call.params["MetadataOptions.HttpPutResponseHopLimit"] == "2"
        assert call.params["BlockDeviceMapping.1.Ebs.Encrypted"] == "true"
        assert call.params["BlockDeviceMapping.1.Ebs.VolumeType"] == "gp3"
        assert call.params["InstanceInitiatedShutdownBehavior"] == "terminate"
        profile = shipped[kind]["node_config"]["IamInstanceProfile"]["Name"]
        assert call.params["IamInstanceProfile.Name"] == profile
        assert call.params["ImageId"].startswith("resolve:ssm:/aws/service/deeplearning/")
    spot = next(call for call in launches if call.market == "spot")
    assert spot.params["InstanceMarketOptions.SpotOptions.SpotInstanceType"] == "one-time"

    groups = "import boto3, json; g = boto3.client('ec2').describe_security_groups();"
    show = "print(json.dumps({x['GroupName']: x['IpPermissions'] for x in g['SecurityGroups']}))"
    rules = json.loads(bench.python(groups + show).output)
    ranges = {
        (name, rule.get("FromPort"), each["CidrIp"])
        for name, found in rules.items()
        if name.startswith("raygen-")
        for rule in found
        for each in rule["IpRanges"]
    }
    assert ranges == {("raygen-raygen-head", 22, f"{GATEWAY}/32")}

    idle = shipped and yaml.safe_load(place.read_text())["idle_timeout_minutes"] * 60
    assert until(lambda: not workers(bench), idle + 240), workers(bench)
    assert [each["name"] for each in bench.instances()] == ["head"]

    done = bench.run("ray", "down", "-y", str(place), timeout=600)
    assert done.code == 0, done.output[-3000:]
    assert until(lambda: not bench.instances(), 60)

    asked: dict[str, set[str]] = {}
    for call in bench.calls():
        if call.action != "CreateBucket":
            asked.setdefault(call.who, set()).add(call.permission)
    assert set(asked) == {"USER", "RAYGENHEAD", "RAYGENWORKER"}  # nobody without a name
    # The user filled the bucket as well, which is nobody's policy here.
    mine = {name for name in asked["USER"] if not name.startswith("s3:")}
    assert mine <= permitted("user.json")
    assert asked["RAYGENHEAD"] <= permitted("head.json")
    assert asked["RAYGENWORKER"] <= permitted("worker.json")
    # And no more was granted to look, launch or end than is really used.
    used = mine | asked["RAYGENHEAD"] | {"iam:PassRole", "ssm:GetParameters"}
    granted = permitted("user.json") | permitted("head.json")
    spare = {"ec2:RevokeSecurityGroupIngress", "iam:CreateServiceLinkedRole"}
    assert {name for name in granted - used if not name.startswith("s3:")} <= spare


def test_spot_refused_becomes_on_demand_within_the_limit_and_spot_again(bench: Bench) -> None:
    limit = 0.9  # dollars an hour: g4dn.xlarge and g6.xlarge, not g5.xlarge
    place = edited(bench, max_hourly=str(limit))
    up(bench, place)
    bench.refuse("spot")
    train = ["raygen", "train", "tiny", *SMALL, "train.steps=6", "train.cpus_per_worker=4"]
    done = submit(bench, place, *train, "name=dear", "train.workers=1")
    assert done.code == 0, done.output[-4000:]

    launches = [call for call in bench.calls("RunInstances") if call.who == "RAYGENHEAD"]
    dear = [call for call in launches if call.market == "on-demand"]
    refused = [call for call in launches if call.market == "spot"]
    assert refused
    assert all(call.refused for call in refused)
    assert len(dear) == 1
    # It was patient, and then took the cheapest.
    patience = yaml.safe_load(place.read_text())["provider"]["market"]["patience_s"]
    assert dear[0].at - refused[0].at >= patience
    type_ = dear[0].params["InstanceType"]
    assert price(type_).on_demand <= limit
    assert {call.market for call in refused if call.at < dear[0].at} == {"spot"}
    (worker,) = workers(bench)
    assert worker["market"] == "on-demand"
    known = labels(bench)[type_]
    assert known["ray.io/market-type"] == "on-demand"
    assert known["ray.io/availability-zone"] == worker["zone"]
    # What the run is charged is the on-demand price of what it had.
    done = bench.python(LEASES, timeout=300)
    line = next(line for line in done.output.splitlines() if line.startswith("LEASES "))
    leased = {tuple(each) for each in json.loads(line.partition(" ")[2])}
    assert ("worker", type_, "on-demand", price(type_).on_demand) in leased

    bench.refuse("")
    again = yaml.safe_load(place.read_text())["provider"]["market"]["spot_again_s"]
    assert until(lambda: time.time() - refused[-1].at > again, again + 60)
    done = submit(bench, place, *train, "name=again", "train.workers=2")
    assert done.code == 0, done.output[-4000:]
    newest = [call for call in bench.calls("RunInstances") if call.who == "RAYGENHEAD"][-1]
    assert newest.market == "spot"
    assert not newest.refused
    assert bench.run("ray", "down", "-y", str(place), timeout=600).code == 0
    assert until(lambda: not bench.instances(), 60)


def test_the_metadata_service_gives_no_token_beyond_the_hop_limit(bench: Bench) -> None:
    worker = yaml.safe_load(edited(bench).read_text())["available_node_types"]["gpu"]
    options = worker["node_config"]["MetadataOptions"]
    done = bench.python(LAUNCH.format(image=IMAGE, options=options))
    assert done.code == 0, done.output
    assert until(lambda: bool(bench.instances()), 60)
    (machine,) = bench.instances()
    done = bench.run("bash", "-c", NESTED, "nested", str(machine["pid"]), machine["private"])
    # On the machine, and in a container of it; not in a container of that one.
    assert done.output.split() == ["0", "0", "28"], done.output  # 28: curl waited in vain


def test_what_stands_in_the_way_is_one_line(bench: Bench) -> None:
    place = edited(bench, ssh_from="[0.0.0.0/0]")
    done = bench.run("ray", "up", "-y", str(place), timeout=300)
    assert done.code != 0
    assert "0.0.0.0/0 is everybody; give your own address" in done.output
    assert "Traceback" not in done.output
    assert not bench.calls("RunInstances")
