"""The batching replica: waiting requests are drawn together whenever the model is free.

    source = ClipSource(load_generator(export))
    drawn = await source.draw(Ask(seed=7, label=0))         # .clip_THWC, uint8, and its batch
    data = await source.encode([drawn.clip_THWC], "mp4", fps=16)

One deployment holds everything: a second one for encoding would cost more in passing clips between
actors than the encoding itself. A process beside it costs little: see serve.encoding.
"""

from __future__ import annotations

import asyncio
import math
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np

from raygen import video, watermark
from raygen.errors import RaygenError
from raygen.export import Generator
from raygen.manifest import Signer
from serve import metrics
from serve.batcher import Batcher, Result
from serve.drawing import MAX_BATCH, Point, choose
from serve.encoding import Encoders, File, lately

CORES = len(os.sched_getaffinity(0))
QUEUE_S = 20.0  # work that may wait; what comes then is refused
COPIED = 1 << 20  # bytes at most that are copied between two requests
PIECE = 32  # frames of a long clip that are drawn, encoded and sent at a time


class Overloaded(RaygenError):
    """More is waiting than can be drawn soon; `retry_after_s` is when it is worth asking again."""

    def __init__(self, retry_after_s: int) -> None:
        super().__init__(f"too many clips are waiting; ask again in {retry_after_s} s")
        self.retry_after_s = retry_after_s


def _pieces(point: Point) -> list[Point]:
    """Of PIECE frames each, the last of what is left; the trained clip is one."""
    times = point.times
    if times is None:
        return [point]
    return [point._replace(times=times[at : at + PIECE]) for at in range(0, len(times), PIECE)]


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
    """A generator behind a batcher, and the processes that encode what it draws.

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
        self._draw = Batcher(self._generate, MAX_BATCH)
        # A GPU draws as fast as several of them encode.
        most = 2 if generator.device.type == "cpu" else MAX_BATCH
        self._encoders = Encoders(max(1, min(most, CORES - 1)))
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="files")

    def admit(self, clips: int) -> None:
        """Raises Overloaded where so many more would wait longer than the queue may last."""
        wait_s = (self._draw.waiting + clips - 1) * self._clip_s + self._encoders.wait_s
        # What is asked for alone is drawn, however long it takes.
        if wait_s > self._queue_s and (self._draw.waiting or self._encoders.wait_s):
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
            return await asyncio.get_running_loop().run_in_executor(self._threads, make)
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
        """The clips [T,H,W,3] in one file; see `video.encode`. Made by another process, unless it
        is no more than a copy.
        """
        start = time.monotonic()
        digest = self.generator.digest if self.watermark else ""
        file = File(clips, format, fps, labels, scale, digest)
        loop = asyncio.get_running_loop()
        if format != "npy":
            data = await self._encoders(file)
        elif sum(clip_THWC.nbytes for clip_THWC in clips) <= COPIED:
            data = file.encode()
        else:
            data = await loop.run_in_executor(self._threads, file.encode)
        if self.signer is not None and format == "mp4":
            name, weights = self.generator.name, self.generator.digest
            data = await loop.run_in_executor(self._threads, self.signer.sign, data, name, weights)
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
                yield await loop.run_in_executor(self._threads, writer.add, frames_THWC)
            yield await loop.run_in_executor(self._threads, writer.close)
        finally:
            ahead.cancel()

    def _marked(self, clip_THWC: video.Clips) -> video.Clips:
        return watermark.mark(clip_THWC, self.generator.digest) if self.watermark else clip_THWC

    def close(self) -> None:
        """Lets the threads go; nothing may be asked for afterwards."""
        self._draw.close()
        self._encoders.close()
        self._threads.shutdown(wait=False)

    def _generate(self, requests: Sequence[_Waiting]) -> Iterator[tuple[int, Drawn]]:
        start = time.monotonic()
        name, batch = self.generator.name, len(requests)
        for rows, clips_NTHWC in self._drawer([request.point for request in requests]):
            for row, clip_THWC in zip(rows, clips_NTHWC, strict=True):
                yield row, Drawn(clip_THWC, batch)
        seconds = time.monotonic() - start
        self._clip_s = lately(self._clip_s, seconds / batch)
        metrics.drew(name, batch, seconds, [start - request.since for request in requests])
