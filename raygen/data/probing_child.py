"""The process that lists shards and probes videos for a Prober; it ends when its parent does.

Several are under way at once, for most of a header's time is spent waiting for storage. Imports
what a local video needs; what reads storage, shards and pictures only where it is asked for.
"""

from __future__ import annotations

import functools
import importlib
import itertools
import os
import tarfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import numpy as np

from raygen.data import decode
from raygen.data.probing import BLOCK, Job, Settings, new_row, open_row, refuse, refuse_for_good
from raygen.data.ward import FETCHING_BYTES, Memory, local_file, reason, serve
from raygen.data.warden import OUT_OF_MEMORY, progress_table
from raygen.errors import AccessError, StorageError

if TYPE_CHECKING:
    from raygen.data.known import Row

STORE = "raygen.data.store"
THREADS = 8
SIDECAR_BYTES = 1 << 20
SIDECARS = (".txt", ".cls", ".json")
HEADER_BLOCK = 16 << 10  # bytes fetched around a tar header: its small neighbours come with it
LOOK_BLOCK = 1 << 20  # bytes a request at the least, where all of a video is read
RANGES_BYTES = 48 << 20  # what a RangedFile of LOOK_BLOCK holds and fetches


class Child:
    """Jobs to rows, each sent to the parent as soon as they are there."""

    def __init__(self, settings: Settings, fd: int, pipe: Connection) -> None:
        self.fd, self.pipe = fd, pipe
        self.progress = progress_table(fd, 0)
        self.limits = decode.Limits(megapixels=settings.megapixels)
        self.memory = Memory(settings.memory_bytes)
        self.loaded: set[str] = set()
        self.sending = threading.Lock()
        self.threads = ThreadPoolExecutor(THREADS)
        # A thread starts with its first job, but its stack is none of decoding's memory.
        together = threading.Barrier(THREADS)
        self.memory.load(lambda: list(self.threads.map(lambda _: together.wait(), range(THREADS))))

    def work(self, work: list[tuple[int, Job]]) -> None:
        """Does the jobs, and tells the parent. Stops where the storage is out of reach."""
        jobs = 1 + max(index for index, _ in work)
        if jobs > len(self.progress):
            self.progress = progress_table(self.fd, jobs)
        needed = {name for _, job in work for name in _modules(job)}
        for module in needed - self.loaded:
            self.memory.load(functools.partial(importlib.import_module, module))
        self.loaded |= needed
        fetching = FETCHING_BYTES + THREADS * RANGES_BYTES
        self.memory.limit(fetching if STORE in self.loaded else 0)
        try:
            list(self.threads.map(self._do, *zip(*work, strict=True)))
        except AccessError as error:
            self._send("access", str(error), error.uri)
        else:
            self._send("end")

    def _do(self, index: int, job: Job) -> None:
        """Raises AccessError."""
        progress = self.progress[index]
        progress["begun"] = time.monotonic()
        self._send("made", index, self._rows(job, progress))
        progress["done"] = time.monotonic()

    def _send(self, *message: object) -> None:
        with self.sending:
            self.pipe.send(message)

    def _rows(self, job: Job, progress: np.void) -> list[Row]:
        """What the job comes to; a refused row where it fails. Raises AccessError."""
        row = job.row
        try:
            if job.shard:
                return list(_members(row, progress))
            if row["status"] == "ok" and row.get("codec") is None:
                with _opened(row, BLOCK, progress) as file:
                    row |= asdict(decode.probe(file, limits=self.limits))
            if job.look and row["status"] == "ok" and row.get("motion") is None:
                from raygen.data import screen

                with _opened(row, LOOK_BLOCK, progress) as file:
                    row |= asdict(screen.look(file, row["duration"], row["fps"], self.limits))
        except AccessError:
            raise
        # FFmpeg and its binding raise all sorts of things over a broken file.
        except Exception as error:
            if self.memory.ran_out(error):
                os._exit(OUT_OF_MEMORY)
            if isinstance(error, StorageError):
                return [refuse(row, str(error)) | {"codec": None}]  # to be probed by the next scan
            return [refuse_for_good(row, reason(error))]
        return [row]


class _Watched:
    """A file whose parent process sees when it waits for bytes, and when they have come."""

    def __init__(self, file: BinaryIO, uri: str, progress: np.void) -> None:
        self.seek, self.tell = file.seek, file.tell
        self._file, self._uri, self._progress = file, uri, progress

    def read(self, size: int = -1) -> bytes:
        """As the file's. Raises StorageError."""
        self._progress["begun"], self._progress["fetched"] = time.monotonic(), 0
        try:
            data = self._file.read(size)
        except OSError as error:
            raise StorageError(f"cannot read {self._uri}: {error.strerror}", self._uri) from None
        self._progress["fetched"] = time.monotonic()
        return data


def _modules(job: Job) -> Iterator[str]:
    """What the job needs beyond this module's own imports."""
    if job.shard:
        yield "raygen.data.labels"
    if job.shard or not _is_file(job.row):
        yield STORE
    if job.look:
        yield "raygen.data.screen"


def _is_file(row: Row) -> bool:
    """Whether the video is a local file, and all of it."""
    return row["offset"] == 0 and "://" not in row["uri"]


@contextmanager
def _opened(row: Row, block: int, progress: np.void) -> Iterator[BinaryIO]:
    """The bytes of the row's video. Raises StorageError."""
    if not _is_file(row):
        yield cast(BinaryIO, _Watched(open_row(row, block), row["uri"], progress))
        return
    path = Path(local_file(row["uri"], row["etag"]))
    progress["fetched"] = time.monotonic()
    try:
        file = path.open("rb", buffering=0)
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror}", row["uri"]) from None
    with file:
        yield cast(BinaryIO, _Watched(cast(BinaryIO, file), row["uri"], progress))


def _members(shard: Row, progress: np.void) -> Iterator[Row]:
    """A row for each video in a tar shard, and a refused one where the shard itself is broken.

    `member` is the path of the video as if the shard were a folder's content.
    """
    from raygen.data import labels
    from raygen.data.listing import SUFFIXES, suffix

    uri, etag = shard["uri"], shard["etag"]
    folder = uri.rpartition("/")[0]
    try:
        file = cast(Any, _Watched(open_row(shard, HEADER_BLOCK), uri, progress))
        with tarfile.open(fileobj=file, mode="r:") as tar:
            members = (member for member in tar if member.isfile())
            for _, sample in itertools.groupby(members, key=lambda member: _key(member.name)):
                files = {suffix(member.name): member for member in sample}
                beside = {
                    end[1:]: tar.extractfile(member).read()  # type: ignore[union-attr]
                    for end, member in files.items()
                    if end in SIDECARS and member.size <= SIDECAR_BYTES
                }
                said = labels.sidecars(beside)
                for end, member in files.items():
                    if end in SUFFIXES:
                        row = new_row(uri, etag, member.offset_data, member.size)
                        yield row | said | {"member": f"{folder}/{member.name}"}
    except tarfile.TarError as error:
        yield refuse_for_good(shard, f"is broken or not a tar file ({error})")
    except AccessError:
        raise
    except StorageError as error:
        yield refuse(shard, str(error))


def _key(name: str) -> str:
    """WebDataset's key of a sample: the path up to the first dot of the file's name."""
    folder, _, file = name.rpartition("/")
    return f"{folder}/{file.partition('.')[0]}"


if __name__ == "__main__":
    serve(lambda settings, fd, pipe: Child(Settings(**settings), fd, pipe).work)
