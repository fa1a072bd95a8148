"""Scalars, sample clips and contact sheets of a run: TensorBoard, Weights & Biases or MLflow.

Rank 0 holds the one tracker of a run, and whoever goes on with the run goes on in the same place:

    tensorboard   STORAGE/NAME/tensorboard/, local or on S3
    wandb         the project `tracking.project` of W&B; its files in STORAGE/NAME/wandb/
    mlflow        the experiment `tracking.project` at MLFLOW_TRACKING_URI; where that is not set,
                  STORAGE/NAME/mlflow/mlflow.db

A tracker behind an extra that is not installed is a ConfigError that names the command which
installs it.
"""

from __future__ import annotations

import importlib
import io
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from raygen import video
from raygen.config import Config
from raygen.data import store
from raygen.errors import ConfigError
from raygen.runs import run_uri

Clips = NDArray[np.uint8]

MLFLOW_PARAMS = 100  # the most that it takes at once


class Tracker(Protocol):
    """Where a run's numbers and pictures go."""

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Logs named numbers at a step."""

    def samples(self, clips_NTHWC: Clips, labels: list[str], fps: float, step: int) -> None:
        """Logs generated clips, uint8, as a video grid and as a contact sheet."""

    def close(self) -> None:
        """Flushes; the tracker takes nothing more."""


def open_tracker(config: Config) -> Tracker:
    """The tracker that `config.tracking.kind` names. Raises ConfigError where it is missing."""
    trackers: dict[str, Callable[[Config], Tracker]]
    trackers = {"tensorboard": TensorBoard, "wandb": WandB, "mlflow": MLflow}
    return trackers[config.tracking.kind](config)


def check_installed(config: Config) -> None:
    """Raises ConfigError, with the fix, where it is plain that the tracker cannot be opened."""
    kind, remote = config.tracking.kind, store.is_s3(config.storage)
    if kind == "wandb":
        wandb = _extra(kind)
        mode = os.environ.get("WANDB_MODE", "online")
        if mode == "offline" and remote:
            raise ConfigError(
                f"WANDB_MODE=offline keeps its files beside the run, and storage={config.storage} "
                "is no folder; unset it, or take a local storage",
                "tracking.kind",
            )
        if mode in ("online", "shared") and not wandb.login(prompt=False):
            raise ConfigError(
                "tracking.kind=wandb has no API key: set WANDB_API_KEY, run `wandb login`, or set "
                "WANDB_MODE=offline",
                "tracking.kind",
            )
    elif kind == "mlflow":
        _extra(kind)
        if remote and "MLFLOW_TRACKING_URI" not in os.environ:
            raise ConfigError(
                f"tracking.kind=mlflow with storage={config.storage} needs a server: set "
                "MLFLOW_TRACKING_URI",
                "tracking.kind",
            )


class TensorBoard:
    """Event files in the run's `tensorboard/`; `tensorboard --logdir STORAGE` shows them."""

    def __init__(self, config: Config) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._destination = store.join(run_uri(config), "tensorboard")
        # Event files grow by appending, which S3 has not: written here, uploaded at each flush.
        self._scratch = tempfile.mkdtemp() if store.is_s3(self._destination) else None
        self._writer: Any = SummaryWriter(self._scratch or self._destination)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Logs named numbers at a step."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def samples(self, clips_NTHWC: Clips, labels: list[str], fps: float, step: int) -> None:
        """Logs a contact sheet as an image and the clips as an animation."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        sheet = np.asarray(Image.open(io.BytesIO(video.contact_sheet(clips_NTHWC, labels))))
        self._writer.add_image("contact_sheet", sheet, step, dataformats="HWC")
        # The writer's own add_video needs moviepy; an image summary may hold any encoded GIF.
        grid = video.grid(clips_NTHWC)
        _, height, width, channels = grid.shape
        image = Summary.Image(
            height=height,
            width=width,
            colorspace=channels,
            encoded_image_string=video.encode_gif(grid, fps),
        )
        summary = Summary(value=[Summary.Value(tag="clips", image=image)])
        self._writer.file_writer.add_summary(summary, step)
        self._flush()

    def close(self) -> None:
        """Flushes; the tracker takes nothing more."""
        self._writer.close()
        self._flush()

    def _flush(self) -> None:
        self._writer.flush()
        if self._scratch:
            for path in Path(self._scratch).iterdir():
                store.write_bytes(store.join(self._destination, path.name), path.read_bytes())


class WandB:
    """A run of Weights & Biases; the same name goes on in the same run."""

    def __init__(self, config: Config) -> None:
        self._wandb: Any = _extra("wandb")
        # On S3 storage its files are only on their way to the server.
        folder = tempfile.mkdtemp() if store.is_s3(config.storage) else run_uri(config)
        Path(folder).mkdir(parents=True, exist_ok=True)
        try:
            self._run = self._wandb.init(
                project=config.tracking.project,
                id=config.name,
                resume="allow",
                config=config.flat(),
                dir=folder,
                # What the worker prints is Ray's.
                settings=self._wandb.Settings(console="off"),
            )
        except self._wandb.Error as error:
            raise ConfigError(f"tracking.kind=wandb: {_one_line(error)}", "tracking.kind") from None
        # W&B drops what comes with a lower step of its own, as after a return to a checkpoint.
        self._run.define_metric("*", step_metric="step")

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Logs named numbers at a step."""
        self._run.log({**values, "step": step})

    def samples(self, clips_NTHWC: Clips, labels: list[str], fps: float, step: int) -> None:
        """Logs a contact sheet and an mp4."""
        with tempfile.TemporaryDirectory() as folder:
            clip, sheet = _write(folder, "clips", clips_NTHWC, labels, fps)
            media = {
                "clips": self._wandb.Video(str(clip), format="mp4"),
                "contact_sheet": self._wandb.Image(str(sheet)),
            }
            self._run.log({**media, "step": step})

    def close(self) -> None:
        """Flushes; the tracker takes nothing more."""
        self._run.finish()
        # `finish` only asks W&B's process to write its file to the end; this waits for it, before
        # Ray ends that process with the worker's.
        self._wandb.teardown()


