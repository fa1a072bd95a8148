"""`raygen status`: a running cluster of several nodes, and ledgers beside it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster

from raygen import status
from raygen.cost.book import Book
from raygen.cost.entries import Lease, Settled
from raygen.cost.ledger import Ledger
from raygen.cost.prices import price
from tests.conftest import user_environment

SPOT = {
    "ray.io/market-type": "spot",
    "ray.io/availability-zone": "us-east-1b",
    "raygen.io/instance-type": "g5.xlarge",
}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    Path(os.environ.get("RAY_TMPDIR", "/tmp"), "ray").mkdir(parents=True, exist_ok=True)
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False}
    )
    cluster.add_node(num_cpus=2, labels=SPOT)
    ray.init(cluster.address, log_to_driver=False, logging_level="error")
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def command(*words: str, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "raygen", "status", *words],
        env={**user_environment(), **more}, capture_output=True, text=True, check=False,
    )  # fmt: skip


def entered(place: Path, now: float) -> None:
    """Two hours of spot that ended at a notice an hour ago, and an hour on demand still going."""
    hours = [now - 3 * 3600, now - 3600]
    gone = Lease("1", "a", "g5.xlarge", "us-east-1b", "spot", 1.0, hours[0], hours[1], 60.0)
    here = Lease("2", "b", "g5.xlarge", "us-east-1b", "on-demand", 1.0, hours[1], now + 60, 60.0)
    Ledger(str(place)).append([gone, Settled("1", hours[1], 0.4, "preempted"), here])


def test_nodes_are_what_their_labels_say_and_do_what_actors_do(cluster: Cluster) -> None:
    @ray.remote(num_cpus=1)
    class ServeReplica:
        def ready(self) -> bool:
            return True

    replica = ServeReplica.remote()  # type: ignore[attr-defined]
    assert ray.get(replica.ready.remote())
    found = status.find()
    head, worker = found.nodes
    assert (head.head, head.type, head.hourly) == (True, "", None)
    assert (worker.head, worker.type, worker.zone, worker.market) == (
        False, "g5.xlarge", "us-east-1b", "spot",
    )  # fmt: skip
    assert worker.hourly == found.hourly == price("g5.xlarge").spot
    assert (worker.used["CPU"], worker.has["CPU"]) == (1, 2)
    assert worker.runs == {"serving": 1}
    assert found.today is None
    assert "2 nodes, about $0.45 an hour and 1 whose type has no price" in found.notes()[0]
    ray.kill(replica)


def test_dollars_of_today_are_those_since_midnight(cluster: Cluster, tmp_path: Path) -> None:
    noon = time.time() // 86400 * 86400 + 43200
    entered(tmp_path, noon)
    found = status.find([str(tmp_path)], noon)
    assert found.today == found.spent == pytest.approx(2 * 0.4 + 1.0)
    assert (found.preempted_today, found.failed_today) == (1, 0)
    # Two hours after midnight one of the three is of the day before.
    later = tmp_path / "night"
    entered(later, noon - 36000)
    night = status.find([str(later)], noon - 36000)
    assert night.today == pytest.approx(0.4 + 1.0)
    assert night.spent == pytest.approx(2 * 0.4 + 1.0)


def test_the_command_prints_a_table_or_json(cluster: Cluster, tmp_path: Path) -> None:
    entered(tmp_path, time.time())
    done = command(str(tmp_path), "--json", RAY_ADDRESS=cluster.address, RAY_AUTH_MODE="disabled")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert [node["market"] for node in document["nodes"]] == ["", "spot"]
    assert document["hourly"] == price("g5.xlarge").spot
    assert document["spent"] == pytest.approx(1.8, abs=0.05)


@pytest.mark.slow
def test_the_table_has_a_line_a_node(cluster: Cluster) -> None:
    done = command(RAY_ADDRESS=cluster.address, RAY_AUTH_MODE="disabled")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("us-east-1b") == 1
    assert "2 nodes, about $0.45 an hour" in done.stdout


def test_where_no_ray_runs_one_line_says_what_to_do() -> None:
    done = command(RAY_ADDRESS="127.0.0.1:9")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("raygen: no Ray answers at 127.0.0.1:9: run this on the cluster's head")


def test_a_nodes_dollars_are_those_of_its_time_in_between() -> None:
    lease = Lease("1", "a", "g5.xlarge", "", "spot", 3.6, 0.0, 900.0, 100.0)
    book = Book.of([lease])
    assert book.between(100.0, 300.0) == pytest.approx(0.2)
    # A node is gone when its lease and the time to go are over.
    assert book.between(900.0, 5000.0) == pytest.approx(0.1)
    settled = Book.of([lease, Settled("1", 500.0, 1.8, "done")])
    assert settled.between(400.0, 5000.0) == pytest.approx(0.05)
