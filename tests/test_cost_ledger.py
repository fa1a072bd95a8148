"""The ledger: arithmetic that adds up, entries that survive, writers that do not cross."""

from __future__ import annotations

import random
import threading
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from raygen.cli import app
from raygen.cost.book import Book
from raygen.cost.entries import (
    Entry,
    Held,
    Kept,
    Lease,
    Lost,
    Opened,
    Released,
    Settled,
    decode,
    encode,
)
from raygen.cost.ledger import Ledger
from raygen.cost.report import plot, report, spent_on
from raygen.errors import StorageError


def lease(
    name: str, node: str = "a", since: float = 0, until: float = 100, **more: object
) -> Lease:
    fields: dict[str, object] = {"type": "g5.xlarge", "zone": "z", "market": "spot", "hourly": 36.0}
    return Lease(name, node, since=since, until=until, drain_s=20.0, **(fields | more))  # type: ignore[arg-type]


def test_an_open_lease_is_charged_in_full_up_to_its_end() -> None:
    # 36 dollars an hour are a cent a second.
    book = Book.of([lease("1")])
    assert book.committed == pytest.approx(1.20)
    assert [book.spent(50), book.reserved(50)] == pytest.approx([0.5, 0.7])
    assert [book.spent(1e6), book.reserved(1e6)] == pytest.approx([1.2, 0])
    assert book.unmatched(119) == []
    assert [x.id for x in book.unmatched(121)] == ["1"]
    # The truth, and a better one.
    book.add(Settled("1", 60, 18.0, "failed"))
    assert book.committed == pytest.approx(0.30)
    book.add(Settled("1", 60, 36.0, "failed"))
    assert book.committed == book.spent(1e6) == pytest.approx(0.60)


def test_shares_losses_idle_and_the_head_add_up() -> None:
    entries: list[Entry] = [
        lease("1", "a"),
        lease("2", "b", purpose="head"),
        Settled("1", 100, 36.0, "preempted"),
        Settled("2", 100, 36.0, "done"),
        Held("h", "x", "a", 0.75, 0.0),
        Held("i", "y", "a", 0.75, 50.0),
        Held("j", "y", "b", 0.25, 20.0),
        Released("j", 60.0),
        Lost("y", 90.0, 100.0),
    ]
    found = Book.of(entries).spending(1e6)
    # From 50 on 1.5 are held of node a: half for each. Of the last ten seconds y lost all it did.
    assert found.trials == {"x": pytest.approx(0.375 + 0.25), "y": pytest.approx(0.20 + 0.10)}
    assert found.lost == {"y": pytest.approx(0.05)}
    assert [found.idle, found.head] == pytest.approx([0.125, 0.90])


def test_what_a_dead_driver_kept_back_is_charged() -> None:
    begun = Opened("w", 0, 5.0)
    book = Book.of([begun, Kept("k", 0, 0.5)])
    assert (book.spent(9), book.reserved(9), book.committed) == (0, 0.5, 0.5)
    book.add(Opened("v", 10, 5.0))
    assert (book.spent(9), book.reserved(9), book.committed) == (0.5, 0, 0.5)
    assert book.spending(20).idle == 0.5


def test_money_for_nodes_to_come_is_reserved_while_its_driver_can_live(tmp_path: Path) -> None:
    Ledger(str(tmp_path)).append([Kept("k", 0, 0.5), lease("1")])  # to be gone by 120
    alive, gone = (report(str(tmp_path), now) for now in (50.0, 121.0))
    assert [alive.total, alive.reserved] == pytest.approx([0.5, 0.7 + 0.5])
    assert [gone.total, gone.reserved, gone.idle] == pytest.approx([1.2 + 0.5, 0, 1.2 + 0.5])
    assert "$0.5000 of it was kept for nodes to come by a driver" in gone.notes()[-1]
    assert not any("kept" in note for note in alive.notes())


@st.composite
def histories(draw: st.DrawFn) -> list[Entry]:
    chance = random.Random(draw(st.integers(0, 2**32)))
    entries: list[Entry] = []
    for k in range(draw(st.integers(0, 12))):
        since = chance.uniform(0, 500)
        entries.append(
            lease(
                str(k),
                chance.choice("abc"),
                since,
                since + chance.uniform(0, 300),
                hourly=chance.uniform(0.1, 50),
                purpose=chance.choice(["head", "worker"]),
            )
        )
        if chance.random() < 0.6:
            end = since + chance.uniform(-10, 400)
            entries.append(Settled(str(k), end, chance.uniform(0.1, 50), "done"))
    for k in range(draw(st.integers(0, 10))):
        since = chance.uniform(0, 700)
        trial = chance.choice("xyz")
        entries.append(Held(f"h{k}", trial, chance.choice("abc"), chance.random(), since))
        if chance.random() < 0.7:
            entries.append(Released(f"h{k}", since + chance.uniform(0, 300)))
        if chance.random() < 0.3:
            entries.append(Lost(trial, since, since + chance.uniform(0, 100)))
    return entries


