"""The watcher of a node: notices of each cloud, labels that are true, drains, and lost heads."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import ray
from ray._private.resource_and_label_spec import ResourceAndLabelSpec

from cluster.notices import REBALANCE_S, Metadata
from cluster.watcher import LEAVE_S, Tenure, labels
from raygen.cost.cluster import _REASONS
from raygen.cost.node import Identity
from tests.metadata import Aws, Gcp, served
from tests.raylets import Nodes

ROOT = Path(__file__).parents[1]


def until(what: Callable[[], Any], seconds: float = 90) -> Any:
    """What `what` gives once it is anything; fails after so many seconds."""
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.1)
    return found


def environment(url: str, **more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if "METADATA" not in name}
    return {**kept, "AWS_EC2_METADATA_SERVICE_ENDPOINT": url, "PYTHONPATH": str(ROOT), **more}


@contextmanager
def watcher(url: str, *words: str, **more: str) -> Iterator[subprocess.Popen[str]]:
    """The command, at work; it is ended at the end."""
    process = subprocess.Popen(
        [sys.executable, "-m", "cluster.watcher", *words],
        env=environment(url, **more),
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        assert process.stderr is not None
        sys.stderr.write(process.stderr.read())


def test_aws_says_it_two_minutes_before() -> None:
    cloud = Aws()
    with served(cloud) as url:
        metadata = Metadata(url)
        assert (metadata.cloud, metadata.notices()) == ("aws", [])
        cloud.rebalance()
        (risk,) = metadata.notices()
        assert risk.kind == "rebalance"
        assert abs(risk.until - time.time() - REBALANCE_S) < 30
        cloud.notice(120)
        spot, same = metadata.notices()
        assert spot.kind == "spot"
        assert abs(spot.until - time.time() - 120) < 30
        # What has no time of its own does not move on with every look.
        assert same == risk
        only = Metadata(url, rebalance=False)
        assert [notice.kind for notice in only.notices()] == ["spot"]


def test_a_token_that_holds_no_more_is_an_error_and_then_another_is_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cloud = Aws()
    with served(cloud) as url:
        metadata = Metadata(url)
        cloud.forget()
        with pytest.raises(OSError, match="401"):
            metadata.notices()
        monkeypatch.setattr("cluster.notices.PROOF_S", 0.0)
        assert metadata.notices() == []


def test_gcp_says_it_half_a_minute_before() -> None:
    cloud = Gcp()
    with served(cloud) as url:
        metadata = Metadata(url)
        assert (metadata.cloud, metadata.notices()) == ("gcp", [])
        cloud.said["maintenance-event"] = "MIGRATE_ON_HOST_MAINTENANCE"
        assert metadata.notices() == []
        cloud.said["maintenance-event"] = "TERMINATE_ON_HOST_MAINTENANCE"
        cloud.said["preempted"] = "TRUE"
        first, second = metadata.notices()
        assert (first.kind, second.kind) == ("spot", "maintenance")
        assert time.time() < first.until < time.time() + 30
        assert metadata.notices() == [first, second]


def test_where_no_cloud_answers_nothing_is_noticed() -> None:
    metadata = Metadata("http://127.0.0.1:9")
    assert (metadata.cloud, metadata.notices()) == ("", [])


def test_labels_are_true_after_a_fallback_whatever_the_autoscaler_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The autoscaler hands the labels of the node type down like this.
    believed = '{"ray.io/market-type": "spot", "team": "video"}'
    with served(Aws("on-demand")) as url:
        printed = subprocess.run(
            f'eval "$({shlex.quote(sys.executable)} -m cluster.watcher --labels)" && env',
            shell=True,
            env=environment(url, RAY_OVERRIDE_LABELS=believed),
            cwd=ROOT,
            check=True,
            capture_output=True,
            text=True,
        ).stdout
    exported = dict(line.split("=", 1) for line in printed.splitlines() if line.startswith("RAY_"))
    assert exported["RAY_NODE_MARKET_TYPE"] == "on-demand"
    for name in ("RAY_NODE_MARKET_TYPE", "RAY_NODE_ZONE", "RAY_NODE_REGION", "RAY_OVERRIDE_LABELS"):
        monkeypatch.setenv(name, exported[name])
    spec = ResourceAndLabelSpec(num_cpus=1, memory=10**9, object_store_memory=10**8)
    found = spec.resolve(is_head=False, node_ip_address="127.0.0.1").labels
    assert {
        "ray.io/market-type": "on-demand",
        "ray.io/availability-zone": "us-east-1b",
        "ray.io/availability-region": "us-east-1",
        "raygen.io/instance-type": "g5.xlarge",
        "team": "video",
    }.items() <= found.items()


def test_a_zone_that_nobody_names_is_no_label() -> None:
    found = labels(Identity("g5.xlarge", market="spot"), {})["RAY_OVERRIDE_LABELS"]
    assert "zone" not in found


def test_a_stand_in_for_spot_leaves_after_its_tenure_and_spot_does_not() -> None:
    old = Identity("g5.xlarge", market="on-demand", launched=time.time() - 3700)
    (notice,) = Tenure(old, 3600).notices()
    assert notice.kind == "tenure"
    assert abs(notice.until - time.time() - LEAVE_S) < 30
    assert Tenure(old, 7200).notices() == []
    assert Tenure(Identity("g5.xlarge", market="spot", launched=0.0), 3600).notices() == []


@pytest.mark.parametrize(
    "words", [[], ["h:1", "--ttl", "5"], ["h:1", "--command", "true"], ["--drain", "5"]]
)
def test_a_wrong_command_line_is_one_line(words: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "cluster.watcher", *words],
        capture_output=True, text=True, cwd=ROOT, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    nodes = Nodes(2)
    yield nodes
    nodes.close()


def reason(node: str) -> str:
    """Why Ray says that a node is gone; empty while it is there."""
    (found,) = [item for item in ray.nodes() if item["NodeID"] == node]
    return "" if found["Alive"] else _REASONS[found["DeathReason"]]


def test_a_spot_notice_drains_this_node_with_its_deadline_and_no_other(nodes: Nodes) -> None:
    doomed, other = list(nodes.alive)
    cloud = Aws()
    with (
        served(cloud) as url,
        watcher(url, nodes.address, "--node", doomed) as process,
    ):
        time.sleep(1)
        assert process.poll() is None
        assert not reason(doomed)
        cloud.notice(4)
        assert until(lambda: reason(doomed)) == "preempted"
        assert not reason(other)
        # Nobody's notice any more, and no reason to end.
        assert process.poll() is None


@pytest.mark.slow
def test_sigterm_is_a_notice_where_it_is_said_to_be(nodes: Nodes) -> None:
    node = nodes.add().node_id
    with watcher("http://127.0.0.1:9", nodes.address, "--node", node, "--grace", "8") as process:
        time.sleep(5)
        process.send_signal(signal.SIGTERM)
        assert until(lambda: reason(node)) == "preempted"
        assert process.wait(30) == 0


@pytest.mark.slow
def test_a_pods_hook_drains_and_waits_until_the_node_is_gone(nodes: Nodes) -> None:
    node = nodes.add().node_id
    with watcher("http://127.0.0.1:9", nodes.address, "--node", node, "--drain", "9") as process:
        assert process.wait(60) == 0
        assert until(lambda: reason(node)) == "preempted"


@pytest.mark.slow
def test_a_machine_lives_as_long_as_its_head_says_that_it_is_its_own(
    nodes: Nodes, tmp_path: Path
) -> None:
    added = nodes.add()
    ended, lease = tmp_path / "ended", tmp_path / "raygen-head-lease"
    words = (nodes.address, "--node", added.node_id, "--ttl", "20", "--command", f"touch {ended}")
    with watcher("http://127.0.0.1:9", *words, TMPDIR=str(tmp_path)):
        until(lease.exists)
        first = float(lease.read_text())
        # It is renewed beyond the time that it had at first, and nothing happens then.
        until(lambda: time.time() > first + 5)
        assert float(lease.read_text()) > first + 5
        assert not ended.exists()
        nodes.kill(added)
        until(ended.exists, 120)
