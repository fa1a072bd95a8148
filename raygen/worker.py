"""The training loop of one worker. Importing it loads DeepSpeed: `raygen.train` does, remotely.

Every rank runs the same loop in step with the others: take this rank's share of the next global
batch, agree on how far the run is and whether to stop, take the adversarial step, save.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import deepspeed
import ray
import ray.train
import ray.train.torch
import torch
from torch import Tensor, distributed

from raygen import checkpoint
from raygen.config import Config
from raygen.data import lineage, quarantine
from raygen.data.catalog import Catalogue
from raygen.data.receiver import Batch, Receiver
from raygen.data.stream import Feed, plan_of, start_dealer
from raygen.engine import Draws, Pair
from raygen.errors import RaygenError
from raygen.reporter import Meter, Reporter

LOG_EVERY = 10


@dataclass(frozen=True)
class Job:
    """What the driver hands to every worker; `board` is an actor handle of raygen.board.Board."""

    config: Config
    run_uri: str
    catalogue: Catalogue
    board: Any


@dataclass(frozen=True)
class _Verdict:
    """What all ranks agreed on before a step."""

    fraction: float
    stop: bool
    failed: bool


def train_worker(job: Job) -> None:
    """Trains until the steps, the budget or the driver ends it; saved when it returns."""
    _Worker(job).run()


class _Worker:
    def __init__(self, job: Job) -> None:
        context = ray.train.get_context()
        self.job, self.config = job, job.config
        self.rank, self.world_size = context.get_world_rank(), context.get_world_size()
        device = ray.train.torch.get_device()
        deepspeed.init_distributed("nccl" if device.type == "cuda" else "gloo")
        # Decisions travel beside the gradients, on the CPU: no step waits for the GPU for them.
        self.control = distributed.new_group(backend="gloo")
        before = checkpoint.resumed(job.run_uri, self._gather)
        resumed = before.progress
        self.saved_at = self.step = resumed.step
        self.cursor = resumed.position
        self.meter = Meter(self.config, resumed, nodes=len(set(self._gather(_node_id()))))
        # The decode actors start while the engines are built.
        dealer = self._dealer() if self.rank == 0 else None
        self.stream = Receiver(self._gather(dealer)[0], self.rank, self.config.data.prefetch)
        classes = job.catalogue.classes
        self.pair = Pair(
            self.config,
            len(classes),
            device=device,
            world_size=self.world_size,
            universal=before.universal(self.world_size),
        )
        checkpoint.restore(self.pair, before, self._gather)
        self.refused: dict[int, str] = {}
        self.consumed: list[tuple[int, int]] = []
        self.losses: dict[str, float] = {}
        self.reporter: Reporter | None = None
        if self.rank == 0:
            lineage.forget_after(job.run_uri, resumed.step)
            self.reporter = Reporter(self.config, classes, job.board, self.meter, self.step)

    def run(self) -> None:
        train, share = self.config.train, self.config.train.batch_size // self.world_size
        rows = slice(self.rank * share, (self.rank + 1) * share)
        while True:
            batch, failure = self._next() if self.step < train.steps else (None, None)
            verdict = self._agree(failure)
            if verdict.failed:
                return
            if batch is None or verdict.stop:
                break
            x_BCTHW = _to_float(batch.clips.to(self.pair.device, non_blocking=True))
            draws = Draws.at(self.config, self.step, rows)
            losses = self.pair.step(
                x_BCTHW, batch.labels, draws, step=self.step, progress=verdict.fraction
            )
            self.refused |= batch.refused
            self.step += 1
            self.cursor = batch.cursor
            self.consumed += [(self.step, row) for row in batch.rows.tolist()]
            if self.step % LOG_EVERY == 0:
                self._log(losses)
            if self.step % train.checkpoint_every == 0:
                self._save()
            if self.step % train.sample_every == 0:
                self._sample()
        if self.step > self.saved_at:
            self._save()
            self._sample()
        if self.reporter is not None:
            steps_done = self.step >= train.steps
            ended = "steps" if steps_done else "budget" if verdict.fraction >= 1 else "stopped"
            self.reporter.close(self.step, len(self.refused), ended)

    def _dealer(self) -> Any:
        config, catalogue = self.config, self.job.catalogue
        feed = Feed(
            plan_of(catalogue, config.data, config.seed),
            config.data,
            batch_size=config.train.batch_size,
            world_size=self.world_size,
            cursor=self.cursor,
            refused=quarantine.rows(self.job.run_uri, catalogue),
        )
        return start_dealer(catalogue, feed)

    def _next(self) -> tuple[Batch | None, RaygenError | None]:
        try:
            return next(self.stream), None
        except RaygenError as error:
            return None, error

    def _agree(self, failure: RaygenError | None) -> _Verdict:
        if failure is not None:
            ray.get(self.job.board.fail.remote(failure))
        mine = torch.zeros(3, dtype=torch.float64)
        mine[2] = failure is not None
        if self.reporter is not None:
            # Rank 0's clock and the driver's wish hold for all; the others add nothing.
            mine[0] = self.meter.fraction(self.step)
            mine[1] = self.reporter.wants_stop(self.step, len(self.refused), self.stream.waited_s)
        distributed.all_reduce(mine, distributed.ReduceOp.MAX, group=self.control)
        fraction, stop, failed = mine.tolist()
        return _Verdict(fraction, stop=bool(stop) or fraction >= 1, failed=bool(failed))

    def _log(self, losses: dict[str, Tensor]) -> None:
        # One transfer to the CPU, and one reduction, for all of them.
        names, data = sorted(losses), self.stream.figures()
        values = torch.stack([losses[name].float() for name in names]).cpu()
        values = torch.cat([values, torch.tensor(list(data.values()))])
        names += data
        distributed.all_reduce(values, group=self.control)
        self.losses = dict(zip(names, (values / self.world_size).tolist(), strict=True))
        if self.reporter is not None:
            self.reporter.losses(self.losses, self.step)

    def _save(self) -> None:
        consumed = [pair for part in self._gather(self.consumed) for pair in part]
        if self.rank == 0:
            lineage.add(self.job.run_uri, self.step, consumed)
            quarantine.add(self.job.run_uri, self.job.catalogue, self.refused)
        progress = self.meter.progress(self.step, self.cursor)
        checkpoint.save(self.pair, progress, self.losses, self.job.run_uri, self._gather)
        self.saved_at = self.step
        self.consumed = []

    def _sample(self) -> None:
        average = self.pair.ema.gather()  # a collective call at stage 3
        if self.reporter is not None:
            self.reporter.samples(average, self.step)

    def _gather(self, mine: Any) -> list[Any]:
        """What every rank has, by rank."""
        everyones: list[Any] = [None] * self.world_size
        distributed.all_gather_object(everyones, mine, group=self.control)
        return everyones


def _node_id() -> str:
    node: str = ray.get_runtime_context().get_node_id()
    return node


def _to_float(clips_BTHWC: Tensor) -> Tensor:
    """uint8 [B, T, H, W, C] -> [-1, 1] [B, C, T, H, W]."""
    return clips_BTHWC.permute(0, 4, 1, 2, 3).float().div_(127.5).sub_(1)
