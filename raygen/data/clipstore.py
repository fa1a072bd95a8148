"""Decode once, read many: decoded clips as Parquet, in a folder or on S3, for every later epoch.

    store = ClipStore("s3://bucket/cache", limit_bytes=20 * 10**9)
    store.put(key(...), clip_THWC)
    store.get_many([key(...), ...])

A part holds some tens of clips, a row group each, ZSTD. The columns beside the pixels are in the
footer as statistics, so the footers are the index, and one clip is one read of exactly its bytes.
Parts are written whole and never changed: any number of processes may write, read and evict at
once, a lost part is a miss, and what is kept is never more than the limit.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
import re
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from raygen.config import DataConfig
from raygen.data import clippart, store
from raygen.data.clippart import Place, TornError
from raygen.data.frames import Clip
from raygen.errors import AccessError, StorageError

DECODE_VERSION = 1
"""Raise it when the same video, span and settings come out of raygen.data.decode as other pixels.

What is cached then is no longer found, and goes in its turn.
"""

PART_CLIPS = 64
PART_BYTES = 16 << 20
# Two clips of a part that lie closer than this are one read.
GAP_BYTES = 64 << 10
# One read that is sure to hold the footer of most parts: about 500 bytes a clip.
FOOTER_BYTES = 64 << 10
REFRESH_S = 5.0
TOUCH_S = 60.0
STRAY_S = 3600.0
CONNECTIONS = 16

# Names that no other writer of Parquet has: what is called so may be deleted.
_PART = re.compile(r"clips-([0-9a-f]{12})-[0-9a-f]{32}\.parquet")
_STRAY = re.compile(r"tmp[a-z0-9_]{8}")

T = TypeVar("T")
R = TypeVar("R")


def key(
    uri: str,
    etag: str,
    offset: int,
    first: int,
    config: DataConfig,
    crop: tuple[float, float],
) -> str:
    """32 hexadecimal digits of everything that decides the pixels of a clip.

    `first` is its first frame, counted at the target rate from the beginning of the video that
    lies at `offset` of the object; `crop` is the plan's. The URI is part of it, for the etag of a
    local file is only a time and a size.
    """
    span = (uri, etag, int(offset), int(first), config.frames, float(config.fps))
    spec = (DECODE_VERSION, *span, config.size, *map(float, crop))
    return hashlib.sha256(repr(spec).encode()).hexdigest()[:32]


@dataclass
class Stats:
    """Clips asked for, found or not; bytes of clips read, and of parts written.

    `stopped` is why nothing is written any more, "" while it is.
    """

    hits: int = 0
    misses: int = 0
    bytes_read: int = 0
    bytes_written: int = 0
    stopped: str = ""


class ClipStore:
    """Clips below `uri`, at most `limit_bytes` of them; one thread at a time.

    Whole parts are evicted: in a folder those that were read longest ago, on S3 the oldest.
    Raises StorageError where there can be no cache.
    """

    def __init__(self, uri: str, limit_bytes: int) -> None:
        self.uri = store.absolute(uri)
        self.limit_bytes = limit_bytes
        self.stats = Stats()
        self._local = not store.is_s3(uri)
        self._pool = None if self._local else ThreadPoolExecutor(CONNECTIONS)
        self._index: dict[str, Place] = {}
        self._parts: dict[str, list[str]] = {}  # part -> its keys
        self._held: dict[str, Clip] = {}  # not yet written
        self._touched: dict[str, float] = {}
        self._refreshed = -math.inf
        if self._local:
            try:
                Path(self.uri).mkdir(parents=True, exist_ok=True)
                self._sweep()
            except OSError as error:
                raise StorageError(f"cannot keep clips in {uri}: {error.strerror}", uri) from None
        self._refresh()

    def kept(self, keys: Iterable[str]) -> set[str]:
        """Those of `keys` that `get_many` will find, if nobody evicts them before."""
        wanted = set(keys)
        if any(key not in self._index and key not in self._held for key in wanted):
            self._refresh()
        return {key for key in wanted if key in self._index or key in self._held}

    def bytes_of(self, keys: Iterable[str]) -> int:
        """What the clips that are written take, of those of `keys`."""
        return sum(self._index[key].length for key in self.kept(keys) if key in self._index)

    def get_many(self, keys: Sequence[str]) -> dict[str, Clip]:
        """The clips that are kept, uint8 [T, H, W, 3], for the caller to own; others are misses.

        Raises AccessError where the storage as a whole is out of reach.
        """
        kept = self.kept(keys)
        clips = {key: self._held[key].copy() for key in kept if key in self._held}
        places = {key: self._index[key] for key in kept if key not in clips}
        runs = list(_runs(places))
        for run, data in zip(runs, self._each(self._fetch, runs), strict=True):
            clips |= self._unpack(run, data)
        hits = sum(key in clips for key in keys)
        self.stats.hits += hits
        self.stats.misses += len(keys) - hits
        return clips

    def put(self, key: str, clip_THWC: Clip) -> None:
        """Keeps a copy of the clip; it is written with others, or by `flush`."""
        if self.stats.stopped or key in self._index or key in self._held:
            return
        self._held[key] = clip_THWC.copy()
        held = sum(clip.nbytes for clip in self._held.values())
        if len(self._held) >= PART_CLIPS or held >= min(PART_BYTES, self.limit_bytes // 8):
            self.flush()

    def flush(self) -> None:
        """Writes what is held. Where that fails nothing more is kept: one warning, no error.

        Raises AccessError where the storage as a whole is out of reach.
        """
        if not self._held:
            return
        data = clippart.write(self._held)
        self._held.clear()
        if len(data) > self.limit_bytes:
            return
        part = f"clips-{time.time_ns() // 10**6:012x}-{uuid.uuid4().hex}.parquet"
        try:
            self._make_room(len(data))
            store.write_bytes(store.join(self.uri, part), data)
            self.stats.bytes_written += len(data)
            self._enter(part, clippart.places(part, data))
            # Others may have written into the same room.
            self._make_room(0)
        except AccessError:
            raise
        except StorageError as error:
            self.stats.stopped = str(error)
            logging.getLogger(__name__).warning("no more clips are cached: %s", error)

    def close(self) -> None:
        """Writes what is held."""
        self.flush()
        if self._pool:
            self._pool.shutdown()

    def _each(self, function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        """A read from a disk takes less time than a thread's turn, one from S3 mostly waits."""
        return self._pool.map(function, items) if self._pool else map(function, items)

    def _fetch(self, run: list[tuple[str, Place]]) -> bytes | None:
        """The bytes from the first clip of a run to the end of its last; None: no longer there."""
        (_, first), (_, last) = run[0], run[-1]
        length = last.offset + last.length - first.offset
        try:
            return store.read_range(store.join(self.uri, first.part), first.offset, length)
        except AccessError:
            raise
        except StorageError:
            return None

    def _unpack(self, run: list[tuple[str, Place]], data: bytes | None) -> dict[str, Clip]:
        """The clips of a run; where they are not what was written their part is removed."""
        part, begin = run[0][1].part, run[0][1].offset
        if data is None:
            self._forget(part)
            return {}
        self.stats.bytes_read += len(data)
        self._touch(part)
        try:
            view = memoryview(data)
            return {key: clippart.read(place, view[place.offset - begin :]) for key, place in run}
        except TornError:
            self._discard(part)
            return {}

    def _refresh(self) -> None:
        """Learns of parts that others wrote or evicted; at most every few seconds."""
        now = time.monotonic()
        if now - self._refreshed < REFRESH_S:
            return
        self._refreshed = now
        listed = self._list()
        for part in self._parts.keys() - listed.keys():
            self._forget(part)
        new = [(part, size) for part, (size, _) in listed.items() if part not in self._parts]
        for (part, _), places in zip(new, self._each(self._footer, new), strict=True):
            if places is None:
                self._discard(part)
            else:
                self._enter(part, places)

    def _footer(self, part_size: tuple[str, int]) -> dict[str, Place] | None:
        """What a part holds; None where it is damaged."""
        part, size = part_size
        uri, span = store.join(self.uri, part), FOOTER_BYTES
        try:
            tail = store.read_range(uri, max(0, size - span), span)
            if (footer := clippart.footer_bytes(tail)) > len(tail):
                tail = store.read_range(uri, max(0, size - footer), footer)
            return clippart.places(part, tail)
        except AccessError:
            raise
        except StorageError:
            return {}
        except TornError:
            return None

    def _enter(self, part: str, places: dict[str, Place]) -> None:
        self._index |= places
        self._parts[part] = list(places)

    def _forget(self, part: str) -> None:
        self._touched.pop(part, None)
        for key in self._parts.pop(part, ()):
            # Another part may hold it as well.
            if key in self._index and self._index[key].part == part:
                del self._index[key]

    def _remove(self, part: str) -> None:
        store.delete(store.join(self.uri, part))
        self._forget(part)

    def _discard(self, part: str) -> None:
        """Removes a damaged part, or where that is not allowed leaves it alone."""
        self._forget(part)
        try:
            self._remove(part)
        except AccessError:
            raise
        except StorageError:
            return

    def _make_room(self, size: int) -> None:
        """Evicts until another `size` bytes fit."""
        listed = self._list()
        excess = sum(held for held, _ in listed.values()) + size - self.limit_bytes
        for part in sorted(listed, key=lambda part: (listed[part][1], part)):
            if excess <= 0:
                return
            self._remove(part)
            excess -= listed[part][0]

    def _list(self) -> dict[str, tuple[int, int]]:
        """Part -> its bytes, and when it was last used or, on S3, written."""
        if not self._local:
            objects = [(o.uri.rpartition("/")[2], o.size) for o in store.list_objects(self.uri)]
            return {
                name: (size, int(match[1], 16))
                for name, size in objects
                if (match := _PART.fullmatch(name))
            }
        listed = {}
        for path in Path(self.uri).glob("clips-*"):
            # Another process may evict it between the listing and the look at it.
            with suppress(FileNotFoundError):
                if _PART.fullmatch(path.name):
                    stat = path.stat()
                    listed[path.name] = stat.st_size, stat.st_mtime_ns
        return listed

    def _touch(self, part: str) -> None:
        now = time.monotonic()
        if self._local and now - self._touched.get(part, -math.inf) > TOUCH_S:
            self._touched[part] = now
            with suppress(OSError):
                os.utime(store.join(self.uri, part))

    def _sweep(self) -> None:
        """Removes what writers left behind that were killed."""
        for path in Path(self.uri).iterdir():
            with suppress(FileNotFoundError):
                if _STRAY.fullmatch(path.name) and time.time() - path.stat().st_mtime > STRAY_S:
                    path.unlink()


def _runs(places: dict[str, Place]) -> Iterator[list[tuple[str, Place]]]:
    """Clips that one read fetches together, in the order of their bytes."""
    run: list[tuple[str, Place]] = []
    for key, place in sorted(places.items(), key=lambda item: item[1][:2]):
        if run:
            last = run[-1][1]
            gap = place.offset - last.offset - last.length
            if last.part != place.part or gap > GAP_BYTES:
                yield run
                run = []
        run.append((key, place))
    if run:
        yield run
