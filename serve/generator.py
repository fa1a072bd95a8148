"""The batching replica: waiting requests are drawn together whenever the model is free.

    source = ClipSource(load_generator(export))
    drawn = await source.draw(Ask(seed=7, label=0))         # .clip_THWC, uint8, and its batch
    data = await source.encode(drawn.clip_THWC[None], "mp4", fps=16)

One deployment holds everything: a second one for encoding would cost more in passing clips between
processes than the encoding itself.
"""

from __future__ import annotations

import asyncio
import math
import os
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypeVar

import numpy as np

from raygen import video, watermark
from raygen.errors import RaygenError
from raygen.export import Generator
from raygen.manifest import Signer
from serve import metrics
from serve.drawing import MAX_BATCH, Point, choose

# Threads, beside the one that draws: more than there are cores only get in each other's way.
ENCODERS = max(1, min(2, len(os.sched_getaffinity(0)) - 1))
QUEUE_S = 20.0  # work that may wait; what comes then is refused
GATHER, GATHER_S = 0.15, 0.02  # of a batch's time, and at most: how long one waits to be as large
PAUSE = 64  # batches at most that go without it after it was in vain
COPIED = 1 << 20  # bytes at most that are copied between two requests
PIECE = 32  # frames of a long clip that are drawn, encoded and sent at a time

Item = TypeVar("Item")
Result = TypeVar("Result")


class Overloaded(RaygenError):
    """More is waiting than can be drawn soon; `retry_after_s` is when it is worth asking again."""

    def __init__(self, retry_after_s: int) -> None:
        super().__init__(f"too many clips are waiting; ask again in {retry_after_s} s")
        self.retry_after_s = retry_after_s


class Batcher(Generic[Item, Result]):
    """Calls `run` in a thread of its own, with items that came while it was busy.

    As many go together as the largest of `sizes` that is filled; what is over has others beside it
    soon, and larger sizes cost less an item. A lone item goes at once. Who was answered together
    often asks again together, one just after the other: where those who wait and those of the last
    batch would fill a larger size, it waits for them a moment that is short beside a batch. If they
    do not come in that, as when their answers are long in the making, it waits for twice as many
    batches as the last time until it tries again. `run` gives positions and results as it makes
    them, and each is passed on at once. An error of `run` goes to every item of its batch that has
    none yet.
    """

    def __init__(
        self,
        run: Callable[[Sequence[Item]], Iterator[tuple[int, Result]]],
        sizes: Sequence[int],
        gather: float = GATHER,
    ) -> None:
        self._run = run
        self._sizes = sizes
        self._gather = gather
        self._queue: deque[tuple[Item, asyncio.Future[Result]]] = deque()
        self._came = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="generator")
        self._worker: asyncio.Task[None] | None = None

    async def __call__(self, item: Item) -> Result:
        """The result for `item`; a caller that gives up before its turn costs nothing."""
        if self._worker is None:  # not before a loop runs
            self._worker = asyncio.create_task(self._work())
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._queue.append((item, future))
        self._came.set()
        return await future

    @property
    def waiting(self) -> int:
        """Items that no batch has taken yet."""
        return len(self._queue)

    def close(self) -> None:
        """Lets the thread go, after its batch; nothing may be waiting."""
        if self._worker is not None:
            self._worker.cancel()
        self._thread.shutdown(wait=False)

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        goal, patience_s = 1, 0.0
        skip, pause = 0, 1  # batches yet to go without waiting, and after the next vain one
        while True:
            await self._until(1)
            if self._filled() < goal and skip:
                skip -= 1
            elif self._filled() < goal:
                try:
                    async with asyncio.timeout(patience_s):
                        await self._until(goal)
                    pause = 1
                except TimeoutError:
                    skip, pause = pause, min(2 * pause, PAUSE)
            self._queue = deque(pair for pair in self._queue if not pair[1].done())
            batch = [self._queue.popleft() for _ in range(self._filled())]
            if not batch:
                continue
            start = loop.time()
            try:
                await loop.run_in_executor(self._thread, self._deliver, loop, batch)
            except Exception as error:
                for _, future in batch:
                    if not future.done():
                        future.set_exception(error)
            goal = self._filled(len(batch))
            patience_s = min(GATHER_S, self._gather * (loop.time() - start))

    async def _until(self, count: int) -> None:
        while len(self._queue) < count:
            self._came.clear()
            await self._came.wait()

    def _filled(self, more: int = 0) -> int:
        """The largest size that those who wait fill, and so many more; all of fewer than any."""
        waiting = len(self._queue) + more
        return max((size for size in self._sizes if size <= waiting), default=waiting)

    def _deliver(
        self,
        loop: asyncio.AbstractEventLoop,
        waiting: Sequence[tuple[Item, asyncio.Future[Result]]],
    ) -> None:
        for position, result in self._run([item for item, _ in waiting]):
            loop.call_soon_threadsafe(_settle, waiting[position][1], result)


