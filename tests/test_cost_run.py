"""Dollars of real trainings: a cap that ends one, what is refused, what the ledger says of it."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import pytest
import ray

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
    # The same command again, while this one hangs: it may not write over the other's work.
    second = Accountant(str(tmp_path), cap=0.01)
    second.begin()
    time.sleep(1.5)
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
    time.sleep(1.5)
    assert again.spent() == pytest.approx(0.25, abs=0.01)
    again.close()


@pytest.mark.slow
def test_a_cap_ends_a_run_saved_and_kill_9_does_not_get_past_it(
    shapes: Path, tmp_path: Path
) -> None:
    terms = ["train.steps=1000000", "budget.drain_s=20", "budget.lease_s=20", "--budget", "0.008"]
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
    assert 0.005 < found.total <= 0.008
    assert run.dollars == pytest.approx(found.total)
    assert json.loads(json.dumps(found.as_dict()))["trials"]["capped"] > 0
    refused = finish(start(str(shapes), str(tmp_path), "capped", *terms), 2)
    assert "raygen: budget.dollars=0.008 is too little" in refused
