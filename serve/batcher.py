"""Items that come one by one, handled together whenever there is time: the continuous batcher.

    batcher = Batcher(run, max_batch=8)
    result = await batcher(item)

It knows nothing of clips: serve.generator has it draw them.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

GATHER, GATHER_S = 0.25, 0.05  # of a batch's time, and at most: how long the next waits for more
NEXT_S = 0.003  # and on, as long as they come one after the other
LEAST = 1 / 16  # of that is waited where nothing came of it

Item = TypeVar("Item")
Result = TypeVar("Result")


class _Waiting(NamedTuple, Generic[Item, Result]):
    item: Item
    future: asyncio.Future[Result]


class Batcher(Generic[Item, Result]):
    """Calls `run` in a thread of its own, with as many items as came while it was busy.

    A lone item goes at once, and the busier the model, the larger the batches. Who has an answer
    often asks again: a batch waits, for a moment that is short beside it, to have as many items as
    the last one and those that came meanwhile. Where they do not come in time it waits half as long
    from then on, and where they do, twice. `run` gives positions and results as it makes them, and
    each is passed on at once. An error of `run` goes to every item of its batch that has none yet.

    The thread takes the next batch by itself: were it handed over by the event loop, it would stand
    still while that answers those who had the last one.
    """

    def __init__(
        self, run: Callable[[Sequence[Item]], Iterator[tuple[int, Result]]], max_batch: int
    ) -> None:
        self._run = run
        self._max_batch = max_batch
        self._queue: queue.SimpleQueue[_Waiting[Item, Result] | None] = queue.SimpleQueue()
        threading.Thread(target=self._work, name="batcher", daemon=True).start()

    async def __call__(self, item: Item) -> Result:
        """The result for `item`; a caller that gives up before its turn costs nothing."""
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._queue.put(_Waiting(item, future))
        return await future

    @property
    def waiting(self) -> int:
        """Items that no batch has taken yet."""
        return self._queue.qsize()

    def close(self) -> None:
        """Lets the thread go, after all that waits; nothing may be asked for afterwards."""
        self._queue.put(None)

    def _work(self) -> None:
        expected, patience_s, share = 0, 0.0, 1.0
        while batch := self._gathered(expected, share * patience_s):
            share = max(share / 2, LEAST) if len(batch) < expected else min(share * 2, 1.0)
            start = time.monotonic()
            wanted = [waiting for waiting in batch if not waiting.future.done()]
            if not wanted:
                continue
            try:
                for position, result in self._run([waiting.item for waiting in wanted]):
                    _tell(wanted[position].future, _settle, result)
            except Exception as error:
                for waiting in wanted:
                    _tell(waiting.future, _fail, error)
            expected = min(len(wanted) + self.waiting, self._max_batch)
            patience_s = min(GATHER_S, GATHER * (time.monotonic() - start))

    def _gathered(self, expected: int, patience_s: float) -> list[_Waiting[Item, Result]]:
        """The next batch, as large as expected if that takes a moment; none at the end."""
        batch: list[_Waiting[Item, Result]] = []
        deadline = float("inf")
        with contextlib.suppress(queue.Empty):
            while len(batch) < self._max_batch:
                if not batch:
                    waiting = self._queue.get()
                    deadline = time.monotonic() + patience_s
                elif len(batch) < expected:
                    left_s = deadline - time.monotonic()
                    waiting = self._queue.get(timeout=max(left_s, min(NEXT_S, patience_s)))
                else:
                    waiting = self._queue.get_nowait()
                if waiting is None:
                    self._queue.put(None)  # for the next time, after this batch
                    break
                batch.append(waiting)
        return batch


def _tell(
    future: asyncio.Future[Result], how: Callable[[asyncio.Future[Result], Any], None], what: Any
) -> None:
    with contextlib.suppress(RuntimeError):  # its loop is closed: nobody waits any more
        future.get_loop().call_soon_threadsafe(how, future, what)


def _settle(future: asyncio.Future[Result], result: Result) -> None:
    if not future.done():
        future.set_result(result)


def _fail(future: asyncio.Future[Result], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)
