"""The training loop of one worker. Importing it loads DeepSpeed: `raygen.train` does, remotely.

Every rank runs the same loop in step with the others: take this rank's share of the next global
batch, agree on how far the run is and whether to stop, take the adversarial step, save.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import deepspeed
import ray
import ray.train
import ray.train.torch
import torch
from ray.exceptions import RayError
from torch import Tensor, distributed

from raygen import checkpoint, cost, sampling, tracking
from raygen.board import Status
from raygen.checkpoint import Progress
from raygen.config import Config
from raygen.data import quarantine
from raygen.data.catalog import Catalogue
from raygen.data.plan import Plan
from raygen.data.stream import Batch, batches
from raygen.engine import Draws, Pair
from raygen.errors import DataError, RaygenError
from raygen.models import build_generator

LOG_EVERY = 10
POST_EVERY_S = 0.5
SAMPLES_PER_CLASS = 2


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
        self.started = time.monotonic()
        self.device = ray.train.torch.get_device()
        deepspeed.init_distributed("nccl" if self.device.type == "cuda" else "gloo")
        # Decisions travel beside the gradients, on the CPU: no step waits for the GPU for them.
        self.control = distributed.new_group(backend="gloo")
        self.classes = job.catalogue.classes
        self.resumed = checkpoint.progress()
        self.step = self.saved_at = self.resumed.step
        self.stream = self._stream()
        # The decode actors start while the engines are built.
        self.first = ThreadPoolExecutor(1).submit(next, self.stream, None)
        self.pair = Pair(
            self.config, len(self.classes), device=self.device, world_size=self.world_size
        )
        checkpoint.restore(self.pair)
        nodes: list[Any] = [None] * self.world_size
        node = ray.get_runtime_context().get_node_id()
        distributed.all_gather_object(nodes, node, group=self.control)
        self.nodes = len(set(nodes))
        self.refused: dict[int, str] = {}
        self.tracker = tracking.open_tracker(self.config) if self.rank == 0 else None
        self.losses: dict[str, float] = {}
        self.posted: tuple[float, int] = (time.monotonic(), self.step)
        self.answer: Any = None
        self.stop_asked = False

    def run(self) -> None:
        config, share = self.config, self.config.train.batch_size // self.world_size
        rows = slice(self.rank * share, (self.rank + 1) * share)
        self._post()
        while True:
            batch, failure = self._next()
            verdict = self._agree(failure)
            if verdict.failed:
                return
            if batch is None or verdict.stop:
                break
            x_BCTHW = _to_float(batch.clips.to(self.device, non_blocking=True))
            draws = Draws.at(config, self.step, rows)
            losses = self.pair.step(
                x_BCTHW, batch.labels, draws, step=self.step, progress=verdict.fraction
            )
            self.refused |= batch.refused
            self.step += 1
            if self.step % LOG_EVERY == 0:
                self._log(losses)
            if self.step % config.train.checkpoint_every == 0:
                self._save()
            if self.step % config.train.sample_every == 0:
                self._sample()
        if self.step > self.saved_at:
            self._save()
            self._sample()
        self._end(verdict)

    def _stream(self) -> Iterator[Batch]:
        config, catalogue = self.config, self.job.catalogue
        return batches(
            catalogue,
            Plan(len(catalogue), config.seed),
            config.data,
            steps=range(self.step, config.train.steps),
            rank=self.rank,
            world_size=self.world_size,
            batch_size=config.train.batch_size,
        )

    def _next(self) -> tuple[Batch | None, RaygenError | None]:
        try:
            if self.step == self.resumed.step:
                return self.first.result(), None
            return next(self.stream, None), None
        except DataError as error:
            return None, error
        except RayError as error:
            # Ray Data wraps what its actors raise, more than once.
            cause: BaseException | None = error
            while cause is not None and not isinstance(cause, RaygenError):
                cause = cause.__cause__
            if cause is None:
                raise
            return None, DataError(str(cause))

    def _agree(self, failure: RaygenError | None) -> _Verdict:
        if failure is not None:
            ray.get(self.job.board.fail.remote(failure))
        mine = torch.zeros(3, dtype=torch.float64)
        mine[2] = failure is not None
        if self.rank == 0:
            self._post_now_and_then()
            mine[0] = self._fraction()
            mine[1] = self.stop_asked
        distributed.all_reduce(mine, distributed.ReduceOp.MAX, group=self.control)
        fraction, stop, failed = mine.tolist()
        return _Verdict(fraction, stop=bool(stop) or fraction >= 1, failed=bool(failed))

    @property
    def elapsed_s(self) -> float:
        return self.resumed.elapsed_s + time.monotonic() - self.started

    @property
    def dollars(self) -> float:
        price = cost.price(self.config.train.node)
        return self.resumed.dollars + price.dollars(time.monotonic() - self.started, self.nodes)

    def _fraction(self) -> float:
        budget = self.config.budget
        shares = [self.step / self.config.train.steps]
        if budget.minutes is not None:
            shares.append(self.elapsed_s / 60 / budget.minutes)
        if budget.dollars is not None:
            shares.append(self.dollars / budget.dollars)
        return min(1.0, max(shares))

    def _log(self, losses: dict[str, Tensor]) -> None:
        values = torch.stack([losses[name].float().cpu() for name in sorted(losses)])
        distributed.all_reduce(values, group=self.control)
        self.losses = dict(zip(sorted(losses), (values / self.world_size).tolist(), strict=True))
        if self.tracker is not None:
            spent = {"dollars": self.dollars, "clips": self.step * self.config.train.batch_size}
            self.tracker.scalars(self.losses | spent, self.step)

    def _progress(self) -> Progress:
        clips = self.step * self.config.train.batch_size
        return Progress(self.step, self.elapsed_s, clips, self.dollars)

    def _save(self) -> None:
        checkpoint.save(self.pair, self._progress(), self.losses)
        self.saved_at = self.step
        everyones: list[Any] = [None] * self.world_size
        distributed.all_gather_object(everyones, self.refused, group=self.control)
        self.refused = {row: reason for part in everyones for row, reason in part.items()}
        if self.rank == 0 and self.refused:
            uris = self.job.catalogue.table["uri"]
            rows = {uris[row].as_py(): reason for row, reason in self.refused.items()}
            quarantine.add(self.job.run_uri, rows)

    def _sample(self) -> None:
        average = self.pair.ema.gather()
        if self.tracker is None:
            return
        config = self.config
        generator = build_generator(config.model, config.data, len(self.classes)).eval()
        generator.load_state_dict(average, strict=False)
        y_B = [i // SAMPLES_PER_CLASS for i in range(SAMPLES_PER_CLASS * len(self.classes))]
        clips_NTHWC = sampling.generate(
            generator, config.model.latent_dim, range(len(y_B)), y_B, torch.device("cpu")
        )
        labels = [self.classes[label] for label in y_B]
        self.tracker.samples(clips_NTHWC, labels, config.data.fps, self.step)

    def _status(self, rate: float = 0.0, ended: str = "") -> Status:
        return Status(
            step=self.step,
            steps=self.config.train.steps,
            fraction=self._fraction(),
            elapsed_s=self.elapsed_s,
            dollars=self.dollars,
            clips_per_s=rate,
            started_at=self.resumed.step,
            refused=len(self.refused),
            losses=self.losses,
            ended=ended,
        )

    def _post_now_and_then(self) -> None:
        now, (then, step) = time.monotonic(), self.posted
        if now - then < POST_EVERY_S or not self._answered():
            return
        self._post((self.step - step) * self.config.train.batch_size / (now - then))

    def _post(self, rate: float = 0.0) -> None:
        if self.rank == 0:
            self.answer = self.job.board.post.remote(self._status(rate))
            self.posted = (time.monotonic(), self.step)

    def _answered(self) -> bool:
        done, _ = ray.wait([self.answer], timeout=0)
        self.stop_asked = self.stop_asked or bool(done and ray.get(self.answer))
        return bool(done)

    def _end(self, verdict: _Verdict) -> None:
        if self.rank != 0:
            return
        if self.step >= self.config.train.steps:
            ended = "steps"
        else:
            ended = "budget" if verdict.fraction >= 1 else "stopped"
        ray.get(self.job.board.post.remote(self._status(ended=ended)))
        assert self.tracker is not None
        self.tracker.close()


def _to_float(clips_BTHWC: Tensor) -> Tensor:
    return clips_BTHWC.permute(0, 4, 1, 2, 3).float().div_(127.5).sub_(1)
