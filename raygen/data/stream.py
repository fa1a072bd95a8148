"""Catalogue -> Ray Dataset -> batches of clips, in the order that the plan fixes.

Each worker streams the positions that are its own: Ray Data carries them to decode actors and the
clips back, bounded by its own backpressure. A clip that cannot be decoded becomes an error row;
the next one of the plan that can takes its place in the batch.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import ray.data
import torch
from numpy.typing import NDArray
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask
from torch import Tensor

from raygen.config import DataConfig
from raygen.data.catalog import Catalogue
from raygen.data.decoder import Decoder
from raygen.data.plan import Plan, positions

# A task carries about this many bytes of clips: enough to hide its cost, little to wait for.
TASK_BYTES = 4 << 20
# How many tasks the decoders may run ahead of the trainer.
AHEAD_TASKS = 8
# Tasks of one execution of Ray Data, which holds them all.
TASKS = 128


@dataclass(frozen=True)
class Batch:
    """One worker's share of a global batch.

    clips: uint8 [B, T, H, W, 3]; labels: int64 [B]; refused: catalogue row -> reason.
    """

    clips: Tensor
    labels: Tensor
    refused: dict[int, str]


class _Pace:
    """An actor that lets the reader of positions go no further than `ahead` of the trainer.

    Left to its own backpressure, Ray Data decodes until the object store is full, and then polls:
    both on the trainer's cores. A reader that waits costs nothing.
    """

    def __init__(self, step: int, ahead: int) -> None:
        self.step, self.ahead = step, ahead
        self.moved = asyncio.Condition()

    async def reach(self, step: int) -> None:
        """The trainer is at `step`."""
        async with self.moved:
            self.step = step
            self.moved.notify_all()

    async def until_near(self, step: int) -> None:
        """Returns once the trainer is near enough to `step`."""
        async with self.moved:
            await self.moved.wait_for(lambda: step <= self.step + self.ahead)


class _Positions(Datasource):  # type: ignore[misc]
    """Rows of positions, made where they are read (`from_arrow` would wait for a free CPU)."""

    def __init__(
        self, steps: range, rank: int, world_size: int, batch_size: int, each: int, pace: Any
    ) -> None:
        self.steps, self.rank, self.world_size = steps, rank, world_size
        self.batch_size, self.each, self.pace = batch_size, each, pace

    def estimate_inmemory_data_size(self) -> int:
        return len(self.steps) * self.batch_size // self.world_size * 8

    def get_read_tasks(self, parallelism: int, *args: Any, **kwargs: Any) -> list[ReadTask]:
        share, pace = (self.rank, self.world_size, self.batch_size), self.pace

        def task(steps: range) -> ReadTask:
            def read() -> Iterable[pa.Table]:
                ray.get(pace.until_near.remote(steps.start))
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
    pace = ray.remote(num_cpus=0)(_Pace).remote(steps.start, AHEAD_TASKS * each)
    for first in range(0, len(steps), each * TASKS):
        part = steps[first : first + each * TASKS]
        dataset = ray.data.read_datasource(
            _Positions(part, rank, world_size, batch_size, each, pace),
            # One reader is plenty. Neither it nor the decoders reserve a CPU of their own: they
            # share those that their worker has reserved.
            ray_remote_args={"num_cpus": 0},
            concurrency=1,
        ).map_batches(
            Decoder,
            fn_constructor_args=(catalogue, plan, config),
            batch_size=None,
            compute=ray.data.ActorPoolStrategy(size=config.decoders),
            num_cpus=0,
        )
        received = dataset.iter_torch_batches(
            batch_size=share, prefetch_batches=2, drop_last=False, collate_fn=_collate
        )
        for step, batch in zip(part, received, strict=True):
            if step % each == 0:
                pace.reach.remote(step)
            yield batch


def _collate(columns: dict[str, NDArray[Any]]) -> Batch:
    refused = {
        int(row): str(reason)
        for row, reason in zip(columns["planned"], columns["reason"], strict=True)
        if reason
    }
    return Batch(torch.from_numpy(columns["clip"]), torch.from_numpy(columns["label"]), refused)
