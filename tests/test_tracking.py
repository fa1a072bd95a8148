from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from raygen import tracking
from raygen.config import Config
from raygen.data import store
from raygen.errors import ConfigError


def test_tensorboard_holds_scalars_and_pictures(tmp_path: Path) -> None:
    config = Config.load("tiny", {"storage": str(tmp_path), "name": "a"})
    _log(config)
    events = EventAccumulator(str(tmp_path / "a" / "tensorboard"), size_guidance={"images": 0})
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss/critic")] == [(10, 0.5), (20, 0.25)]
    assert {"clips", "contact_sheet"} <= set(events.Tags()["images"])
    assert events.Images("clips")[0].encoded_image_string.startswith(b"GIF89a")


def test_tensorboard_reaches_s3(s3: str) -> None:
    _log(Config.load("tiny", {"storage": s3, "name": "a"}))
    (item,) = store.list_objects(f"{s3}/a/tensorboard")
    assert item.size > 1000


@pytest.mark.parametrize("kind", ["wandb", "mlflow"])
def test_a_missing_tracker_names_its_extra(kind: str) -> None:
    if importlib.util.find_spec(kind):
        pytest.skip(f"{kind} is installed here")
    with pytest.raises(ConfigError, match=rf"raygen\[{kind}\]"):
        tracking.check_installed(Config.load("tiny", {"tracking.kind": kind}))


def test_mlflow_holds_metrics_and_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow", reason="the extra raygen[mlflow] is not installed")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.chdir(tmp_path)
    _log(Config.load("tiny", {"tracking.kind": "mlflow", "name": "a"}))
    (run,) = mlflow.search_runs(experiment_names=["raygen"], output_format="list")
    assert run.data.metrics["loss/critic"] == 0.25
    assert run.data.params["optim.generator.lr"] == "0.0005"


def test_wandb_runs_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="the extra raygen[wandb] is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.chdir(tmp_path)
    _log(Config.load("tiny", {"tracking.kind": "wandb", "name": "a"}))
    assert list(tmp_path.glob("wandb/offline-run-*-a/run-a.wandb"))


def _log(config: Config) -> None:
    tracker = tracking.open_tracker(config)
    tracker.scalars({"loss/critic": 0.5}, 10)
    tracker.scalars({"loss/critic": 0.25}, 20)
    clips = np.random.default_rng(0).integers(0, 255, (2, 8, 32, 32, 3), dtype=np.uint8)
    tracker.samples(clips, ["wave", "jump"], 8, 20)
    tracker.close()
