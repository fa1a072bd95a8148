"""The batching replica: waiting requests are drawn together whenever the model is free.

One deployment holds everything: a second one for encoding would cost more in passing clips between
processes than the encoding itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

from raygen import video
from raygen.export import Generator

MAX_BATCH = 8
ENCODERS = 2  # threads; the encoders release the interpreter lock

Item = TypeVar("Item")
Result = TypeVar("Result")


class Batcher(Generic[Item, Result]):
    """Calls `run` in a thread of its own, with as many items as came while it was busy.

    Nothing waits for a batch to fill: a lone item goes at once, and the busier the model, the
    larger the batches. An error of `run` goes to every item of its batch.
    """

    def __init__(self, run: Callable[[Sequence[Item]], Sequence[Result]], max_batch: int) -> None:
        self._run = run
        self._max_batch = max_batch
        self._queue: asyncio.Queue[tuple[Item, asyncio.Future[Result]]] = asyncio.Queue()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="generator")
        self._worker: asyncio.Task[None] | None = None

    async def __call__(self, item: Item) -> Result:
        """The result for `item`; a caller that gives up before its turn costs nothing."""
        if self._worker is None:  # not before a loop runs
            self._worker = asyncio.create_task(self._work())
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._queue.put_nowait((item, future))
        return await future

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            waiting = [await self._queue.get()]
            while self._queue.qsize() and len(waiting) < self._max_batch:
                waiting.append(self._queue.get_nowait())
            waiting = [(item, future) for item, future in waiting if not future.done()]
            if not waiting:
                continue
            items = [item for item, _ in waiting]
            try:
                results = await loop.run_in_executor(self._thread, self._run, items)
            except Exception as error:
                for _, future in waiting:
                    if not future.done():
                        future.set_exception(error)
                continue
            for (_, future), result in zip(waiting, results, strict=True):
                if not future.done():
                    future.set_result(result)


@dataclass(frozen=True)
class Drawn:
    """A clip [T,H,W,3] and how many were drawn with it."""

    clip_THWC: video.Clips
    batch: int


class ClipSource:
    """A generator behind a batcher, and the threads that encode what it draws."""

    def __init__(self, generator: Generator) -> None:
        self.generator = generator
        self._draw = Batcher(self._generate, MAX_BATCH)
        self._encoders = ThreadPoolExecutor(ENCODERS, thread_name_prefix="encoder")

    async def clip(
        self, seed: int, label: int | None, text: str | None, format: str, scale: int
    ) -> tuple[bytes, int]:
        """One encoded clip, and the size of the batch that it was drawn in."""
        drawn = await self._draw((seed, label, text))
        said = ([] if label is None else [self.generator.classes[label]]) + ([text] if text else [])
        data = await asyncio.get_running_loop().run_in_executor(
            self._encoders,
            video.encode,
            drawn.clip_THWC[None],
            format,
            self.generator.fps,
            [", ".join(said)],
            scale,
        )
        return data, drawn.batch

    def _generate(self, requests: Sequence[tuple[int, int | None, str | None]]) -> list[Drawn]:
        seeds, labels, texts = zip(*requests, strict=True)
        clips = self.generator.generate(seeds, labels, text=texts)
        return [Drawn(clip, len(requests)) for clip in clips]
