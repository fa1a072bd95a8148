"""What a training says of itself: the meter that runs, the status it posts, the samples it logs."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import ray
import torch
from torch import Tensor

from raygen import exported, sampling, tracking
from raygen.board import Answer, Ended, Status, Wish
from raygen.conditioning import RowConditions
from raygen.config import Config
from raygen.cost.bill import Bill
from raygen.runs import Progress

POST_EVERY_S = 0.5
SAMPLES_PER_CLASS = 2


class Meter:
    """Seconds and dollars since the run began, in this group of workers and in those before it.

    `elapsed_s` is the driver's own count, which knows of work that was lost; the state that was
    `resumed` knows of earlier drivers. Dollars are the ledger's: the last `bill`, run on.
    """

    def __init__(self, config: Config, resumed: Progress, *, elapsed_s: float, bill: Bill) -> None:
        self.config = config
        self._elapsed_s = max(elapsed_s, resumed.elapsed_s)
        self._started = time.monotonic()
        self.charge(bill)

    def charge(self, bill: Bill) -> None:
        """Takes the newest bill."""
        self._bill, self._billed = bill, time.monotonic()

    @property
    def elapsed_s(self) -> float:
        """Seconds of training so far."""
        return self._elapsed_s + time.monotonic() - self._started

    def progress(self, step: int, position: int = 0) -> Progress:
        """Where the run stands after `step` steps, now; `position` is the data's cursor."""
        seconds = time.monotonic() - self._started
        return Progress(
            step=step,
            elapsed_s=self._elapsed_s + seconds,
            clips_seen=step * self.config.train.batch_size,
            dollars=self._bill.after(time.monotonic() - self._billed),
            position=position,
        )

    def fraction(self, step: int) -> float:
        """How much of the steps or of the budget is gone, whichever is more: 0 to 1."""
        now, budget = self.progress(step), self.config.budget
        shares = [step / self.config.train.steps]
        if budget.minutes is not None:
            shares.append(now.elapsed_s / 60 / budget.minutes)
        if budget.dollars is not None:
            shares.append(now.dollars / self._bill.limit)
        return min(1.0, max(shares))


@dataclass(frozen=True)
class Standing:
    """What rank 0 alone knows: the newest checkpoint on storage, how many clips could not be
    decoded, how long the trainer has waited for clips, seconds, and the step up to which all was
    well.
    """

    saved_at: int
    refused: int
    waited_s: float
    onset: int


class Reporter:
    """Rank 0's voice: statuses to the driver's board, numbers and pictures to the tracker."""

    def __init__(
        self,
        config: Config,
        classes: list[str],
        conditions: RowConditions,
        board: Any,
        meter: Meter,
        started_at: int,
        standing: Standing,
        nodes: Sequence[str],
    ) -> None:
        self.config, self.classes, self.meter = config, classes, meter
        self._conditions = conditions
        self._board = board
        self._started_at, self._nodes = started_at, tuple(nodes)
        self._tracker = tracking.open_tracker(config)
        self._losses: Mapping[str, float] = {}
        self._wish: Wish = ""
        self._posted_at, self._posted_step = time.monotonic(), started_at
        self._posted_waited_s = 0.0
        self._answer = board.post.remote(self._status(started_at, standing))

    def wish(self, step: int, standing: Standing) -> Wish:
        """What the driver wants; posts a status now and then, without waiting."""
        done, _ = ray.wait([self._answer], timeout=0)
        seconds = time.monotonic() - self._posted_at
        if done and seconds > POST_EVERY_S:
            answer: Answer = ray.get(self._answer)
            self._wish = self._wish or answer.wish
            self.meter.charge(answer.bill)
            for judged_step, figures in answer.judged:
                self._tracker.scalars(figures, judged_step)
            rate = (step - self._posted_step) * self.config.train.batch_size / seconds
            starved = (standing.waited_s - self._posted_waited_s) / seconds
            status = self._status(step, standing, clips_per_s=rate, starved=starved)
            self._answer = self._board.post.remote(status)
            self._posted_at, self._posted_step = time.monotonic(), step
            self._posted_waited_s = standing.waited_s
        return self._wish

    def losses(self, values: Mapping[str, float], step: int) -> None:
        """Logs the means over all ranks of what `Pair.step` returned."""
        self._losses = values
        now = self.meter.progress(step)
        spent = {"dollars": now.dollars, "clips": now.clips_seen}
        self._tracker.scalars({**values, **spent}, step)

    def samples(self, average: dict[str, Tensor], step: int) -> None:
        """Logs clips of the averaged generator: the same latents and conditions every time."""
        config, data = self.config, self.config.data
        networks = exported.described(config, self.classes)
        generator = exported.network(networks).eval()
        # Not strict: batch norm's counter is an integer, which has no average and no effect.
        generator.load_state_dict(exported.whole(config, average), strict=False)
        labels = [k for k in range(len(self.classes)) for _ in range(SAMPLES_PER_CLASS)]
        z_ND = sampling.latents(range(len(labels)), exported.latent_dims(networks))
        y_N = self._conditions(self._conditions.rows_of(labels, config.seed))
        clips = sampling.generate(generator, z_ND, y_N, torch.device("cpu"))
        self._tracker.samples(clips, [self.classes[k] for k in labels], data.fps, step)

    def ending(self, step: int, standing: Standing, ended: Ended) -> None:
        """Posts why this group ends, before it saves."""
        ray.get(self._board.post.remote(self._status(step, standing, ended=ended)))

    def close(self, step: int, standing: Standing, ended: Ended, detail: str = "") -> None:
        """Closes the tracker and posts the last status, with the reason for the end."""
        self._tracker.close()
        status = self._status(step, standing, ended=ended, detail=detail)
        ray.get(self._board.post.remote(replace(status, closed=True)))

    def _status(
        self,
        step: int,
        standing: Standing,
        *,
        clips_per_s: float = 0.0,
        starved: float = 0.0,
        ended: Ended = "",
        detail: str = "",
    ) -> Status:
        now = self.meter.progress(step)
        return Status(
            step=step,
            steps=self.config.train.steps,
            fraction=self.meter.fraction(step),
            elapsed_s=now.elapsed_s,
            dollars=now.dollars,
            nodes=self._nodes,
            clips_per_s=clips_per_s,
            started_at=self._started_at,
            saved_at=standing.saved_at,
            refused=standing.refused,
            starved=starved,
            losses=self._losses,
            ended=ended,
            detail=detail,
            onset=standing.onset,
        )
