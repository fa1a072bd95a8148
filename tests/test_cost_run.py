"""Dollars of real trainings: a cap that ends one, what is refused, what the ledger says of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest
import ray
from ray.cluster_utils import Cluster

from raygen.config import Config
from raygen.cost.accountant import Accountant
from raygen.cost.bill import Purse
from raygen.cost.entries import Lease, Settled
from raygen.cost.ledger import Ledger
from raygen.cost.prices import price
from raygen.cost.report import report
from raygen.errors import ClusterError, ConfigError
from raygen.history import History
from raygen.runs import Run
from raygen.train import fit
from tests.small_runs import make_run
from tests.test_train_run import finish, start

LOCAL = price("local").on_demand


def test_a_cap_that_is_spent_is_refused_before_anything_starts(tmp_path: Path) -> None:
    run = make_run(str(tmp_path))  # of one cent
    config = Config.parse(run.config.dump(), {"budget.dollars": 0.009})
    with pytest.raises(ConfigError, match=r"dollars=0.009 is spent: .*/small has cost \$0.01"):
        fit(config)
    assert not ray.is_initialized()


@pytest.fixture(scope="module")
def alone() -> object:
    """A local Ray without anything on it."""
    ray.init("local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def test_an_accountant_leases_books_and_hands_over(alone: object, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"too little: 1 node\(s\).*least that works is 0.003"):
        Accountant(str(tmp_path), cap=0.001).begin()
    first = Accountant(str(tmp_path), cap=0.01)
    first.begin()
    here = ray.get_runtime_context().get_node_id()
    (lease,) = first.ledger.book.open.values()
    assert (lease.node, lease.type, lease.purpose) == (here, "local", "head")
    assert lease.until - lease.since == pytest.approx(240, abs=5)
    # 60 seconds to end are aside, and the lease is the first part of any work.
    assert first.left() == pytest.approx(0.01 - LOCAL * 300 / 3600, abs=1e-4)
    assert not first.admit("x", 0.009)
    assert first.admit("x", 0.002)
    purse = Purse(first, "x", trial=True)
    purse.hold([here], {"CPU": 0.25})
    time.sleep(2.5)
    purse.release()
    first.lost("x", 0.0)
    time.sleep(1.5)
    # The same command again, while this one hangs: it may not write over the other's work.
    second = Accountant(str(tmp_path), cap=0.05)  # what the first has leased counts
    second.begin()
    first.hold("x", {here: {"CPU": 0.5}})  # to enter it, it reads the ledger
    time.sleep(2.5)
    with pytest.raises(ClusterError, match="another driver goes on with"):
        first.bill()
    second.close()
    first.close()
    book = Ledger(str(tmp_path)).book
    assert not book.open
    found = book.spending(time.time())
    assert found.total == pytest.approx(book.spent(time.time()))
    assert 0 < found.lost["x"] < found.total / 3
    assert found.head > found.lost["x"]
    assert found.total < LOCAL * 30 / 3600


def test_what_a_dead_driver_leased_is_charged_in_full(alone: object, tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path))
    ledger.begin(0.0, 5.0)
    ledger.append([Lease("1", "node of old", "g5.xlarge", "", "spot", 36.0, 0.0, 100.0, 20.0)])
    again = Accountant(str(tmp_path), cap=5.0)
    again.begin()
    assert again.spent() == pytest.approx(1.2, abs=0.01)
    (note,) = again.notes()
    assert note.startswith("nobody said when g5.xlarge node of ")
    # Until the cloud says otherwise.
    again.ledger.append([Settled("1", 50.0, 18.0, "failed")])
    time.sleep(2.5)
    assert again.spent() == pytest.approx(0.25, abs=0.01)
    again.close()


DRIVER = """
import sys, time, ray
from raygen.cost.accountant import Accountant
ray.init(sys.argv[1], log_to_driver=False)
Accountant(sys.argv[2], cap=1.0, lease_s=10, drain_s=8).begin()
time.sleep(3600)
"""


@pytest.mark.slow
def test_rented_nodes_end_with_their_leases_when_the_driver_is_killed(tmp_path: Path) -> None:
    Path(os.environ.get("RAY_TMPDIR", "/tmp"), "ray").mkdir(parents=True, exist_ok=True)
    head = {"num_cpus": 0, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    labels = {"ray.io/market-type": "spot", "raygen.io/instance-type": "g5.xlarge"}
    nodes = [cluster.add_node(num_cpus=1, labels=labels) for _ in range(2)]
    raylets = [psutil.Process(node.all_processes["raylet"][0].process.pid) for node in nodes]
    words = [sys.executable, "-c", DRIVER, cluster.address, str(tmp_path)]
    driver = subprocess.Popen(words)
    try:
        folder = Path(tempfile.gettempdir())
        locks = [folder / f"raygen-lease-{node.node_id[:16]}.lock" for node in nodes]
        deadline = time.monotonic() + 180
        while not all(lock.exists() for lock in locks) and time.monotonic() < deadline:
            time.sleep(0.2)
        time.sleep(2)
        assert all(raylet.is_running() for raylet in raylets)
        driver.kill()
        _, alive = psutil.wait_procs(raylets, timeout=60)
        ended = time.time()
        assert not alive
        leases = Ledger(str(tmp_path)).book.open.values()
        assert {lease.node for lease in leases} >= {node.node_id for node in nodes}
        assert all(x.type == "g5.xlarge" for x in leases if x.purpose == "worker")
        # What nobody settled is charged up to a moment at which they are gone indeed.
        assert all(ended <= lease.gone_by + 0.5 for lease in leases)
    finally:
        driver.kill()
        cluster.shutdown()


@pytest.mark.slow
def test_a_cap_ends_a_run_saved_and_kill_9_does_not_get_past_it(
    shapes: Path, tmp_path: Path
) -> None:
    terms = ["train.steps=1000000", "budget.drain_s=20", "budget.lease_s=20", "--budget", "0.0055"]
    killed = start(str(shapes), str(tmp_path), "capped", *terms)
    deadline = time.monotonic() + 120
    while not Ledger.exists(f"{tmp_path}/capped") and time.monotonic() < deadline:
        time.sleep(0.5)
    time.sleep(5)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    output = finish(start(str(shapes), str(tmp_path), "capped", *terms))
    run = Run.open(f"{tmp_path}/capped")
    assert "saved and ended at step" in output
    assert run.status["step"] > 0
    assert History(run.uri).events[-1].event == "ended"
    found = report(run.uri)
    assert 0.004 < found.total <= 0.0055
    assert run.dollars == pytest.approx(found.total)
    assert json.loads(json.dumps(found.as_dict()))["trials"]["capped"] > 0
    refused = finish(start(str(shapes), str(tmp_path), "capped", *terms), 2)
    assert "raygen: budget.dollars=0.0055 is too little" in refused