def _pieces(point: Point) -> list[Point]:
    """Of PIECE frames each, the last of what is left; the trained clip is one."""
    times = point.times
    if times is None:
        return [point]
    return [point._replace(times=times[at : at + PIECE]) for at in range(0, len(times), PIECE)]


def _mean(before: float, new: float) -> float:
    """Over about the last ten; the first is all that is known."""
    return before + 0.1 * (new - before) if before else new


def _settle(future: asyncio.Future[Result], result: Result) -> None:
    if not future.done():
        future.set_result(result)


@dataclass(frozen=True)
class Ask:
    """One clip that is asked for; what is None is left to the model."""

    seed: int
    label: int | None = None
    text: str | None = None
    image_HWC: video.Clips | None = None  # the first frame, of the clips' size
    truncation: float = 1.0
    times: tuple[float, ...] | None = None  # as `Generator.times` gives them


@dataclass(frozen=True)
class Drawn:
    """A clip [T,H,W,3] and how many were drawn with it."""

    clip_THWC: video.Clips
    batch: int


@dataclass(frozen=True)
class _Waiting:
    point: Point
    since: float


class ClipSource:
    """A generator behind a batcher, and the threads that encode what it draws.

    Making one takes seconds where `drawing` is "auto": see `serve.drawing`.
    """

    def __init__(
        self,
        generator: Generator,
        drawing: str = "auto",
        queue_s: float = QUEUE_S,
        watermark: bool = False,
        signer: Signer | None = None,
    ) -> None:
        self.generator = generator
        self.watermark = watermark
        self.signer = signer
        self._drawer = choose(generator, drawing)
        self.drawing = self._drawer.drawing
        self.clips_per_s = self._drawer.clips_per_s
        self._queue_s = queue_s
        self._clip_s = 1 / self.clips_per_s if self.clips_per_s else 0.0
        self._files, self._file_s = 0, 0.0  # that are encoded or wait for it, and what one takes
        sizes = self.drawing.sizes
        # Where clips are computed one by one, nothing is gained by waiting.
        self._draw = (
            Batcher(self._generate, sizes)
            if sizes
            else Batcher(self._generate, (MAX_BATCH,), gather=0.0)
        )
        self._encoders = ThreadPoolExecutor(ENCODERS, thread_name_prefix="encoder")

    def admit(self, clips: int) -> None:
        """Raises Overloaded where so many more would wait longer than the queue may last."""
        wait_s = (self._draw.waiting + clips - 1) * self._clip_s
        wait_s += self._files * self._file_s / ENCODERS
        # What is asked for alone is drawn, however long it takes.
        if wait_s > self._queue_s and (self._draw.waiting or self._files > ENCODERS):
            metrics.refused(self.generator.name)
            raise Overloaded(max(1, math.ceil(wait_s - self._queue_s / 2)))

    async def draw(self, ask: Ask) -> Drawn:
        """The clip. Raises ConfigError for what the model does not take."""
        return await self.draw_point(await self.point(ask))

    async def point(self, ask: Ask) -> Point:
        """What draws a clip. Raises ConfigError for what the model does not take."""
        z_1D, y_1 = await self._prepare(
            ask.text,
            partial(
                self.generator.points,
                [ask.seed],
                [ask.label],
                text=[ask.text],
                image=[ask.image_HWC],
                truncation=ask.truncation,
            ),
        )
        return Point(z_1D, y_1, ask.times)

    async def path(self, count: int, first: Ask, last: Ask) -> list[Point]:
        """What draws `count` clips from one to the other; of one image, truncation and times."""
        z_ND, y_N = await self._prepare(
            first.text,
            partial(
                self.generator.path,
                count,
                (first.seed, last.seed),
                (first.label, last.label),
                text=(first.text, last.text),
                image=first.image_HWC,
                truncation=first.truncation,
            ),
        )
        rows = (slice(row, row + 1) for row in range(count))
        return [Point(z_ND[row], y_N.rows(row), first.times) for row in rows]

    async def _prepare(self, text: str | None, make: Callable[[], Result]) -> Result:
        # A frozen sentence encoder takes its time; all else is quicker than another thread.
        if text and self.generator.conditions.encoder != "tokens":
            return await asyncio.get_running_loop().run_in_executor(self._encoders, make)
        return make()

    async def draw_point(self, point: Point) -> Drawn:
        """The clip of a point; a long one in pieces, between which others have their turn."""
        drawn = [await self._draw(_Waiting(p, time.monotonic())) for p in _pieces(point)]
        if len(drawn) == 1:
            return drawn[0]
        return Drawn(np.concatenate([piece.clip_THWC for piece in drawn]), drawn[0].batch)

    async def encode(
        self,
        clips: Sequence[video.Clips],
        format: str,
        fps: float,
        labels: Sequence[str] = (),
        scale: int = 1,
    ) -> bytes:
        """The clips [T,H,W,3] in one file; see `video.encode`. Made in a thread, unless it is small
        and no more than a copy, which takes less than another thread does to wake up.
        """
        start = time.monotonic()

        def encode() -> tuple[bytes, float]:
            begun = time.monotonic()
            clips_NTHWC = clips[0][None] if len(clips) == 1 else np.stack(clips)
            if self.watermark and format not in ("npy", "png"):
                # One mark for the whole of a grid, where a detector looks for it.
                clips_NTHWC = self._marked(video.grid(clips_NTHWC))[None]
            data = video.encode(clips_NTHWC, format, fps, labels, scale)
            if self.signer is not None and format == "mp4":
                data = self.signer.sign(data, self.generator.name, self.generator.digest)
            return data, time.monotonic() - begun

        if format == "npy" and sum(clip_THWC.nbytes for clip_THWC in clips) <= COPIED:
            data, _ = encode()
        else:
            self._files += 1
            try:
                loop = asyncio.get_running_loop()
                data, seconds = await loop.run_in_executor(self._encoders, encode)
            finally:
                self._files -= 1
            self._file_s = _mean(self._file_s, seconds)
        metrics.encoded(self.generator.name, format, time.monotonic() - start)
        return data

    async def stream(self, point: Point, fps: float, scale: int) -> AsyncIterator[bytes]:
        """A long clip as fragmented mp4, PIECE frames at a time as they are drawn.

        The next piece is drawn while one is encoded and sent, and none before it is wanted.
        """
        loop = asyncio.get_running_loop()
        first, *others = _pieces(point)
        writer = video.Fragments(fps)
        ahead = asyncio.ensure_future(self.draw_point(first))
        try:
            for piece in [*others, None]:
                drawn = await ahead
                if piece is not None:
                    ahead = asyncio.ensure_future(self.draw_point(piece))
                frames_THWC = video.enlarge(self._marked(drawn.clip_THWC), scale)
                yield await loop.run_in_executor(self._encoders, writer.add, frames_THWC)
            yield await loop.run_in_executor(self._encoders, writer.close)
        finally:
            ahead.cancel()

    def _marked(self, clip_THWC: video.Clips) -> video.Clips:
        return watermark.mark(clip_THWC, self.generator.digest) if self.watermark else clip_THWC

    def close(self) -> None:
        """Lets the threads go; nothing may be asked for afterwards."""
        self._draw.close()
        self._encoders.shutdown(wait=False)

    def _generate(self, requests: Sequence[_Waiting]) -> Iterator[tuple[int, Drawn]]:
        start = time.monotonic()
        name, batch = self.generator.name, len(requests)
        for rows, clips_NTHWC in self._drawer([request.point for request in requests]):
            for row, clip_THWC in zip(rows, clips_NTHWC, strict=True):
                yield row, Drawn(clip_THWC, batch)
        seconds = time.monotonic() - start
        self._clip_s = _mean(self._clip_s, seconds / batch)
        metrics.drew(name, batch, seconds, [start - request.since for request in requests])
