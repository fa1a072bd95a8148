"""`raygen runs`: what a storage holds, told from its small documents, locally and on S3."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from raygen import runs_list
from raygen.cli import app
from raygen.data import store
from raygen.errors import StorageError
from raygen.history import History, Kind
from raygen.runs import STATE, Run, checkpoint_name
from tests.small_runs import make_run

NOW = 2_000_000_000.0  # long after what these tests write


def write_history(run: Run, *kinds: Kind, ago: float = 3600.0) -> None:
    history = History(run.uri)
    for kind in kinds:
        history.add(kind, step=20, workers=2, detail=f"why {kind}")
    events = json.loads(store.read_bytes(run.path("history.json")))
    for k, event in enumerate(reversed(events)):
        event["time"] = NOW - ago - k
    store.write_bytes(run.path("history.json"), json.dumps(events).encode())


def bare_run(storage: str, name: str) -> Run:
    """A run whose first checkpoint is still to come."""
    whole = make_run(storage, name=name)
    for item in list(store.list_objects(whole.path(checkpoint_name(20)))):
        store.delete(item.uri)
    return whole


@pytest.fixture(params=["local", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "runs") if request.param == "local" else request.getfixturevalue("s3")


def test_a_storage_is_listed(storage: str) -> None:
    make_run(storage, name="plain")
    judged = make_run(storage, name="judged")
    judged.write_json("evaluation.json", {"class_accuracy": 0.75, "frechet": 3.4})
    write_history(judged, "started", "lost", "resumed", "ended", ago=60)
    ended = make_run(storage, name="beside")
    inner = f"{checkpoint_name(20)}/evaluation.json"
    ended.write_json(inner, {"class_accuracy": 0.5, "frechet": 9.0})
    write_history(ended, "started", "failed", ago=120)
    write_history(bare_run(storage, "young"), "started", ago=30)
    store.write_bytes(f"{storage}/photos/cat.jpg", b"jpg")
    store.write_bytes(f"{storage}/torn/run.json", b'{"config":')
    store.write_bytes(f"{storage}/other/run.json", b"[]")
    lines, notes = runs_list.find(storage, NOW)
    # What was written just now is old beside the histories, which tell of later.
    assert [line.name for line in lines] == ["young", "judged", "beside", "plain"]
    states = {line.name: line.state for line in lines}
    assert states == {
        "young": "training", "judged": "ended", "beside": "failed", "plain": "interrupted"
    }  # fmt: skip
    young, first, second, plain = lines
    assert (young.step, young.clips, young.dollars) == (0, 0, 0.01)
    assert (first.step, first.steps, first.clips, first.dollars) == (20, 2000, 320, 0.01)
    assert (first.restarts, first.evaluation["frechet"]) == (1, 3.4)
    assert (second.evaluation["frechet"], second.detail) == (9.0, "why failed")
    assert first.changed == NOW - 60
    assert abs(plain.changed - time.time()) < 300
    assert [note.split(":")[0] for note in sorted(notes)] == [
        "skipped other", "skipped photos", "skipped torn"
    ]  # fmt: skip
    assert json.loads(json.dumps(first.as_dict()))["name"] == "judged"
    assert len(first.cells(NOW)) == len(runs_list.COLUMNS)
    assert first.cells(NOW)[-2] == "60 s ago"


@pytest.mark.parametrize(
    ("kinds", "ago", "state"),
    [
        (["started"], 599, "training"),
        (["started"], 601, "interrupted"),
        (["started", "ended"], 5, "ended"),
        (["started", "ended"], 10**6, "ended"),
        (["started", "stopped", "resumed"], 5, "training"),
        (["started", "stopped", "resumed"], 10**6, "interrupted"),
        (["started", "rewound", "failed"], 5, "failed"),
    ],
)
def test_the_last_event_tells_the_state(
    kinds: list[Kind], ago: float, state: str, tmp_path: Path
) -> None:
    write_history(make_run(str(tmp_path), name="a"), *kinds, ago=ago)
    ((line,), _) = runs_list.find(str(tmp_path), NOW)
    assert line.state == state


@pytest.mark.parametrize(
    ("kinds", "restarts"),
    [
        (["started"], 0),
        (["started", "lost", "preempted", "grew", "stalled", "rewound", "ended"], 5),
        (["started", "lost", "resumed", "ended"], 1),
        (["started", "stopped", "resumed", "stopped", "resumed"], 2),
    ],
)
def test_restarts_are_counted_once(kinds: list[Kind], restarts: int, tmp_path: Path) -> None:
    write_history(make_run(str(tmp_path), name="a"), *kinds)
    ((line,), _) = runs_list.find(str(tmp_path), NOW)
    assert line.restarts == restarts


def test_the_newest_whole_checkpoint_counts(tmp_path: Path) -> None:
    run = make_run(str(tmp_path), name="a")
    state = run.status | {"step": 2000, "losses": {"loss/generator": 1.25, "loss/critic": 0.5}}
    run.write_json(f"{checkpoint_name(2000)}/{STATE}", state)
    store.write_bytes(run.path(f"{checkpoint_name(2100)}/ema.safetensors"), b"torn")
    ((line,), _) = runs_list.find(str(tmp_path), NOW)
    # At its last step and never interrupted: a run from before there was a history.
    assert (line.step, line.state) == (2000, "ended")
    assert line.cells(NOW)[2:5] == ["2,000/2,000", "1.25", "0.50"]


@pytest.mark.parametrize(
    ("place", "said"),
    [
        (lambda root: f"{root}/none", "no folder at .*none"),
        (lambda root: f"{root}/empty", "no run in .*empty; `raygen train PRESET storage=.*"),
        (lambda root: f"{root}/runs/small", "is a run, not a storage of runs: give .*runs$"),
        (
            lambda root: f"{root}/foreign",
            "no run in .*foreign; first of 1: skipped photos: no run.json",
        ),
    ],
)
def test_a_place_without_runs(place: Callable[[Path], str], said: str, tmp_path: Path) -> None:
    make_run(f"{tmp_path}/runs")
    (tmp_path / "empty").mkdir()
    (tmp_path / "foreign" / "photos").mkdir(parents=True)
    with pytest.raises(StorageError, match=said):
        runs_list.find(place(tmp_path), NOW)


def test_a_place_on_s3_without_runs(s3: str) -> None:
    with pytest.raises(StorageError, match="no run in s3://"):
        runs_list.find(s3)
    with pytest.raises(StorageError, match="no bucket"):
        runs_list.find("s3://no-such-bucket/runs")


def test_the_command(tmp_path: Path) -> None:
    make_run(f"{tmp_path}/runs", name="a-name-of-some-length-that-is-not-cut")
    (tmp_path / "runs" / "photos").mkdir()
    shown = CliRunner().invoke(app, ["runs", f"{tmp_path}/runs"])
    assert shown.exit_code == 0
    (row,) = [line for line in shown.stdout.splitlines() if "20/2,000" in line]
    assert row.split()[:2] == ["a-name-of-some-length-that-is-not-cut", "training"]
    assert shown.stderr == "skipped photos: no run.json in it\n"
    listed = CliRunner().invoke(app, ["runs", f"{tmp_path}/runs", "--json"])
    ((document),) = json.loads(listed.stdout)
    assert (document["state"], document["step"]) == ("training", 20)
