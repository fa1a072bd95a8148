"""Objects to rows of a catalogue: headers by ranged reads, tar shards member by member.

Videos are opened in child processes (raygen.data.probing_child), several at a time in each, so
that one that crashes FFmpeg, hangs it or bloats it is a refused row. The children are this
process's, or where there is much to do those of Ray's tasks.
"""

from __future__ import annotations

import functools
import itertools
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO, Self, cast

from raygen.data.warden import Warden
from raygen.errors import ClusterError

if TYPE_CHECKING:
    # The child imports this module, and starts sooner without pydantic and Arrow.
    from raygen.config import LimitsConfig
    from raygen.data.known import Row
    from raygen.data.store import Object

CHILD = "raygen.data.probing_child"
CHILDREN = 2  # of a scan without Ray: as one is through with a group, the other is busy
TASK = 64  # objects of one of Ray's tasks
RETRIES = 5  # of a task of Ray's whose node went
AT_ONCE = 1024  # jobs that a child is told of
BLOCK = 256 << 10  # bytes a request


@dataclass(frozen=True)
class Task:
    """One object; `rows` is what is known of it, empty for a shard whose members are not."""

    item: Object
    rows: list[Row]
    look: bool


@dataclass(frozen=True)
class Job:
    """One video, as far as it is known, or a tar shard whose members are to be listed."""

    row: Row
    look: bool = False
    shard: bool = False


@dataclass(frozen=True)
class Settings:
    """What a child is told once: its limits in bytes and megapixels."""

    memory_bytes: int
    megapixels: float


def new_row(uri: str, etag: str, offset: int, size: int) -> Row:
    """A row of a video that nobody has looked at."""
    row: Row = {"uri": uri, "etag": etag, "offset": offset, "bytes": size, "codec": None}
    row |= {"label": "", "caption": "", "split": "", "weight": 1.0, "cuts": []}
    return row | {"status": "ok", "reason": ""}


def refuse(row: Row, reason: str) -> Row:
    """The row with status and reason."""
    return row | {"status": "refused", "reason": reason}


def refuse_for_good(row: Row, reason: str) -> Row:
    """The refused row; a next scan will not probe it again."""
    return refuse(row, reason) | {"codec": ""}


class Prober:
    """Completes rows by way of a child. One caller at a time; the child starts with the first."""

    def __init__(self, limits: LimitsConfig) -> None:
        settings = {"memory_bytes": limits.memory_mb << 20, "megapixels": limits.megapixels}
        self.warden = Warden(CHILD, settings, memory_mb=limits.memory_mb, seconds=limits.seconds)

    def complete(self, tasks: Sequence[Task]) -> list[list[Row]]:
        """The rows of each task's object: listed, probed and looked at as far as they are not yet.

        Raises AccessError where storage as a whole is out of reach, RaygenError where no child can
        be started.
        """
        shards = [new_row(t.item.uri, t.item.etag, 0, t.item.size) for t in tasks if not t.rows]
        members = iter(self._done([Job(row, shard=True) for row in shards]))
        rows = [task.rows or next(members) for task in tasks]
        jobs = [Job(row, t.look) for t, some in zip(tasks, rows, strict=True) for row in some]
        done = itertools.chain.from_iterable(self._done(jobs))
        return [list(itertools.islice(done, len(some))) for some in rows]

    def close(self) -> None:
        """Ends the child; the prober is of no use afterwards."""
        self.warden.close()

    def _done(self, jobs: Sequence[Job]) -> list[list[Row]]:
        """The rows that each job comes to."""
        found: list[list[Row]] = []
        for first in range(0, len(jobs), AT_ONCE):
            part = jobs[first : first + AT_ONCE]
            refused: dict[int, str] = {}
            made = self.warden.see_through(len(part), refused, functools.partial(_chosen, part))
            for index, job in enumerate(part):
                if index in refused:
                    # Of a video whose bytes had not come nothing is known.
                    fetched = self.warden.progress["fetched"][index] > 0
                    row = (refuse_for_good if fetched else refuse)(job.row, refused[index])
                    made[index] = [row]
            found += [made[index] for index in range(len(part))]
        return found


def _chosen(jobs: Sequence[Job], indices: list[int]) -> list[tuple[int, Job]]:
    return [(index, jobs[index]) for index in indices]


class LocalWorkers:
    """Completes rows in children of this process."""

    ahead = 4  # groups of a listing that may be under way

    def __init__(self, limits: LimitsConfig) -> None:
        self._limits = limits
        self.probers: list[Prober] = []

    def __enter__(self) -> Self:
        self._own = threading.local()
        self._pool = ThreadPoolExecutor(CHILDREN, initializer=self._begin)
        return self

    def __exit__(self, error: object, *_: object) -> None:
        if error is not None:
            for prober in self.probers:
                prober.warden.stop()
        self._pool.shutdown(cancel_futures=True)
        for prober in self.probers:
            prober.close()

    def submit(self, tasks: list[Task]) -> Callable[[], list[list[Row]]]:
        """A function that waits for the rows of each task."""
        if not tasks:
            return list
        return self._pool.submit(lambda: self._own.prober.complete(tasks)).result

    def _begin(self) -> None:
        self._own.prober = Prober(self._limits)
        self.probers.append(self._own.prober)


class RayWorkers:
    """Completes rows in Ray's tasks, on whatever cluster there is, each process with its child."""

    ahead = 64

    def __init__(self, limits: LimitsConfig) -> None:
        self._limits = limits

    def __enter__(self) -> Self:
        import ray

        from raygen.ray_session import join

        join()
        remote = ray.remote(num_cpus=1, max_retries=RETRIES, scheduling_strategy="SPREAD")
        self._complete = remote(complete)
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def submit(self, tasks: list[Task]) -> Callable[[], list[list[Row]]]:
        """A function that waits for the rows of each task."""
        parts = [tasks[i : i + TASK] for i in range(0, len(tasks), TASK)]
        waiting = [self._complete.remote(part, self._limits) for part in parts]
        return lambda: [rows for result in waiting for rows in _wait(result)]


def complete(tasks: Sequence[Task], limits: LimitsConfig) -> list[list[Row]]:
    """`Prober.complete` with the child that this process keeps."""
    return _prober(limits).complete(tasks)


@functools.cache
def _prober(limits: LimitsConfig) -> Prober:
    return Prober(limits)


def _wait(result: Any) -> list[list[Row]]:
    import ray

    try:
        rows: list[list[Row]] = ray.get(result)
        return rows
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    except ray.exceptions.RayError as error:
        what = str(error).partition("\n")[0]
        raise ClusterError(f"Ray lost a task of the scan {RETRIES + 1} times: {what}") from None


def open_row(row: Row, block: int = BLOCK) -> BinaryIO:
    """The bytes of a row's video as a file that fetches what is read, `block` bytes or more."""
    from raygen.data import store

    file = store.RangedFile(
        row["uri"], row["bytes"], offset=row["offset"], etag=row["etag"], block=block
    )
    return cast(BinaryIO, file)
