"""Trackers hold what they were given: scalars, clips, contact sheets, the config."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import av
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
def test_a_missing_tracker_names_its_extra(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, kind, None)  # as where it is not installed
    with pytest.raises(ConfigError, match=rf"pip install 'raygen\[{kind}\]'"):
        tracking.check_installed(Config.load("tiny", {"tracking.kind": kind}))


def test_mlflow_holds_metrics_and_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow", reason="the extra raygen[mlflow] is not installed")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    more = {"tracking.kind": "mlflow", "storage": str(tmp_path), "name": "a"}
    config = Config.load("tiny", more)
    tracking.check_installed(config)
    _log(config)
    # Goes on in the same run, with another setting.
    resumed = tracking.open_tracker(Config.load("tiny", {**more, "train.steps": 3000}))
    resumed.scalars({"loss/critic": 0.125}, 30)
    resumed.close()
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/a/mlflow/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("raygen").experiment_id])
    assert (run.info.run_name, run.info.status) == ("a", "FINISHED")
    history = client.get_metric_history(run.info.run_id, "loss/critic")
    assert [(m.step, m.value) for m in history] == [(10, 0.5), (20, 0.25), (30, 0.125)]
    assert run.data.params["optim.generator.lr"] == str(config.optim.generator.lr)
    assert run.data.params["train.steps"] == str(config.train.steps)
    assert len(run.data.params) == len(config.flat())
    (clip,) = tmp_path.glob("a/mlflow/artifacts/*/artifacts/samples/samples-00000020.mp4")
    with av.open(str(clip)) as container:
        assert len(list(container.decode(video=0))) == 8
    assert clip.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_mlflow_that_cannot_be_had_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow", reason="the extra raygen[mlflow] is not installed")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    remote = Config.load("tiny", {"tracking.kind": "mlflow", "storage": "s3://bucket/runs"})
    with pytest.raises(ConfigError, match=r"needs a server: set MLFLOW_TRACKING_URI$"):
        tracking.check_installed(remote)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "excel://nowhere")
    tracking.check_installed(remote)
    with pytest.raises(ConfigError, match=r"tracking.kind=mlflow at .*excel://nowhere: ") as caught:
        tracking.open_tracker(remote)
    assert "\n" not in str(caught.value)


@pytest.fixture
def _wandb() -> Iterator[None]:
    """W&B without a memory of the environment that another test gave it."""
    wandb = pytest.importorskip("wandb", reason="the extra raygen[wandb] is not installed")
    wandb.teardown()
    yield
    wandb.teardown()


@pytest.mark.usefixtures("_wandb")
def test_wandb_runs_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    config = Config.load("tiny", {"tracking.kind": "wandb", "storage": str(tmp_path), "name": "a"})
    tracking.check_installed(config)
    _log(config)
    (log,) = tmp_path.glob("a/wandb/offline-run-*-a/run-a.wandb")
    written = log.read_bytes()
    for word in (b"loss/critic", b"0.25", b"optim.generator.lr", b"contact_sheet"):
        assert word in written
    (clip,) = log.parent.glob("files/media/videos/clips_*.mp4")
    with av.open(str(clip)) as container:
        assert len(list(container.decode(video=0))) == 8
    (sheet,) = log.parent.glob("files/media/images/contact_sheet_*.png")
    assert sheet.read_bytes().startswith(b"\x89PNG")


@pytest.mark.usefixtures("_wandb")
def test_wandb_that_cannot_be_had_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    config = Config.load("tiny", {"tracking.kind": "wandb", "storage": str(tmp_path)})
    with pytest.raises(ConfigError, match="no API key: set WANDB_API_KEY"):
        tracking.check_installed(config)
    with pytest.raises(ConfigError, match=r"tracking.kind=wandb: .*API key") as caught:
        tracking.open_tracker(config)
    assert "\n" not in str(caught.value)
    monkeypatch.setenv("WANDB_MODE", "offline")
    remote = Config.load("tiny", {"tracking.kind": "wandb", "storage": "s3://bucket/runs"})
    with pytest.raises(ConfigError, match="WANDB_MODE=offline keeps its files beside the run"):
        tracking.check_installed(remote)


def _log(config: Config) -> None:
    tracker = tracking.open_tracker(config)
    tracker.scalars({"loss/critic": 0.5}, 10)
    tracker.scalars({"loss/critic": 0.25}, 20)
    clips = np.random.default_rng(0).integers(0, 255, (2, 8, 32, 32, 3), dtype=np.uint8)
    tracker.samples(clips, ["wave", "jump"], 8, 20)
    tracker.close()
