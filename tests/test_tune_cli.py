"""`python -m tune` with what is wrong: one line and an exit code, before anything starts."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from raygen.cost.entries import Lease
from raygen.cost.ledger import Ledger
from raygen.export import load_generator
from raygen.registry import Registry
from tests.searches import make_search, write_space
from tune.__main__ import main
from tune.records import BEST, Records

DOLLAR = Lease("a", "node", "local", "", "", hourly=36.0, since=0.0, until=90.0, drain_s=10.0)


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["tune", *arguments])
    with pytest.raises(SystemExit) as exit_:
        main()
    return int(exit_.value.code or 0)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["nowhere.yaml", "--budget", "1"], 2, "tune: cannot read nowhere.yaml: No such file"),
        (["tiny", "--budget", "1"], 2, "tune: tiny: a space is a .yaml file, as in"),
        (["SPACE", "--budget", "0", "data.uri=x"], 2, "tune: --budget must be a number of dollars"),
        (["SPACE", "data.uri=x"], 2, "tune: give --budget, the dollars that all of the search"),
        (["SPACE", "--budget", "1"], 2, "tune: data.uri is empty: say where the clips are"),
        (
            ["SPACE", "--budget", "1", "optim.generatr.lr=1"],
            2,
            "tune: unknown key optim.generatr; did you mean optim.generator.lr?",
        ),
        (
            ["SPACE", "--budget", "1", "storage=elsewhere"],
            2,
            "tune: storage: a search keeps its trials itself; give --storage",
        ),
        (
            ["SPACE", "--budget", "1", "budget.minutes=3"],
            2,
            "tune: budget.minutes: a trial ends where the search says; lower train.steps instead",
        ),
        (
            ["SPACE", "--budget", "1", "data.uri=x", "train.node=p9.huge"],
            2,
            "tune: no price for nodes of type 'p9.huge' in the table of",
        ),
        (["report", "nowhere"], 1, "tune: no search at nowhere: give the --storage of one"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str],
    code: int,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = write_space(tmp_path)
    monkeypatch.chdir(tmp_path)
    given = [str(path) if each == "SPACE" else each for each in arguments]
    assert run(monkeypatch, *given) == code
    error = capsys.readouterr().err
    assert error.startswith(message)
    assert error.count("\n") == 1
    assert {each.name for each in tmp_path.iterdir()} == {path.name}


def test_what_was_spent_already_is_no_budget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _, records = make_search(tmp_path, 0)
    Ledger(records.storage).append([DOLLAR])
    command = [str(tmp_path / "space.yaml"), "--storage", records.storage, "data.uri=x"]
    assert run(monkeypatch, *command, "--budget", "0.5") == 2
    assert "--budget 0.5: $1.0000 is spent already" in capsys.readouterr().err


def test_a_driver_that_died_at_the_cap_leaves_its_best_to_the_same_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _, records = make_search(tmp_path)
    Ledger(records.storage).append([DOLLAR])
    command = [str(tmp_path / "space.yaml"), "--storage", records.storage, "data.uri=clips"]
    assert run(monkeypatch, *command, "--budget", "1") == 0
    assert "the cap is reached: $1.0000 of $1 spent on 12 trials" in capsys.readouterr().out
    found = Records.find(records.storage)
    assert found is not None
    assert load_generator(found.path(BEST)).name == found.document["ended"]["best"]
    registry = str(tmp_path / "registry")
    assert run(monkeypatch, *command, "--budget", "1", "--publish", registry) == 0
    said = capsys.readouterr().out
    assert "this search is over" in said
    assert f"next: serve run serve.app:app registry={registry}" in said
    live = Registry(registry).refresh()["space"].live
    assert live is not None
    assert live.digest == load_generator(found.path(BEST)).digest


def test_a_registry_that_cannot_be_is_said_before_any_dollar(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_space(tmp_path).rename(tmp_path / "best.yaml")
    command = [str(path), "--budget", "1", "data.uri=x", "--publish", str(tmp_path / "registry")]
    assert run(monkeypatch, *command) == 2
    assert "tune: 'best' is no name for a model" in capsys.readouterr().err


def test_another_searchs_storage_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _, records = make_search(tmp_path, 1)
    path = write_space(tmp_path, metric="frechet")
    command = [str(path), "--storage", records.storage, "--budget", "1", "data.uri=x"]
    assert run(monkeypatch, *command) == 2
    assert "holds another search (its metric is score, not frechet)" in capsys.readouterr().err


def test_a_search_that_is_over_says_so_and_what_was_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _, records = make_search(tmp_path)
    best = records.best
    assert best is not None
    ended = {"at": 0.0, "reason": "the cap of $1 is reached", "budget": 1.0, "spent": 0.9}
    records.set(ended=ended | {"best": best[0].name})
    path = str(tmp_path / "space.yaml")
    assert run(monkeypatch, path, "--storage", records.storage, "--budget", "1", "data.uri=x") == 0
    said = capsys.readouterr().out
    assert "this search is over; a larger --budget goes on" in said
    assert f"best: {best[0].name} at step {best[1].step}, score {best[1].score:.4g}" in said
