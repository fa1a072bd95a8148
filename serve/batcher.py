"""Items that come one by one, handled together whenever there is time: the continuous batcher.

    batcher = Batcher(run, max_batch=8)
    result = await batcher(item)

It knows nothing of clips: serve.generator has it draw them.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

GATHER, GATHER_S = 0.15, 0.02  # of a batch's time, and at most: how long one waits to be as large

Item = TypeVar("Item")
Result = TypeVar("Result")


class Batcher(Generic[Item, Result]):
    """Calls `run` in a thread of its own, with as many items as came while it was busy.

    A lone item goes at once, and the busier the model, the larger the batches. Who was answered
    together often asks again together, one just after the other: a batch that would be smaller than
    the last one waits for a moment that is short beside it. `run` gives positions and results as it
    makes them, and each is passed on at once. An error of `run` goes to every item of its batch
    that has none yet.
    """

    def __init__(
        self, run: Callable[[Sequence[Item]], Iterator[tuple[int, Result]]], max_batch: int
    ) -> None:
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

    @property
    def waiting(self) -> int:
        """Items that no batch has taken yet."""
        return self._queue.qsize()

    def close(self) -> None:
        """Lets the thread go, after its batch; nothing may be waiting."""
        if self._worker is not None:
            self._worker.cancel()
        self._thread.shutdown(wait=False)

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        last, patience_s = 0, 0.0
        while True:
            waiting = [await self._queue.get()]
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(patience_s):
                    while len(waiting) < last:
                        waiting.append(await self._queue.get())
            while self._queue.qsize() and len(waiting) < self._max_batch:
                waiting.append(self._queue.get_nowait())
            waiting = [(item, future) for item, future in waiting if not future.done()]
            if not waiting:
                continue
            start = loop.time()
            try:
                await loop.run_in_executor(self._thread, self._deliver, loop, waiting)
            except Exception as error:
                for _, future in waiting:
                    if not future.done():
                        future.set_exception(error)
            last, patience_s = len(waiting), min(GATHER_S, GATHER * (loop.time() - start))

    def _deliver(
        self,
        loop: asyncio.AbstractEventLoop,
        waiting: Sequence[tuple[Item, asyncio.Future[Result]]],
    ) -> None:
        for position, result in self._run([item for item, _ in waiting]):
            loop.call_soon_threadsafe(_settle, waiting[position][1], result)


def _settle(future: asyncio.Future[Result], result: Result) -> None:
    if not future.done():
        future.set_result(result)
