"""What a search keeps: it is found again as it was, refused where it is another, and shown."""

from __future__ import annotations

import io
import json
import math
import re
from pathlib import Path

import pytest
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.api_pb2 import STATUS_FAILURE
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from raygen.errors import ConfigError, StorageError
from tests.searches import SPACE, make_search, write_space
from tune import report
from tune.desk import Standing
from tune.hparams import HParams
from tune.prepare import is_over, prepare
from tune.progress import Progress, Purse, table
from tune.records import Records, Result
from tune.space import Space


def load(folder: Path, **keys: object) -> Space:
    return Space.load(write_space(folder, **keys), ["data.uri=clips"])


@pytest.mark.parametrize("where", ["folder", "s3"])
def test_a_search_is_found_as_it_was_left(
    where: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    storage = str(tmp_path / "s") if where == "folder" else request.getfixturevalue("s3")
    space = load(tmp_path)
    records = Records.open(storage, space)
    values = {each.key: each.middle for each in space.dimensions}
    records.report(0, values, Result(1, 10, 0.1, 5.0, 1.0, {"frechet": 2.0}))
    records.report(0, values, Result(2, 20, 0.2, math.inf, 2.0))
    records.report(0, values, Result(2, 20, 0.2, 3.0, 2.0))  # reported again after a crash
    records.fail(1, values, "ran away")
    records.save_policy(b"{}")
    again = Records.open(storage, space)
    assert again.trials == records.trials
    assert again.trials[0].level == 2
    assert again.best is not None
    assert again.best[1].step == 10
    assert again.load_policy() == b"{}"


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"metric": "frechet"}, "its metric is score, not frechet"),
        ({"overrides": SPACE["overrides"] | {"loss.gamma": 3.0}}, "it differs in loss.gamma"),  # type: ignore[operator]
        (
            {"space": SPACE["space"] | {"loss.gamma": {"uniform": [0.5, 9.0]}}},  # type: ignore[operator]
            "it differs in space.loss.gamma",
        ),
        ({"levels": 2}, "its levels differ"),
        ({"constraints": {"parameters": 1e9}}, "it differs in constraints.parameters"),
    ],
)
def test_another_search_in_its_place_is_refused(
    keys: dict[str, object], message: str, tmp_path: Path
) -> None:
    Records.open(str(tmp_path / "s"), load(tmp_path))
    with pytest.raises(ConfigError) as caught:
        Records.open(str(tmp_path / "s"), load(tmp_path, **keys))
    assert str(caught.value) == (
        f"{tmp_path}/s holds another search ({message}); give this one another --storage"
    )


