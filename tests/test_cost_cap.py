"""The cap: what may be bought, and that no history of crashes and prices gets past it."""

from __future__ import annotations

import itertools
import math
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from raygen.cost import watchdog
from raygen.cost.book import Book
from raygen.cost.cap import Look, Node, Terms, full, plan, room, stop_at
from raygen.cost.entries import Entry, Lease, Settled
from tests.cap_histories import history, overspend_max

# A cent a second.
NODES = {name: Node(name, "g5.xlarge", "", "spot", 36.0, 0.0) for name in "ab"}
TERMS = Terms(cap=10.0, lease_s=100.0, drain_s=20.0)


def bought(
    book: Book, now: float, terms: Terms = TERMS, nodes: str = "ab", price: float = 36.0
) -> list[Entry]:
    names = (f"{now}-{k}" for k in itertools.count())
    there = {name: NODES[name] for name in nodes}
    gone = {lease.node: "failed" for lease in book.open.values() if lease.node not in there}
    look = Look(now, there, gone)  # type: ignore[arg-type]
    entries = plan(book, terms, look, lambda lease, end: price, names.__next__)
    for entry in entries:
        book.add(entry)
    return entries


def test_time_is_bought_for_all_nodes_and_again_at_half_of_it() -> None:
    book = Book()
    assert [e.until for e in bought(book, 0) if isinstance(e, Lease)] == [100, 100]
    assert bought(book, 49) == []
    assert [type(entry) for entry in bought(book, 51)] == [Settled, Lease, Settled, Lease]
    assert stop_at(book, "ab") == 151
    # One goes: it is paid up to now, and the other one stays.
    (end,) = bought(book, 60, nodes="b")
    assert end == Settled(end.lease, 60, 36.0, "failed")  # type: ignore[union-attr]
    assert book.committed == pytest.approx(0.60 + 1.71)


def test_a_rented_machine_that_was_lost_is_charged_until_its_watchdog_ends_it() -> None:
    rented = replace(NODES["a"], instance="i-1")
    for reason, end in (("failed", 120.0), ("preempted", 60.0)):
        book = Book()
        (lease,) = plan(book, TERMS, Look(0.0, {"a": rented}), lambda *_: 36.0, lambda: "1")
        book.add(lease)
        gone = Look(60.0, {}, {"a": reason})  # type: ignore[dict-item]
        (settled,) = plan(book, TERMS, gone, lambda *_: 18.0, lambda: "2")
        book.add(settled)
        assert settled == Settled("1", end, 36.0 if reason == "failed" else 18.0, reason)  # type: ignore[arg-type]
        assert bool(book.unmatched(121.0)) is (reason == "failed")
        assert book.committed == pytest.approx(1.2 if reason == "failed" else 0.3)


def test_the_last_lease_takes_what_is_left_and_no_more() -> None:
    terms, book = replace(TERMS, cap=2.0), Book()
    bought(book, 0, terms)
    # Two nodes: 200 seconds of one, less twice 20 to go.
    assert stop_at(book, "ab") == 80
    assert book.committed == pytest.approx(2.0)
    assert bought(book, 79, terms) == []
    # What cost half of what it might have makes room for more.
    bought(book, 79.5, terms, price=18.0)
    assert stop_at(book, "ab") == pytest.approx(79.5 + 40.25)
    assert book.committed == pytest.approx(2.0)


def test_a_node_that_there_is_no_room_for_goes_at_once_and_is_paid() -> None:
    terms, book = replace(TERMS, cap=1.3), Book()
    bought(book, 0, terms, "a")
    entries = bought(book, 30, terms, "ab")
    assert full(entries, 30)
    assert [(e.node, e.since, e.until) for e in entries if isinstance(e, Lease)] == [("b", 0, 30)]


def test_no_more_work_is_admitted_than_there_is_money_for() -> None:
    book = Book()
    bought(book, 0)
    # Of 10: 0.40 to be gone, and the two leases of 1.00 that are the first part of any work.
    assert room(book, TERMS, 0) == pytest.approx(10 - 0.4 - 2.0)
    assert room(book, TERMS, 0, promised=1.5) == room(book, TERMS, 0)
    assert room(book, TERMS, 0, promised=6.0) == pytest.approx(3.6)
    assert room(book, Terms(), 0) == math.inf


def test_three_hundred_histories_stay_within_their_caps() -> None:
    assert overspend_max(300) == 0


def test_what_outlives_its_watchdog_exceeds_the_cap_by_no_more_than_that() -> None:
    for seed in range(40):
        found = history(seed, late_s=900.0)
        assert found.excess <= found.bound + 1e-9
        assert found.bound > 0


@pytest.mark.slow
def test_ten_thousand_histories_stay_within_their_caps_and_nothing_is_unbooked() -> None:
    found = [history(seed) for seed in range(10_000)]
    assert max(each.excess for each in found) == 0
    assert all(each.booked >= each.charged - 1e-9 for each in found)


def sleeper() -> subprocess.Popen[bytes]:
    """A process in the place of a raylet."""
    return subprocess.Popen(["sleep", "120"])


def test_a_watchdog_outlives_who_started_it_and_ends_the_node_with_its_lease(
    tmp_path: Path,
) -> None:
    raylet, lease = sleeper(), tmp_path / "lease"
    watchdog.write_deadline(lease, time.time() + 3600)
    code = (
        "from pathlib import Path; from raygen.cost import watchdog; "
        f"watchdog.start(Path({str(lease)!r}), {raylet.pid})"
    )
    done = tmp_path / "done"
    environment = os.environ | {"RAYGEN_END_COMMAND": f"touch {done}"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
    # Its starter is gone. A lease that is renewed is kept; at its end come command and signal.
    watchdog.write_deadline(lease, time.time() + 2)
    assert raylet.wait(60) != 0
    assert time.time() >= watchdog.deadline(lease)  # type: ignore[operator]
    assert done.exists()


def test_a_watchdog_lets_a_node_be_whose_lease_is_taken_back(tmp_path: Path) -> None:
    raylet, lease = sleeper(), tmp_path / "lease"
    watchdog.write_deadline(lease, time.time() + 3600)
    words = [sys.executable, "-m", "raygen.cost.watchdog", str(lease), "--pid", str(raylet.pid)]
    first = subprocess.Popen(words)
    try:
        while not lease.with_suffix(".lock").exists():
            time.sleep(0.05)
        time.sleep(0.5)
        assert subprocess.run(words, timeout=60, check=False).returncode == 0  # one is enough
        assert first.poll() is None
        lease.unlink()
        assert first.wait(60) == 0
        assert raylet.poll() is None
    finally:
        raylet.kill()
        raylet.wait()


def test_a_node_that_nobody_leases_ends_after_its_time_to_live(tmp_path: Path) -> None:
    done = tmp_path / "done"
    words = ["--ttl", "0.5", "--command", f"touch {done}"]
    module = [sys.executable, "-m", "raygen.cost.watchdog", str(tmp_path / "lease")]
    subprocess.run([*module, *words], timeout=60, check=True)
    assert done.exists()
