"""A real search on nodes priced as spot ones: they are killed, its driver is, and its cap holds."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from raygen.cost.ledger import Ledger
from raygen.export import load_generator
from tests.raylets import Nodes
from tests.searches import write_space
from tests.test_tune_search import start, wait_for
from tune.records import Records

TYPE = "g5.xlarge"
BUDGET = 0.25  # of nodes of 45 cents an hour: a quarter of an hour of two
CAP = BUDGET + 1e-9  # dollars are sums of floats
LABELS = {"ray.io/market-type": "spot", "raygen.io/instance-type": TYPE}


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Nodes]:
    nodes = Nodes(2, LABELS)
    monkeypatch.setenv("RAY_ADDRESS", nodes.address)
    yield nodes
    nodes.close()


def kill_a_busy(nodes: Nodes, seconds: float = 120) -> None:
    """The next node on which a trial trains."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        for node in nodes.alive.values():
            if nodes.trainers(node):
                return nodes.kill(node)
        time.sleep(0.2)
    raise AssertionError("no node trains")


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_nodes_and_drivers_are_killed_and_the_cap_holds(
    nodes: Nodes, shapes: Path, tmp_path: Path
) -> None:
    space, storage, log = write_space(tmp_path), str(tmp_path / "search"), tmp_path / "log"
    # On this cluster there is no token; and leases that outlast a driver's start.
    more = ["budget.lease_s=60", "budget.drain_s=20"]
    results = 0
    for _ in range(2):
        driver = start(space, storage, shapes, BUDGET, log, *more)
        results = len(wait_for(storage, results + 1))
        kill_a_busy(nodes)
        nodes.add()
        results = len(wait_for(storage, results + 1))
        os.killpg(driver.pid, signal.SIGKILL)
        driver.wait()
        book = Ledger(storage).book
        assert book.open
        assert book.committed <= CAP

    driver = start(space, storage, shapes, BUDGET, log, *more)
    while driver.poll() is None:
        nodes.replace_lost()  # nodes end with a dead driver's leases
        assert Ledger(storage).book.committed <= CAP
        time.sleep(2)
    assert driver.returncode == 0, log.read_text()

    said = log.read_text()
    assert "Traceback" not in said
    book, records = Ledger(storage).book, Records.find(storage)
    assert records is not None
    assert records.best is not None
    spent = book.spending(time.time())
    assert spent.total <= book.committed + 1e-9  # sums of floats
    assert book.committed <= CAP
    assert {lease.type for lease in book.open.values()} <= {TYPE, "local"}
    assert sum(spent.trials.values()) > 0
    trial, result = records.best
    every = [(r.score, t.name, r.step) for t in records.trials.values() for r in t.results]
    assert min(every) == (result.score, trial.name, result.step)
    assert f"best: {trial.name} at step {result.step}, score {result.score:.4g}" in said
    assert load_generator(records.path("best")).document["status"]["step"] == result.step
