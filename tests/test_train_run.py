"""Real trainings: two workers on a local Ray, clips and storage on S3, killed and resumed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pytest
import torch

from raygen.config import Config
from raygen.data import lineage, quarantine, store
from raygen.data.scan import scan
from raygen.evaluate import evaluate_run
from raygen.runs import Run
from raygen.train import uneven
from tests.conftest import user_environment
from tests.small_runs import SMALL

STEPS = 12
SETTINGS = [
    *(f"{key}={value}" for key, value in SMALL.items()),
    "train.batch_size=4",
    "train.workers=2",
    "train.cpus_per_worker=0.5",
    "train.checkpoint_every=4",
    "train.sample_every=6",
    "loss.penalty_every=2",
]


def start(
    uri: str, storage: str, name: str, *more: str, cwd: Path | None = None
) -> subprocess.Popen[str]:
    overrides = [f"data.uri={uri}", f"storage={storage}", f"name={name}", *SETTINGS, *more]
    return subprocess.Popen(
        [sys.executable, "-m", "raygen", "train", "tiny", *overrides],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env=user_environment(),
        cwd=cwd,
    )


def finish(process: subprocess.Popen[str], code: int = 0) -> str:
    output, _ = process.communicate(timeout=240)
    assert process.returncode == code, output
    return output


def wait_for_step(run_uri: str, step: int) -> None:
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline:
        if store.exists(store.join(run_uri, "run.json")):
            run = Run.open(run_uri)
            if run.checkpoints() and run.status["step"] >= step:
                return
        time.sleep(0.2)
    raise AssertionError(f"{run_uri} has no checkpoint of step {step}")


@pytest.fixture(scope="module")
def catalogue_uri(shapes: Path, _s3_server: str) -> str:
    """Twelve clips on S3, catalogued; since then one of them has broken."""
    root = f"{_s3_server}/train"
    for item in store.list_objects(str(shapes)):
        uri = store.join(root, item.uri.removeprefix(str(shapes)))
        store.write_bytes(uri, store.read_bytes(item.uri))
    found = scan(root)
    found.write(f"{root}/catalogue.parquet")
    store.write_bytes(found.table["uri"][0].as_py(), b"<html>Service Unavailable</html>")
    return f"{root}/catalogue.parquet"


@pytest.fixture(scope="module")
def undisturbed(catalogue_uri: str, _s3_server: str) -> Run:
    """A run on S3 from end to end."""
    storage = f"{_s3_server}/runs"
    finish(start(catalogue_uri, storage, "undisturbed", f"train.steps={STEPS}"))
    return Run.open(f"{storage}/undisturbed")


def test_a_run_on_s3_is_whole(undisturbed: Run) -> None:
    assert undisturbed.status["step"] == STEPS
    assert undisturbed.status["clips_seen"] == STEPS * 4
    assert 0 < undisturbed.status["dollars"] < 0.1
    # Of the checkpoints at 4, 8 and 12, the newest two are kept.
    assert [uri.rpartition("-")[2] for uri in undisturbed.checkpoints()] == ["00000008", "00000012"]
    events = list(store.list_objects(undisturbed.path("tensorboard")))
    assert [item.uri for item in events if "tfevents" in item.uri]


def test_a_clip_that_broke_is_quarantined(undisturbed: Run) -> None:
    refused = quarantine.read(undisturbed.uri)
    (uri,) = refused
    assert uri.endswith("-0001.mp4")
    assert "was replaced since it was scanned" in refused[uri]


def test_a_run_is_judged(undisturbed: Run) -> None:
    config = Config.parse(
        undisturbed.config.dump(),
        {"evaluate.clips": 32, "evaluate.judge_steps": 10, "evaluate.batch_size": 8},
    )
    run = Run.create(config, undisturbed.classes, undisturbed.data)
    evaluation = evaluate_run(run)
    assert run.read_json("evaluation.json") == evaluation.as_dict()
    assert 0 <= evaluation.class_accuracy <= 1
    # Untrained generators flicker: judged at all, they are judged bad.
    assert evaluation.frechet > evaluation.frechet_real


def test_killed_and_resumed_ends_with_the_same_weights(
    undisturbed: Run, catalogue_uri: str, tmp_path: Path
) -> None:
    killed = start(catalogue_uri, "runs", "killed", f"train.steps={STEPS}", cwd=tmp_path)
    wait_for_step(f"{tmp_path}/runs/killed", 4)
    killed.kill()
    killed.communicate()
    run = Run.open(f"{tmp_path}/runs/killed")
    stopped_at = run.status["step"]
    settings = [f"train.steps={STEPS}", "train.recompute=true"]
    output = finish(start(catalogue_uri, f"{tmp_path}/runs", "killed", *settings))
    assert "changed since the last checkpoint: train.recompute: False -> True" in output
    assert "last checkpoint: storage" not in output
    if stopped_at < STEPS:
        assert f"goes on from the checkpoint of step {stopped_at}" in output
    # What the workers wrote is there as well, wherever they were at home.
    assert list(tmp_path.glob("runs/killed/tensorboard/*tfevents*"))
    assert run.status["step"] == STEPS
    expected = undisturbed.load_ema()
    for name, tensor in run.load_ema().items():
        assert torch.equal(tensor, expected[name]), name


@pytest.mark.slow
def test_killed_and_resumed_by_fewer_workers_sees_each_clip_once_an_epoch(
    catalogue_uri: str, tmp_path: Path
) -> None:
    steps = "train.steps=22"  # of 4 clips: eight epochs of the 11 that decode
    killed = start(catalogue_uri, str(tmp_path), "fewer", steps)
    wait_for_step(f"{tmp_path}/fewer", 4)
    killed.kill()
    killed.communicate()
    stopped_at = Run.open(f"{tmp_path}/fewer").status["step"]
    output = finish(start(catalogue_uri, str(tmp_path), "fewer", steps, "train.workers=1"))
    run = Run.open(f"{tmp_path}/fewer")
    assert run.status["step"] == 22
    if stopped_at < 22:
        assert f"goes on from the checkpoint of step {stopped_at}" in output
        assert run.status["world_size"] == 1
    consumed = lineage.read(run.uri)
    assert consumed["step"].to_pylist() == [step for step in range(1, 23) for _ in range(4)]
    assert np.bincount(consumed["row"]).tolist() == [0, *[8] * 11]
    # Within an epoch too: eleven clips fill steps 1 to 11 of 4 exactly four times.
    half = consumed.filter(pc.less_equal(consumed["step"], 11))
    assert np.bincount(half["row"]).tolist() == [0, *[4] * 11]


def test_ctrl_c_saves_and_says_how_to_go_on(catalogue_uri: str, tmp_path: Path) -> None:
    process = start(catalogue_uri, str(tmp_path), "stopped", "train.steps=100000")
    wait_for_step(f"{tmp_path}/stopped", 4)
    os.killpg(process.pid, signal.SIGINT)
    output = finish(process, 130)
    status = Run.open(f"{tmp_path}/stopped").status
    assert f"stopped and saved at step {status['step']}; the same command" in output
    assert "Traceback" not in output


def test_a_budget_ends_a_run_saved_and_judged_on_its_way(
    catalogue_uri: str, tmp_path: Path
) -> None:
    limits = ["train.steps=100000", "train.checkpoint_every=10", "budget.minutes=0.5"]
    judged = ["evaluate.every=20", "evaluate.clips=32", "evaluate.judge_steps=10"]
    output = finish(start(catalogue_uri, str(tmp_path), "short", *limits, *judged))
    run = Run.open(f"{tmp_path}/short")
    status = run.status
    assert 0 < status["step"] < 100000
    assert status["elapsed_s"] >= 30
    # The judge works beside the training; the best checkpoint is kept beside the newest two.
    assert "judged: class_accuracy" in output
    best = run.best()
    assert best is not None
    assert set(run.checkpoints()[:-2]) <= {best}
    # The newest when the judge was free, which comes after 20 steps or more.
    assert f"step {run.at(best).status['step']} judged: " in output


@pytest.mark.parametrize(
    ("batch_size", "workers", "sizes"),
    [(12, [1, 4], ""), (12, 4, ""), (16, [2, 8], "2, 4, 8 workers of train.workers=[2, 8]")],
)
def test_numbers_of_workers_that_cannot_share_a_batch_are_said(
    batch_size: int, workers: object, sizes: str
) -> None:
    config = Config.load("tiny", {"train.batch_size": batch_size, "train.workers": workers})
    said = uneven(config.train)
    assert len(said) == bool(sizes)
    assert all(sizes in line for line in said)
