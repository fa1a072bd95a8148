"""Catalogue -> Ray Dataset -> batches of clips, in the order that the plan fixes.

Each worker streams the positions that are its own: Ray Data carries them to decode actors and the
clips back, bounded by its own backpressure. A clip that cannot be decoded becomes an error row;
the next one of the plan that can takes its place in the batch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import torch
from numpy.typing import NDArray
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask
from torch import Tensor

from raygen.config import DataConfig
from raygen.data import decode, store
from raygen.data.cache import ClipCache
from raygen.data.catalog import Catalogue
from raygen.data.plan import Plan, positions
from raygen.errors import DataError, StorageError

# A task carries about this many bytes of clips: enough to hide its cost, little to wait for.
TASK_BYTES = 4 << 20
SUBSTITUTES = 32


@dataclass(frozen=True)
class Batch:
    """One worker's share of a global batch.

    clips: uint8 [B, T, H, W, 3]; labels: int64 [B]; refused: catalogue row -> reason.
    """

    clips: Tensor
    labels: Tensor
    refused: dict[int, str]


class Decoder:
    """Positions to clips; holds the catalogue, the plan and a cache of short videos."""

    def __init__(self, catalogue: Catalogue, plan: Plan, config: DataConfig) -> None:
        self.table = catalogue.table
        classes = {name: i for i, name in enumerate(catalogue.classes)}
        self.labels = [classes[label] for label in self.table["label"].to_pylist()]
        self.plan = plan
        self.config = config
        self.cache = ClipCache(config.cache_mb << 20)

    def __call__(self, batch: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Column `position` to columns clip, label, planned and reason, as `row` gives them."""
        rows = [self.row(int(position)) for position in batch["position"]]
        clips, labels, planned, reasons = zip(*rows, strict=True)
        return {
            "clip": np.stack(clips),
            "label": np.array(labels, np.int64),
            "planned": np.array(planned, np.int64),
            "reason": np.array(reasons, dtype=object),
        }

    def row(self, position: int) -> tuple[decode.Clip, int, int, str]:
        """(clip, its label, the row that was planned, why that one was refused or "")."""
        planned, refusal = self.plan.span(position).index, ""
        for attempt in range(SUBSTITUTES):
            span = self.plan.span(position + attempt)
            try:
                return self.clip(span.index, span.start), self.labels[span.index], planned, refusal
            except (DataError, StorageError) as error:
                refusal = refusal or str(error)
        raise DataError(
            f"{SUBSTITUTES} clips in a row cannot be decoded, the first: "
            f"{self.table['uri'][planned].as_py()} {refusal}"
        )

    def clip(self, index: int, start: float) -> decode.Clip:
        """The clip of row `index` that begins at `start` in [0, 1) of its spare time.

        Raises DataError or StorageError.
        """
        config = self.config
        uri, seconds = (self.table[name][index].as_py() for name in ("uri", "duration"))
        total = decode.frame_count(seconds, config.fps)
        first = int(start * (total - config.frames + 1))
        if total * config.size * config.size * 3 > self.cache.limit // 8:
            return decode.decode(
                store.read_bytes(uri),
                start=first / config.fps,
                frames=config.frames,
                fps=config.fps,
                size=config.size,
            )
        whole = self.cache.get(
            uri,
            lambda: decode.decode_all(
                store.read_bytes(uri), fps=config.fps, size=config.size, seconds=seconds
            ),
        )
        if len(whole) < config.frames:
            raise DataError(f"holds {len(whole)} frames of the {total} that its header promises")
        first = min(first, len(whole) - config.frames)
        return whole[first : first + config.frames]


class _Positions(Datasource):  # type: ignore[misc]
    """Rows of positions, made where they are read: a training of any length costs no memory."""

    def __init__(self, steps: range, rank: int, world_size: int, batch_size: int, each: int):
        self.steps, self.rank, self.world_size = steps, rank, world_size
        self.batch_size, self.each = batch_size, each

    def estimate_inmemory_data_size(self) -> int:
        return len(self.steps) * self.batch_size // self.world_size * 8

    def get_read_tasks(self, parallelism: int, *args: Any, **kwargs: Any) -> list[ReadTask]:
        share = (self.rank, self.world_size, self.batch_size)

        def task(steps: range) -> ReadTask:
            def read() -> Iterable[pa.Table]:
                rows = np.concatenate([np.array(positions(step, *share)) for step in steps])
                yield pa.table({"position": rows})

            count = len(steps) * self.batch_size // self.world_size
            return ReadTask(read, BlockMetadata(count, count * 8, None, None))

        return [task(self.steps[i : i + self.each]) for i in range(0, len(self.steps), self.each)]


def batches(
    catalogue: Catalogue,
    plan: Plan,
    config: DataConfig,
    *,
    steps: range,
    rank: int,
    world_size: int,
    batch_size: int,
) -> Iterator[Batch]:
    """This worker's share of the global batches `steps`, in order.

    Raises DataError where nothing decodes any more.
    """
    share = batch_size // world_size
    clip_bytes = config.frames * config.size * config.size * 3
    each = max(1, math.ceil(TASK_BYTES / (share * clip_bytes)))
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    dataset = ray.data.read_datasource(
        _Positions(steps, rank, world_size, batch_size, each), ray_remote_args={"num_cpus": 0}
    ).map_batches(
        Decoder,
        fn_constructor_args=(catalogue, plan, config),
        batch_size=None,
        compute=ray.data.ActorPoolStrategy(size=config.decoders),
        num_cpus=0,
    )
    yield from dataset.iter_torch_batches(
        batch_size=share, prefetch_batches=2, drop_last=False, collate_fn=_collate
    )


def _collate(columns: dict[str, NDArray[Any]]) -> Batch:
    refused = {
        int(row): str(reason)
        for row, reason in zip(columns["planned"], columns["reason"], strict=True)
        if reason
    }
    return Batch(torch.from_numpy(columns["clip"]), torch.from_numpy(columns["label"]), refused)
