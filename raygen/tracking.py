"""Scalars, sample clips and contact sheets of a run: TensorBoard, Weights & Biases or MLflow.

Rank 0 holds the one tracker of a run. A tracker behind an extra that is not installed is a
ConfigError that names the command which installs it.
"""

from __future__ import annotations

import importlib
import io
import tempfile
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
    """Raises ConfigError unless the configured tracker can be opened."""
    if config.tracking.kind != "tensorboard":
        _extra(config.tracking.kind)


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
        self._run = self._wandb.init(
            project=config.tracking.project, id=config.name, resume="allow", config=config.flat()
        )

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Logs named numbers at a step."""
        self._run.log(dict(values), step=step)

    def samples(self, clips_NTHWC: Clips, labels: list[str], fps: float, step: int) -> None:
        """Logs a contact sheet and an mp4."""
        with tempfile.TemporaryDirectory() as folder:
            clip, sheet = Path(folder) / "clips.mp4", Path(folder) / "sheet.png"
            clip.write_bytes(video.encode_mp4(video.grid(clips_NTHWC), fps))
            sheet.write_bytes(video.contact_sheet(clips_NTHWC, labels))
            media = {
                "clips": self._wandb.Video(str(clip), format="mp4"),
                "contact_sheet": self._wandb.Image(str(sheet)),
            }
            self._run.log(media, step=step)

    def close(self) -> None:
        """Flushes; the tracker takes nothing more."""
        self._run.finish()


class MLflow:
    """A run of MLflow in the experiment `tracking.project`; `MLFLOW_TRACKING_URI` says where."""

    def __init__(self, config: Config) -> None:
        self._mlflow: Any = _extra("mlflow")
        self._mlflow.set_experiment(config.tracking.project)
        self._mlflow.start_run(run_name=config.name)
        self._mlflow.log_params(config.flat())

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Logs named numbers at a step."""
        self._mlflow.log_metrics(dict(values), step=step)

    def samples(self, clips_NTHWC: Clips, labels: list[str], fps: float, step: int) -> None:
        """Logs a contact sheet and an mp4 as artifacts."""
        with tempfile.TemporaryDirectory() as folder:
            name = f"samples-{step:08d}"
            clip = video.encode_mp4(video.grid(clips_NTHWC), fps)
            (Path(folder) / f"{name}.mp4").write_bytes(clip)
            sheet = video.contact_sheet(clips_NTHWC, labels)
            (Path(folder) / f"{name}.png").write_bytes(sheet)
            self._mlflow.log_artifacts(folder, "samples")

    def close(self) -> None:
        """Flushes; the tracker takes nothing more."""
        self._mlflow.end_run()


def _extra(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise ConfigError(
            f"tracking.kind={name} needs it installed: pip install 'raygen[{name}]'",
            "tracking.kind",
        ) from None