@given(histories(), st.floats(0, 1500))
def test_every_dollar_is_somewhere_and_none_comes_back(entries: list[Entry], now: float) -> None:
    book = Book.of(entries)
    assert decode(encode(entries, "w")) == entries
    assert book.spent(now) + book.reserved(now) == pytest.approx(book.committed)
    # Beyond every end.
    assert book.spending(1e9).total == pytest.approx(book.spent(1e9))
    assert book.spent(1e9) == pytest.approx(book.committed)
    found = book.spending(now)
    parts = [*found.trials.values(), *found.lost.values(), found.idle, found.head]
    assert all(part >= 0 for part in parts)
    curve = book.curve(1e9)
    if curve:
        dollars = [value for _, value in curve]
        assert all(later >= earlier - 1e-9 for earlier, later in pairwise(dollars))
        assert dollars[-1] == pytest.approx(book.spent(1e9))


@pytest.fixture(params=["local", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "run") if request.param == "local" else request.getfixturevalue("s3")


def test_a_ledger_is_read_back_as_it_was_written(place: str) -> None:
    assert not Ledger.exists(place)
    ledger = Ledger(place)
    ledger.begin(5.0, 2.0, "first")
    ledger.append([lease("1"), lease("2", "b")])
    other = Ledger(place)
    assert other.entries == ledger.entries
    assert Ledger.exists(place)
    assert not ledger.superseded
    other.begin(6.0, 2.0, "second")
    ledger.refresh()
    assert ledger.superseded


def test_of_two_writers_each_decides_with_the_others_entries(place: str) -> None:
    # Each takes a lease only if it is affordable; together they could afford twice too many.
    cap = 10 * lease("").dollars

    def buy(name: str) -> None:
        ledger = Ledger(place)
        for k in range(8):
            ledger.commit(
                lambda book, k=k: (  # type: ignore[misc]
                    [lease(f"{name}{k}", f"{name}{k}")]
                    if book.committed + lease("").dollars <= cap + 1e-9
                    else []
                )
            )

    threads = [threading.Thread(target=buy, args=(name,)) for name in "uvw"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(Ledger(place).book.leases) == 10


def test_a_torn_last_line_was_not_written(tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path))
    ledger.append([lease("1")])
    path = tmp_path / "ledger.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + encode([lease("2")], "w")[:40])
    again = Ledger(str(tmp_path))
    assert list(again.book.leases) == ["1"]
    again.append([lease("3")])
    assert list(Ledger(str(tmp_path)).book.leases) == ["1", "3"]
    path.write_bytes(b"{}\n" + whole)
    with pytest.raises(StorageError, match="damaged after 0 entries"):
        Ledger(str(tmp_path))


def test_what_went_where_is_printed_and_plotted(tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path / "first"))
    ledger.begin(0.0, 5.0, "first")
    ledger.append([lease("1"), Held("h", "first", "a", 0.5, 0.0), Settled("1", 100, 36.0, "done")])
    Ledger(str(tmp_path / "second")).append([lease("1"), Held("h", "second", "a", 1.0, 0.0)])
    found = report(str(tmp_path))
    assert found.total == pytest.approx(1.0 + 1.2)
    assert dict(found.lines()) == {
        "first": pytest.approx(0.5), "second": pytest.approx(1.2), "idle": pytest.approx(0.5),
        "all": pytest.approx(2.2),
    }  # fmt: skip
    assert "$1.2000 of it is for 1 leases of nodes that nobody saw go" in found.notes()[0]
    assert spent_on(str(tmp_path / "first")) == pytest.approx(1.0)
    output = CliRunner().invoke(app, ["cost", str(tmp_path / "first")]).output
    assert "the cap is $5" in output
    assert "█" in output
    failed = CliRunner().invoke(app, ["cost", str(tmp_path / "nowhere")])
    assert "no " in str(failed.exception)


def test_a_trials_dollars_are_those_of_its_searchs_ledger(tmp_path: Path) -> None:
    held: list[Entry] = [
        Held("h", "trial-1", "a", 0.25, 0.0),
        lease("1"),
        Settled("1", 100, 36.0, "done"),
    ]
    Ledger(str(tmp_path)).append(held)
    assert spent_on(str(tmp_path / "trial-1")) == pytest.approx(0.25)
    assert spent_on(str(tmp_path / "trial-2")) == 0
    assert spent_on(str(tmp_path / "trials" / "trial-1")) == pytest.approx(0.25)


def test_a_plot_rises_from_the_left_to_its_top() -> None:
    lines = plot([(0.0, 0.0), (7200.0, 4.0)], width=16, height=4).splitlines()
    assert lines[0].startswith("       $4 │")
    assert lines[0].endswith("█")
    assert lines[-1].endswith("2.0 h")
    heights = [sum(line[11 + k : 12 + k] not in ("", " ") for line in lines[:4]) for k in range(16)]
    assert heights == sorted(heights)
