"""The training loop of one worker. Importing it loads DeepSpeed: `raygen.train` does, remotely.

Every rank runs the same loop in step with the others: take this rank's share of the next global
batch, agree on how far the run is and what is to be done, save if so agreed, take the adversarial
step. A group of workers ends saved, by agreement, or is lost; raygen.supervisor starts the next.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
from torch import Tensor, distributed

from raygen import ranks
from raygen.board import Ended
from raygen.checkpoint import Resumption
from raygen.conditioning import RowConditions
from raygen.conditions import Condition
from raygen.data import lineage, quarantine
from raygen.data.receiver import Batch, Receiver
from raygen.data.stream import Feed, plan_of, start_dealer
from raygen.draws import Draws
from raygen.engine import Pair
from raygen.errors import RaygenError, StorageError
from raygen.health import Health, moments, spread
from raygen.job import Job
from raygen.pace import Pace
from raygen.reporter import Meter, Reporter, Standing
from raygen.runs import Run
from raygen.saver import Moment, Saver
from raygen.vault import Vaults

LOG_EVERY = 10
# Between looks at whether Ray drains a node; each is a meeting of all ranks.
NOTICE_EVERY_S = 1.0
# A drained node is left so many seconds before its deadline, and three times what saving took.
LEAVE_S = 5.0


@dataclass(frozen=True)
class _Verdict:
    """What all ranks agreed on before a step; what is zero of one rank is settled by the others."""

    fraction: float = 0.0
    failed: float = 0.0
    stop: float = 0.0
    grow: float = 0.0
    leave: float = 0.0
    look: float = 0.0
    save: float = 0.0
    snapshot: float = 0.0
    busy: float = 0.0
    saved_at: float = 0.0

    @property
    def ended(self) -> Ended:
        if self.fraction >= 1:
            return "budget"
        if self.stop:
            return "stopped"
        if self.leave:
            return "preempted"
        return "grew" if self.grow else ""


def train_worker(job: Job) -> None:
    """Trains until the steps, the budget, the driver or a drained node ends it; saved then."""
    _Worker(job).run()


class _Worker:
    def __init__(self, job: Job) -> None:
        context = ray.train.get_context()
        self.job, self.config = job, job.config
        self.rank, self.world_size = context.get_world_rank(), context.get_world_size()
        me, node = ray.get_runtime_context().current_actor, ray.get_runtime_context().get_node_id()
        device = ray.train.torch.get_device()
        ranks.join(device)
        # Decisions travel beside the gradients, on the CPU: no step waits for the GPU for them.
        self.control = distributed.new_group(backend="gloo")
        ray.get(job.board.join.remote(self.rank, me, node))
        nodes = self._gather(node)
        vaults = Vaults(ray.get(job.board.vaults.remote()))
        run = Run.open(job.run_uri)
        resumption = Resumption(
            run, vaults, self._gather, self._note, rank=self.rank, nodes=nodes, before=job.onset
        )
        resumed = resumption.found
        self.step, self.cursor = resumed.progress.step, resumed.progress.position
        self.meter = Meter(
            self.config,
            resumed.progress,
            elapsed_s=job.elapsed_s,
            bill=job.bill,
        )
        # The decode actors start while the engines are built.
        dealer = self._dealer(nodes) if self.rank == 0 else None
        self.stream = Receiver(self._gather(dealer)[0], self.rank, self.config.data.prefetch)
        classes = job.catalogue.classes
        conditions, size = self.config.conditions, self.config.data.size
        self.conditions = RowConditions(job.catalogue, conditions, size)
        self.pair = Pair(
            self.config,
            len(classes),
            device=device,
            world_size=self.world_size,
            universal=resumption.universal,
            lr_scale=job.lr_scale,
        )
        resumption.load(self.pair)
        self.saver = Saver(
            self.pair,
            run,
            job.catalogue,
            rank=self.rank,
            world_size=self.world_size,
            near=vaults.near(node, nodes),
            gather=self._gather,
            saved_at=resumed.saved_at,
            note=self._note,
        )
        self.pace = Pace(self.config.train, failures=job.failures, seconds=self.meter.elapsed_s)
        # By the monotonic clock, once a node of this group is about to be taken away.
        self.leave_at: float | None = None
        self.leave_early_s = LEAVE_S
        self.looked_at = self.logged_at = time.monotonic()
        self.saving_s, self.saved_at = 0.0, resumed.saved_at
        self.health = Health(self.config, resumed.health)
        self.refused: dict[int, str] = {}
        self.consumed = list(resumed.consumed) if self.rank == 0 else []
        self.losses: dict[str, float] = {}
        self.reporter: Reporter | None = None
        if self.rank == 0:
            lineage.forget_after(job.run_uri, resumed.saved_at)
            for note in self.pair.notes:
                self._note(note)
            self.reporter = Reporter(
                self.config,
                classes,
                self.conditions,
                job.board,
                self.meter,
                self.step,
                self._standing(),
                nodes,
            )

    def run(self) -> None:
        train, share = self.config.train, self.config.train.batch_size // self.world_size
        last = min(train.steps, self.config.budget.steps or train.steps)
        rows = slice(self.rank * share, (self.rank + 1) * share)
        began = time.monotonic()
        while True:
            batches, failure = self._next() if self.step < last else (None, None)
            verdict = self._agree(failure)
            if verdict.failed:
                self.saver.finish()
                return
            self._housekeep(verdict)
            if batches is None or verdict.ended:
                break
            draws = Draws.at(self.config, self.step, rows)
            reals = [self._shown(batch) for batch in batches]
            losses = self.pair.step(reals, draws, step=self.step, progress=verdict.fraction)
            self.step += 1
            self.cursor = batches[-1].cursor
            for batch in batches:
                self.refused |= batch.refused
                self.consumed += [(self.step, row) for row in batch.rows.tolist()]
            if self.step % LOG_EVERY == 0 and (trouble := self._log(losses, reals[-1][0])):
                self._give_up(trouble)
                return
            if self.step % train.sample_every == 0:
                self._sample()
            now = time.monotonic()
            self.pace.stepped(now - began)
            began = now
        self._end(verdict.ended or "steps")

    def _shown(self, batch: Batch) -> tuple[Tensor, Condition]:
        """The clips, and all that is known of them."""
        x_BCTHW = _to_float(batch.clips.to(self.pair.device, non_blocking=True))
        return x_BCTHW, self.conditions(batch.rows.tolist(), x_BCTHW)

    def _dealer(self, nodes: list[str]) -> Any:
        config, catalogue = self.config, self.job.catalogue
        feed = Feed(
            plan_of(catalogue, config.data, config.seed),
            config.data,
            batch_size=config.train.batch_size,
            world_size=self.world_size,
            cursor=self.cursor,
            refused=quarantine.rows(self.job.run_uri, catalogue),
            nodes=tuple(dict.fromkeys(nodes)),
        )
        return start_dealer(catalogue, feed)

    def _next(self) -> tuple[list[Batch] | None, RaygenError | None]:
        try:
            return [next(self.stream) for _ in range(self.config.loss.critic_steps)], None
        except RaygenError as error:
            return None, error

    def _agree(self, failure: RaygenError | None) -> _Verdict:
        if failure is not None:
            ray.get(self.job.board.fail.remote(failure))
        mine = _Verdict(failed=failure is not None, busy=self.saver.busy)
        if self.reporter is not None:
            # Rank 0's clock and the driver's wish hold for all; the others add nothing.
            wish = self.reporter.wish(self.step, self._standing())
            saver, now = self.saver, time.monotonic()
            mine = replace(
                mine,
                fraction=self.meter.fraction(self.step),
                stop=wish == "stop",
                grow=wish == "grow",
                leave=self.leave_at is not None and self.leave_at <= now,
                look=now - self.looked_at > NOTICE_EVERY_S,
                save=self._to_be_judged() or self.pace.checkpoint_due(self.step, saver.tried_at),
                snapshot=self.pace.snapshot_due(self.step, saver.kept_at),
                saved_at=saver.saved_at,
            )
        votes = torch.tensor([float(vote) for vote in vars(mine).values()], dtype=torch.float64)
        distributed.all_reduce(votes, distributed.ReduceOp.MAX, group=self.control)
        return _Verdict(*votes.tolist())

    def _to_be_judged(self) -> bool:
        every = self.config.evaluate.every
        return every is not None and self.step > self.saver.tried_at and self.step % every == 0

    def _housekeep(self, verdict: _Verdict) -> None:
        """What was agreed on, between two steps."""
        began = time.monotonic()
        if verdict.saved_at > self.saved_at:
            self.saved_at = int(verdict.saved_at)
            self.consumed = [pair for pair in self.consumed if pair[0] > self.saved_at]
        # Slow storage puts off the next checkpoint, unless its very step was asked for.
        still_open = self.saver.open and verdict.busy
        save = verdict.save and (self.config.train.checkpoint_every or not still_open)
        if self.saver.open and (save or not verdict.busy):
            self.saver.commit()
            self.pace.checkpointed(self.saver.checkpoint_s)
        if self.saver.snapshot_s:
            self.pace.snapshotted(self.saver.snapshot_s)
        if save or (verdict.snapshot and not verdict.busy):
            self.saver.take(self._moment(), to_storage=bool(save))
        self.saving_s += time.monotonic() - began
        if verdict.look:
            self._look_for_notice()

    def _look_for_notice(self) -> None:
        self.looked_at = time.monotonic()
        info = ray.train.get_preemption_info()  # collective
        if info is None:
            return
        left = 0.0 if info.deadline_ms is None else info.deadline_ms / 1000 - time.time()
        if self.leave_at is None:
            # At once, in case the node goes before its time; again when it is left.
            self.saver.finish()
            self.saver.take(self._moment(), to_storage=True)
            self.saver.finish()
            took = time.monotonic() - self.looked_at
            self.leave_early_s = LEAVE_S + 3 * took
            saved = self.saver.saved_at >= self.step
            where = f"saved at step {self.step}" if saved else "kept in memory only"
            gone = len(info.preempted_node_ids)
            if self.rank == 0:
                self._note(f"{gone} node(s) will be taken in {left:.0f} s: {where} in {took:.1f} s")
        leave_at = self.looked_at + left - self.leave_early_s
        # Another node's time may be shorter.
        self.leave_at = leave_at if self.leave_at is None else min(self.leave_at, leave_at)

    def _end(self, ended: Ended) -> None:
        if self.reporter is not None:
            self.reporter.ending(self.step, self._standing(), ended)
        self.saver.finish()
        if self.step > self.saver.saved_at:
            self.saver.take(self._moment(), to_storage=True)
            self.saver.finish()
        if ended not in ("grew", "preempted"):
            self._sample()
            if self.step > self.saver.saved_at:
                raise StorageError(
                    f"step {self.step}, the last, cannot be saved to {self.job.run_uri}; the same "
                    f"command goes on from step {self.saver.saved_at}"
                )
        if self.reporter is not None:
            self.reporter.close(self.step, self._standing(), ended)

    def _moment(self) -> Moment:
        progress = self.meter.progress(self.step, self.cursor)
        consumed, refused = tuple(self.consumed), dict(self.refused)
        return Moment(progress, consumed, refused, self.losses, self.health.state())

    def _standing(self) -> Standing:
        refused, waited_s = len(self.refused), self.stream.waited_s
        return Standing(self.saver.saved_at, refused, waited_s, self.health.onset)

    def _log(self, losses: dict[str, Tensor], x_BCTHW: Tensor) -> str | None:
        """Says how it goes; what is wrong, alike on every rank, or None."""
        now, data = time.monotonic(), self.stream.figures()
        data["save/share"] = self.saving_s / (now - self.logged_at)
        self.saving_s, self.logged_at = 0.0, now
        figures = losses | {name: torch.tensor(value) for name, value in data.items()}
        figures["broken"] = torch.tensor(float(not self.pair.finite()))
        spreads = [moments(x_BCTHW), moments(self.pair.shown_BCTHW)]
        # One transfer to the CPU, and one reduction, for all of them.
        means = torch.stack([value.float().to(spreads[0].device) for value in figures.values()])
        sums = torch.cat([means / self.world_size, *spreads]).cpu()
        distributed.all_reduce(sums, group=self.control)
        self.losses = dict(zip(figures, sums.tolist(), strict=False))
        finite = self.losses.pop("broken") == 0
        real, fake = (spread(part) for part in sums[len(figures) :].chunk(2))
        self.losses |= {"spread/real": real, "spread/fake": fake}
        if self.reporter is not None:
            self.reporter.losses(self.losses, self.step)
        return self.health.look(self.step, self.losses, real, fake, parameters_finite=finite)

    def _give_up(self, trouble: str) -> None:
        self.saver.finish()
        if self.reporter is not None:
            self.reporter.close(self.step, self._standing(), "unhealthy", trouble)

    def _sample(self) -> None:
        average = self.pair.ema.gather()  # a collective call at stage 3
        if self.reporter is not None:
            self.reporter.samples(average, self.step)

    def _note(self, text: str) -> None:
        self.job.board.note.remote(text)

    def _gather(self, mine: Any) -> list[Any]:
        """What every rank has, by rank."""
        everyones: list[Any] = [None] * self.world_size
        distributed.all_gather_object(everyones, mine, group=self.control)
        return everyones


def _to_float(clips_BTHWC: Tensor) -> Tensor:
    """uint8 [B, T, H, W, C] -> [-1, 1] [B, C, T, H, W]."""
    return clips_BTHWC.permute(0, 4, 1, 2, 3).float().div_(127.5).sub_(1)