@pytest.mark.parametrize("budget", [0.0, -1.0, math.inf])
def test_a_budget_is_a_number_of_dollars(budget: float, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--budget must be a number of dollars above 0"):
        prepare(load(tmp_path), str(tmp_path / "s"), budget)
    assert not (tmp_path / "s").exists()


def test_an_unknown_price_and_missing_clips_are_said_before_anything_is_kept(
    tmp_path: Path,
) -> None:
    path = write_space(tmp_path)
    with pytest.raises(ConfigError, match=r"no price for .*'p9\.huge'"):
        prepare(Space.load(path, ["data.uri=x", "train.node=p9.huge"]), str(tmp_path / "s"), 1)
    with pytest.raises(ConfigError, match=r"data\.uri is empty"):
        prepare(Space.load(path), str(tmp_path / "s"), 1)
    assert not (tmp_path / "s").exists()


def test_a_search_is_over_until_the_budget_is_raised(tmp_path: Path) -> None:
    _, records = make_search(tmp_path, 1)
    assert not is_over(records, 1.0)
    records.set(ended={"at": 0.0, "reason": "done", "budget": 1.0, "spent": 0.9, "best": "t0000"})
    assert is_over(records, 1.0)
    assert is_over(records, 0.5)
    assert not is_over(records, 2.0)


def test_the_table_shows_who_runs_and_who_is_best(tmp_path: Path) -> None:
    space, records = make_search(tmp_path)
    console = Console(file=io.StringIO(), width=160)
    standing = Standing(40, 7, "train", 0.0123)
    purse = Purse(spent=0.5, reserved=0.1, cap=2.0, rate=0.001, at=0.0)
    console.print(table(records, space, {40: standing}, purse, shown=4))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    lines = [line.split() for line in shown.splitlines() if re.match(r"\s*t\d{4}", line)]
    assert lines[0][:2] == ["t0040", "0/3"]
    assert "7/30" in lines[0]
    assert "running" in lines[0]
    assert records.best is not None
    assert lines[1][0] == records.best[0].name
    assert "and 9 more" in shown
    assert "$0.5000 spent, $0.1000 reserved of $2; done by" in shown


def test_a_log_gets_a_line_a_result(tmp_path: Path) -> None:
    space, records = make_search(tmp_path, 2)
    console = Console(file=io.StringIO(), width=80)
    shown = Progress(console, None)
    shown.show(records, space, {}, Purse())
    assert console.file.getvalue() == ""  # type: ignore[attr-defined]  # told by the driver before
    for _ in range(2):
        for number in (7, 8):
            records.report(number, records.trials[0].values, Result(1, 10, 0.1, 5.0, 0.0))
        shown.show(records, space, {}, Purse())
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert len(lines) == 2
    assert lines[0].startswith("t0007 level 1/3 step 10 score 5 ")
    assert "optim.generator.lr=" in lines[0]


def test_hparams_are_there_while_it_runs(tmp_path: Path) -> None:
    _, records = make_search(tmp_path, 1)
    trial = records.trials[0]
    board = HParams(records.storage, "score")
    board.add(trial, trial.results[0])
    events = EventAccumulator(f"{records.storage}/tensorboard/t0000")
    events.Reload()
    assert [event.value for event in events.Scalars("score")] == [
        pytest.approx(trial.results[0].score)
    ]
    plugins = events.SummaryMetadata("_hparams_/session_start_info").plugin_data
    assert plugins.plugin_name == "hparams"
    assert b"optim.generator.lr" in plugins.content
    records.fail(0, trial.values, "it could not be trained")
    board.close(records)
    events.Reload()
    ended = events.SummaryMetadata("_hparams_/session_end_info").plugin_data.content
    assert HParamsPluginData.FromString(ended).session_end_info.status == STATUS_FAILURE


def test_a_report_is_one_page_that_loads_nothing(tmp_path: Path) -> None:
    _, records = make_search(tmp_path)
    uri = report.write(records.storage)
    text = Path(uri).read_text()
    assert records.best is not None
    assert f"score of {records.best[0].name}, the best" in text
    assert text.count('<tr data-t="') == len(records.trials)
    assert text.count("data:image/webp;base64,") == 3 * 3
    assert text.count("<svg") == 4
    # Data URIs aside, nothing is fetched from anywhere.
    assert not re.findall(r'(?:src|href|url)\s*[=(]\s*["\']?(?!data:)[^"\'\s>]+', text)
    assert "http" not in re.sub(r"data:image/webp;base64,[^\"]*", "", text)


def test_a_report_of_what_has_no_figures_yet(tmp_path: Path) -> None:
    records = Records.open(str(tmp_path / "s"), load(tmp_path))
    records.fail(0, {"optim.generator.lr": 1e-3, "loss.gamma": 1.0, "model.kind": "strided"}, "<b>")
    text = report.page(records)
    assert "No trial has been judged yet" in text
    assert "&lt;b&gt;" in text
    with pytest.raises(StorageError, match="no search at"):
        report.write(str(tmp_path / "nowhere"))


def test_a_damaged_record_is_said(tmp_path: Path) -> None:
    _, records = make_search(tmp_path, 1)
    Path(records.path("trials.json")).write_text(json.dumps({})[:-1])
    with pytest.raises(StorageError, match=r"trials\.json is not what was written"):
        Records.find(records.storage)
