"""A real search on a local Ray: spends, stops at its cap, goes on after `kill -9`, exports."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from raygen.cost.ledger import Ledger
from raygen.data import store
from raygen.export import load_generator
from raygen.runs import Run
from tests.conftest import user_environment
from tests.searches import write_space
from tune.records import Records, Result
from tune.space import Space

SETTINGS = [
    "evaluate.clips=32",
    "evaluate.judge_steps=10",
    "evaluate.batch_size=8",
    "data.cache_mb=0",
    "budget.lease_s=20",
    "budget.drain_s=10",
]


def start(
    space: Path, storage: str, shapes: Path, budget: float, log: Path, *more: str
) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tune", str(space), "--budget", f"{budget:f}"]
    command += ["--storage", storage, "--parallel", "1", f"data.uri={shapes}", *SETTINGS, *more]
    return subprocess.Popen(
        command,
        stdout=log.open("a"),
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env=user_environment() | {"OMP_NUM_THREADS": "1"},
        cwd=Path(__file__).parents[1],
    )


def wait_for(storage: str, results: int, seconds: float = 900) -> list[Result]:
    """All results, once there are so many."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = Records.find(storage)
        done = [] if found is None else [r for t in found.trials.values() for r in t.results]
        if len(done) >= results:
            return done
        time.sleep(0.2)
    raise AssertionError(f"{storage} has no {results} results")


def test_a_search_whose_accountant_is_killed_says_so_in_a_line(
    shapes: Path, tmp_path: Path
) -> None:
    space, log = write_space(tmp_path), tmp_path / "log"
    driver = start(space, str(tmp_path / "search"), shapes, 0.02, log)
    deadline = time.monotonic() + 300
    while "measuring 30 steps" not in log.read_text():
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)
    for process in psutil.Process(driver.pid).children(recursive=True):
        if process.name().startswith("ray::Accountant"):
            process.kill()
    assert driver.wait(300) == 1, log.read_text()
    said = log.read_text()
    assert "Traceback" not in said
    # Ray may have said after it that a worker died.
    assert any(line.endswith("the same command goes on") for line in said.splitlines())


@pytest.mark.slow
def test_a_killed_search_goes_on_within_its_cap(shapes: Path, tmp_path: Path) -> None:
    space, storage, log = write_space(tmp_path), str(tmp_path / "search"), tmp_path / "log"
    budget = 0.02  # of a machine of 9 cents an hour: 800 seconds
    first = start(space, storage, shapes, budget, log)
    before = wait_for(storage, 2)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    kept = Records.find(storage)
    assert kept is not None
    runs = {t.name: Run.open(kept.run_uri(t)).status["step"] for t in kept.trials.values()}
    book = Ledger(storage).book
    committed, unsettled = book.committed, set(book.open)

    second = start(space, storage, shapes, budget, log)
    after = wait_for(storage, 4)
    os.killpg(second.pid, signal.SIGINT)
    assert second.wait(120) == 130, log.read_text()
    assert after[: len(before)] == before
    records = Records.find(storage)
    assert records is not None
    for trial in kept.trials.values():
        assert records.trials[trial.number].values == trial.values
        # No step that reached a checkpoint was trained again.
        assert Run.open(records.run_uri(trial)).status["step"] >= runs[trial.name]
    third = start(space, storage, shapes, Ledger(storage).book.committed + 0.004, log)
    assert third.wait(600) == 0, log.read_text()

    said = log.read_text()
    assert "Traceback" not in said
    records = Records.find(storage)
    assert records is not None
    assert records.best is not None
    trial, result = records.best
    assert f"best: {trial.name} at step {result.step}, score {result.score:.4g}" in said
    ended = records.document["ended"]
    book = Ledger(storage).book
    assert committed < book.committed <= ended["budget"]
    # Every lease is settled, nothing runs on unseen; the killed driver's is charged in full.
    assert set(book.open) == unsettled
    assert sum(book.spending(time.time()).trials.values()) > 0
    generator = load_generator(records.path("best"))
    assert generator.document["status"]["step"] == result.step
    checked = Space.load(space, [f"data.uri={shapes}", *SETTINGS])
    assert json.loads(store.read_bytes(records.path("search.json")))["digest"] == checked.digest
