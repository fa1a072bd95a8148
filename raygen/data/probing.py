"""Objects to rows of a catalogue: headers by ranged reads, tar shards member by member.

Work is spread over threads, or over Ray's tasks where it is large. A video whose header kills the
process that reads it ends as a refused row under Ray; threads it would take with it.
"""

from __future__ import annotations

import itertools
import tarfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any, BinaryIO, Self, cast

from raygen.data import decode, labels, screen, store
from raygen.data.known import Row
from raygen.data.listing import SHARD, SUFFIXES, suffix
from raygen.data.store import Object
from raygen.errors import AccessError, DataError, StorageError

THREADS = 8
TASK = 16  # objects of one of Ray's tasks
CPUS_PER_TASK = 0.25  # most of its time a task waits for storage
SIDECAR_BYTES = 1 << 20
SIDECARS = (".txt", ".cls", ".json")
_BLOCK = 256 << 10
_HEADER_BLOCK = 16 << 10  # bytes fetched around a tar header: its small neighbours come with it
_LOOK_BLOCK = 8 << 20  # bytes a request, where all of a video is read


@dataclass(frozen=True)
class Task:
    """One object; `rows` is what is known of it, empty for a shard whose members are not."""

    item: Object
    rows: list[Row]
    look: bool


def new_row(uri: str, etag: str, offset: int, size: int) -> Row:
    """A row of a video that nobody has looked at."""
    row: Row = {"uri": uri, "etag": etag, "offset": offset, "bytes": size, "codec": None}
    row |= {"label": "", "caption": "", "split": "", "weight": 1.0, "cuts": []}
    return row | {"status": "ok", "reason": ""}


def refuse(row: Row, reason: str) -> Row:
    """The row with status and reason."""
    return row | {"status": "refused", "reason": reason}


def complete(tasks: list[Task]) -> list[list[Row]]:
    """The rows of each task's object: listed, probed and looked at as far as they are not yet.

    Raises AccessError where storage as a whole is out of reach.
    """
    return [[_looked(_probed(row), task.look) for row in _rows(task)] for task in tasks]


class Threads:
    """Runs `complete` in threads of this process."""

    ahead = 4  # groups of a listing that may be under way

    def __enter__(self) -> Self:
        self._pool = ThreadPoolExecutor(THREADS)
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def submit(self, tasks: list[Task]) -> Callable[[], list[list[Row]]]:
        """A function that waits for the rows of each task."""
        futures = [self._pool.submit(complete, [task]) for task in tasks]
        return lambda: [rows for future in futures for rows in future.result()]


class RayWorkers:
    """Runs `complete` in Ray's tasks, on whatever cluster there is."""

    ahead = 64

    def __enter__(self) -> Self:
        import ray

        from raygen.ray_session import join

        join()
        remote = ray.remote(num_cpus=CPUS_PER_TASK, max_retries=1, scheduling_strategy="SPREAD")
        self._complete = remote(complete)
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def submit(self, tasks: list[Task]) -> Callable[[], list[list[Row]]]:
        """A function that waits for the rows of each task."""
        parts = [tasks[i : i + TASK] for i in range(0, len(tasks), TASK)]
        waiting = [(part, self._complete.remote(part)) for part in parts]
        return lambda: [rows for part, result in waiting for rows in self._wait(part, result)]

    def _wait(self, tasks: list[Task], result: Any) -> list[list[Row]]:
        import ray

        try:
            rows: list[list[Row]] = ray.get(result)
            return rows
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None
        except ray.exceptions.WorkerCrashedError:
            if len(tasks) > 1:
                # One of them did it: each in a task of its own.
                alone = [([task], self._complete.remote([task])) for task in tasks]
                return [rows for part, again in alone for rows in self._wait(part, again)]
            item = tasks[0].item
            row = new_row(item.uri, item.etag, 0, item.size) | {"codec": ""}
            return [[refuse(row, "crashed the process that probed it")]]


def _rows(task: Task) -> list[Row]:
    if task.rows or suffix(task.item.uri) != SHARD:
        return task.rows
    return list(_members(task.item))


def _probed(row: Row) -> Row:
    if row.get("codec") is not None or row["status"] != "ok":
        return row
    try:
        return row | asdict(decode.probe(open_row(row)))
    except DataError as error:
        return refuse(row, str(error)) | {"codec": ""}
    except AccessError:
        raise
    except StorageError as error:
        return refuse(row, str(error))  # and to be probed by the next scan


def _looked(row: Row, wanted: bool) -> Row:
    if not wanted or row["status"] != "ok" or row.get("motion") is not None:
        return row
    try:
        seen = screen.look(open_row(row, _LOOK_BLOCK), row["duration"], row["fps"])
        return row | asdict(seen)
    except DataError as error:
        return refuse(row, str(error)) | {"codec": ""}
    except AccessError:
        raise
    except StorageError as error:
        return refuse(row, str(error)) | {"codec": None}


def open_row(row: Row, block: int = _BLOCK) -> BinaryIO:
    """The bytes of a row's video as a file that fetches what is read, `block` bytes or more."""
    file = store.RangedFile(
        row["uri"], row["bytes"], offset=row["offset"], etag=row["etag"], block=block
    )
    return cast(BinaryIO, file)


def _members(item: Object) -> Iterator[Row]:
    """A row for each video in a tar shard, and a refused one where the shard itself is broken.

    `member` is the path of the video as if the shard were a folder's content.
    """
    folder = item.uri.rpartition("/")[0]
    try:
        file = store.RangedFile(item.uri, item.size, etag=item.etag, block=_HEADER_BLOCK)
        with tarfile.open(fileobj=file, mode="r:") as shard:
            members = (member for member in shard if member.isfile())
            for _, sample in itertools.groupby(members, key=lambda member: _key(member.name)):
                files = {suffix(member.name): member for member in sample}
                beside = {
                    end[1:]: shard.extractfile(member).read()  # type: ignore[union-attr]
                    for end, member in files.items()
                    if end in SIDECARS and member.size <= SIDECAR_BYTES
                }
                said = labels.sidecars(beside)
                for end, member in files.items():
                    if end in SUFFIXES:
                        row = new_row(item.uri, item.etag, member.offset_data, member.size)
                        yield row | said | {"member": f"{folder}/{member.name}"}
    except tarfile.TarError as error:
        row = new_row(item.uri, item.etag, 0, item.size)
        yield refuse(row, f"is broken or not a tar file ({error})") | {"codec": ""}
    except AccessError:
        raise
    except StorageError as error:
        yield refuse(new_row(item.uri, item.etag, 0, item.size), str(error))


def _key(name: str) -> str:
    """WebDataset's key of a sample: the path up to the first dot of the file's name."""
    folder, _, file = name.rpartition("/")
    return f"{folder}/{file.partition('.')[0]}"