class MLflow:
    """A run of MLflow; the same name and storage go on in the same run.

    Its params are those of the beginning: MLflow lets none change.
    """

    def __init__(self, config: Config) -> None:
        mlflow: Any = _extra("mlflow")
        self._entities: Any = mlflow.entities
        uri, artifacts = os.environ.get("MLFLOW_TRACKING_URI"), None
        if uri is None:
            home = Path(run_uri(config)) / "mlflow"
            home.mkdir(parents=True, exist_ok=True)
            uri, artifacts = f"sqlite:///{home}/mlflow.db", (home / "artifacts").as_uri()
        try:
            self._client: Any = mlflow.MlflowClient(tracking_uri=uri)
            self._run = self._open(config, artifacts)
        except mlflow.MlflowException as error:
            raise ConfigError(
                f"tracking.kind=mlflow at MLFLOW_TRACKING_URI={uri}: {_one_line(error)}",
                "tracking.kind",
            ) from None

    def _open(self, config: Config, artifacts: str | None) -> str:
        """The id of the run of this name and storage, begun where there is none."""
        client, project = self._client, config.tracking.project
        experiment = client.get_experiment_by_name(project)
        if experiment is None:
            place = client.create_experiment(project, artifact_location=artifacts)
        else:
            place = experiment.experiment_id
        tag = {"raygen.run": run_uri(config)}
        found = client.search_runs([place], f"tags.`raygen.run` = '{tag['raygen.run']}'")
        if found:
            run: str = found[0].info.run_id
            client.update_run(run, status="RUNNING")
            return run
        run = client.create_run(place, run_name=config.name, tags=tag).info.run_id
        params = [self._entities.Param(key, str(value)) for key, value in config.flat().items()]
        for k in range(0, len(params), MLFLOW_PARAMS):
            client.log_batch(run, params=params[k : k + MLFLOW_PARAMS])
        return run

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Logs named numbers at a step."""
        now_ms = time.time_ns() // 1_000_000
        metrics = [self._entities.Metric(k, float(v), now_ms, step) for k, v in values.items()]
        self._client.log_batch(self._run, metrics=metrics)

    def samples(self, clips_NTHWC: Clips, labels: list[str], fps: float, step: int) -> None:
        """Logs a contact sheet and an mp4 as artifacts."""
        with tempfile.TemporaryDirectory() as folder:
            _write(folder, f"samples-{step:08d}", clips_NTHWC, labels, fps)
            self._client.log_artifacts(self._run, folder, "samples")

    def close(self) -> None:
        """Flushes; the tracker takes nothing more."""
        self._client.set_terminated(self._run)


def _write(
    folder: str, name: str, clips_NTHWC: Clips, labels: list[str], fps: float
) -> tuple[Path, Path]:
    """The clips as an mp4 and as a contact sheet."""
    clip, sheet = Path(folder) / f"{name}.mp4", Path(folder) / f"{name}.png"
    clip.write_bytes(video.encode_mp4(video.grid(clips_NTHWC), fps))
    sheet.write_bytes(video.contact_sheet(clips_NTHWC, labels))
    return clip, sheet


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _extra(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise ConfigError(
            f"tracking.kind={name} needs it installed: pip install 'raygen[{name}]'",
            "tracking.kind",
        ) from None
