"""Trials in TensorBoard's HParams as they run: `tensorboard --logdir STORAGE/tensorboard`.

Event files grow by appending, which S3 has not: for a storage there they are written to a scratch
folder and uploaded whole.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tensorboard.plugins.hparams.api_pb2 import STATUS_FAILURE
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from raygen.data import store
from tune.records import TENSORBOARD, Records, Result, Trial


class HParams:
    """A session a trial: its values, and its metric and dollars after each level."""

    def __init__(self, storage: str, metric: str) -> None:
        self._destination, self._metric = store.join(storage, TENSORBOARD), metric
        self._remote = store.is_s3(storage)
        self._folder = Path(tempfile.mkdtemp() if self._remote else self._destination)
        self._writers: dict[str, Any] = {}

    def add(self, trial: Trial, result: Result) -> None:
        """Takes what a trial reported."""
        from torch.utils.tensorboard import SummaryWriter
        from torch.utils.tensorboard.summary import hparams

        if trial.name not in self._writers:
            writer = SummaryWriter(str(self._folder / trial.name))
            plain = {key: _plain(value) for key, value in trial.values.items()}
            figures = {self._metric: 0.0, "dollars": 0.0}
            experiment, session, _ = hparams(plain, figures)  # type: ignore[no-untyped-call]
            file = writer._get_file_writer()  # type: ignore[no-untyped-call]
            file.add_summary(experiment)
            file.add_summary(session)
            self._writers[trial.name] = writer
        writer = self._writers[trial.name]
        for name, value in self._scalars(result).items():
            if math.isfinite(value):
                writer.add_scalar(name, value, result.step)
        writer.flush()
        self._upload(trial.name)

    def close(self, records: Records) -> None:
        """No more comes: a trial that failed is shown as such, others as done."""
        from torch.utils.tensorboard.summary import hparams

        failed = {trial.name for trial in records.trials.values() if trial.detail}
        for name, writer in self._writers.items():
            end = hparams({}, {})[2]  # type: ignore[no-untyped-call]
            if name in failed:
                data = end.value[0].metadata.plugin_data
                content = HParamsPluginData.FromString(data.content)
                content.session_end_info.status = STATUS_FAILURE
                data.content = content.SerializeToString()
            writer._get_file_writer().add_summary(end)
            writer.close()
            self._upload(name)

    def _scalars(self, result: Result) -> Mapping[str, float]:
        return {**result.figures, self._metric: result.score, "dollars": result.dollars}

    def _upload(self, name: str) -> None:
        if self._remote:
            for path in sorted((self._folder / name).iterdir()):
                store.write_bytes(store.join(self._destination, name, path.name), path.read_bytes())


def _plain(value: Any) -> Any:
    return value if isinstance(value, bool | int | float | str) else str(value)
