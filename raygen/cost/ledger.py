"""The ledger on storage: entries are appended, durably, before what they announce is done.

On a disk it is one file, PLACE/ledger.jsonl, appended to under a lock and synced; a last line that
a crash tore is cut off, for what it announced was not done. On S3 it is PLACE/ledger/00000001.json
and so on, each written only if it is not there: of two writers one wins, and the other decides
again with the winner's entries before it.
"""

from __future__ import annotations

import fcntl
import os
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from raygen.cost.book import Book
from raygen.cost.entries import Entry, Opened, decode, encode
from raygen.data import store
from raygen.errors import StorageError

FILE, FOLDER = "ledger.jsonl", "ledger"
READ_AT_ONCE = 32

Decide = Callable[[Book], Sequence[Entry]]


class _Storage(Protocol):
    def read(self) -> list[bytes]:
        """The lines that have come since the last call."""

    def append(self, line: bytes) -> bool:
        """Appends a line, if none has come since the last `read`; whether it did."""

    @contextmanager
    def turn(self) -> Iterator[None]:
        """While it lasts, others wait where the storage can make them."""


class Ledger:
    """The ledger at PLACE, a run's or a search's folder or `s3://` prefix. For several threads.

    `book` is what all entries come to, others' as far as they were read. Opening reads it; a place
    without one has an empty one. Raises StorageError.
    """

    def __init__(self, place: str) -> None:
        self.place, self.writer = store.absolute(place), uuid.uuid4().hex[:12]
        self._storage: _Storage = _Objects(place) if store.is_s3(place) else _File(place)
        self._lock = threading.RLock()
        self.book = Book()
        self.entries: list[Entry] = []
        self.refresh()

    @staticmethod
    def exists(place: str) -> bool:
        """Whether there is a ledger at `place`."""
        if store.is_s3(place):
            return store.exists(store.join(place, FOLDER, _numbered(1)))
        return store.exists(store.join(store.absolute(place), FILE))

    def begin(self, at: float, cap: float | None, owner: str = "") -> Opened:
        """Enters that this writer begins at `at` under a cap; the writers before it are over."""
        opened = Opened(self.writer, at, cap, owner)
        self.append([opened])
        return opened

    @property
    def superseded(self) -> bool:
        """Whether another driver has begun since this one did, as far as was read."""
        opened = self.book.opened
        return opened is not None and opened.writer != self.writer

    def refresh(self) -> None:
        """Reads what others have appended."""
        with self._lock:
            self._take(self._storage.read())

    def append(self, entries: Sequence[Entry]) -> None:
        """Appends entries, all or none, and returns once they would survive a crash."""
        self.commit(lambda book: entries)

    def commit(self, decide: Decide) -> Sequence[Entry]:
        """Appends what `decide` makes of the newest book; returns it.

        No other entry comes between that book and these entries: where one does, `decide` is asked
        again. Entries are all written or none; no entries are no write.
        """
        with self._lock, self._storage.turn():
            while True:
                self._take(self._storage.read())
                entries = decide(self.book)
                if not entries:
                    return entries
                line = encode(entries, f"{self.writer}-{len(self.entries)}")
                if self._storage.append(line):
                    self._take([line])
                    return entries

    def _take(self, lines: Sequence[bytes]) -> None:
        for line in lines:
            try:
                entries = decode(line)
                for entry in entries:
                    self.book.add(entry)
            except (KeyError, ValueError):
                raise StorageError(
                    f"the ledger at {self.place} is damaged after {len(self.entries)} entries: "
                    "put back the copy of it that is whole",
                    self.place,
                ) from None
            self.entries += entries


class _File:
    def __init__(self, place: str) -> None:
        self._path = Path(store.absolute(place)) / FILE
        self._offset = 0

    def read(self) -> list[bytes]:
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            file.seek(self._offset)
            data = file.read()
        # Without its newline a line is still being written, or was torn.
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        return whole.splitlines(keepends=True)

    def append(self, line: bytes) -> bool:
        try:
            fresh = not self._path.exists()
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
            try:
                # All that is whole has been read in this turn: what is beyond was torn.
                os.ftruncate(descriptor, self._offset)
                if os.write(descriptor, line) < len(line):
                    raise OSError(28, "No space left on device")
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            if fresh:
                _sync_folder(self._path.parent)
        except OSError as error:
            raise StorageError(
                f"cannot write {self._path}: {error.strerror}", str(self._path)
            ) from None
        self._offset += len(line)
        return True

    @contextmanager
    def turn(self) -> Iterator[None]:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            lock = self._path.with_suffix(".lock").open("wb")
        except OSError as error:
            raise StorageError(
                f"cannot write {self._path}: {error.strerror}", str(self._path)
            ) from None
        with lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


class _Objects:
    def __init__(self, place: str) -> None:
        self._folder = store.join(place, FOLDER)
        self._count = 0

    def read(self) -> list[bytes]:
        after = store.join(self._folder, _numbered(self._count)) if self._count else ""
        uris = [item.uri for item in store.list_objects(self._folder, start_after=after)]
        with ThreadPoolExecutor(READ_AT_ONCE) as pool:
            lines = list(pool.map(store.read_bytes, uris))
        self._count += len(uris)
        return lines

    def append(self, line: bytes) -> bool:
        uri = store.join(self._folder, _numbered(self._count + 1))
        if not store.write_bytes(uri, line, only_if_absent=True):
            return False
        self._count += 1
        return True

    @contextmanager
    def turn(self) -> Iterator[None]:
        yield


def _numbered(number: int) -> str:
    return f"{number:08d}.json"


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
