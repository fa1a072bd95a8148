"""Items that come one by one, handled together whenever there is time: the continuous batcher.

batcher = Batcher(run, sizes=(1, 2, 4, 8))
result = await batcher(item)
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

GATHER, GATHER_S = 0.15, 0.02  # of a batch's time, and at most: how long one waits to be as large
PAUSE = 64  # batches at most that go without it after it was in vain

Item = TypeVar("Item")
Result = TypeVar("Result")


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


def _settle(future: asyncio.Future[Result], result: Result) -> None:
    if not future.done():
        future.set_result(result)
