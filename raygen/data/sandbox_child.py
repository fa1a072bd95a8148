"""The process that decodes for a Sandbox, which starts it; it ends when its parent does.

Imports no more than decoding needs, and what reads storage only once a video lies there. Short
videos are decoded whole and kept; of long ones the span that is asked for.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection

from raygen.data import decode, grid
from raygen.data.cache import ClipCache
from raygen.data.frames import Clip
from raygen.data.sandbox import Request, Settings, Slab, Work
from raygen.data.ward import FETCHING_BYTES, Memory, local_file, reason, serve
from raygen.errors import AccessError, DataError
from raygen.sides import sides

# Videos fetched ahead of the one being decoded: so many, and together so large.
AHEAD = 4
AHEAD_BYTES = 32 << 20


@dataclass(frozen=True)
class _Job:
    """A request that was looked at ahead of its turn.

    whole: its video, where that is kept already; fetching: its bytes, where they must be fetched.
    """

    index: int
    request: Request
    whole: Clip | None
    fetching: Future[bytes] | None


class Child:
    """Requests to clips in the slab; holds the cache of short videos."""

    def __init__(self, settings: Settings, fd: int, pipe: Connection) -> None:
        self.settings, self.fd, self.pipe = settings, fd, pipe
        self.slab = Slab(fd, 1, settings.frames, settings.size)
        self.cache = ClipCache(settings.cache_bytes)
        self.limits = decode.Limits(megapixels=settings.megapixels)
        self.fetchers: ThreadPoolExecutor | None = None
        self.memory = Memory(settings.memory_bytes)

    def work(self, work: Work) -> None:
        """Decodes what can be and refuses the rest, and tells the parent.

        Stops where the storage as a whole is out of reach. Raises MemoryError where a clip needs
        more than it may have.
        """
        if work.slots != self.slab.slots:
            self.slab = Slab(self.fd, work.slots, self.settings.frames, self.settings.size)
        self._limit_memory(work)
        slot = work.slot
        for job in self._jobs(work):
            row = self.slab.progress[job.index]
            row["begun"] = time.monotonic()
            try:
                source = _source(job)
                row["fetched"] = time.monotonic()
                self.slab.clips_NTHWC[slot] = self._clip(job, source)
                slot += 1
            except AccessError as error:
                self.pipe.send(("access", str(error), error.uri))
                return
            # FFmpeg and its binding raise all sorts of things over a broken file.
            except Exception as error:
                if self.memory.ran_out(error):
                    raise MemoryError from None
                self.pipe.send(("refused", job.index, reason(error)))
            row["done"] = time.monotonic()
        self.pipe.send(("end",))

    def _clip(self, job: _Job, source: bytes | str) -> Clip:
        """Raises DataError."""
        request, settings = job.request, self.settings
        first = grid.first_of(request.start, request.low, request.high, settings)
        if not self._is_short(request):
            return decode.decode(
                source,
                start=first / settings.fps,
                frames=settings.frames,
                fps=settings.fps,
                size=settings.size,
                crop=request.crop,
                limits=self.limits,
            )
        whole = job.whole
        if whole is None:
            whole = self.cache.get(
                _key(request),
                lambda: decode.decode_all(
                    source,
                    fps=settings.fps,
                    size=settings.size,
                    seconds=request.seconds,
                    limits=self.limits,
                ),
            )
        if len(whole) < settings.frames:
            promised = decode.frame_count(request.seconds, settings.fps)
            raise DataError(f"holds {len(whole)} frames of the {promised} that its header promises")
        first = min(first, len(whole) - settings.frames)
        return whole[first : first + settings.frames]

    def _is_short(self, request: Request) -> bool:
        """Whether its video is decoded whole and kept: one in eight of the cache, at the most.

        A crop of its own for each clip leaves nothing to keep.
        """
        frames = decode.frame_count(request.seconds, self.settings.fps)
        height, width = sides(self.settings.size)
        fits = frames * height * width * 3 <= self.cache.limit // 8
        return request.crop == decode.CENTRE and fits

    def _jobs(self, work: Work) -> Iterator[_Job]:
        """The requests in order, each with its bytes on their way before its turn."""
        coming = deque(work.requests)
        jobs: deque[_Job] = deque()
        while coming or jobs:
            present = jobs.popleft() if jobs else self._job(*coming.popleft())
            held = sum(job.request.bytes for job in jobs if job.fetching)
            while coming and len(jobs) < AHEAD and held + coming[0][1].bytes <= AHEAD_BYTES:
                jobs.append(self._job(*coming.popleft()))
                held += jobs[-1].request.bytes
            yield present

    def _job(self, index: int, request: Request) -> _Job:
        whole = self._kept(request) if self._is_short(request) else None
        fetching = None
        if whole is None and request.fetched and self.fetchers:
            fetching = self.fetchers.submit(_fetch, request)
        return _Job(index, request, whole, fetching)

    def _kept(self, request: Request) -> Clip | None:
        def absent() -> Clip:
            raise KeyError

        try:
            return self.cache.get(_key(request), absent)
        except KeyError:
            return None

    def _limit_memory(self, work: Work) -> None:
        """Gives decoding its share of address space, and all else that is held its own."""
        largest = max((r.bytes for _, r in work.requests if r.fetched), default=None)
        if largest is not None and self.fetchers is None:
            self.memory.load(_load_store)
            self.fetchers = ThreadPoolExecutor(AHEAD)
        held = self.slab.nbytes + self.settings.cache_bytes
        if largest is not None:
            # A body is held twice while its parts are joined.
            held += FETCHING_BYTES + 2 * max(AHEAD_BYTES, largest)
        self.memory.limit(held)


def _load_store() -> None:
    from raygen.data import store  # noqa: F401


def _fetch(request: Request) -> bytes:
    """Raises StorageError."""
    from raygen.data import store

    return store.read_range(request.uri, request.offset, request.bytes, etag=request.etag)


def _source(job: _Job) -> bytes | str:
    """What to decode from; nothing where the video is kept. Raises StorageError."""
    if job.whole is not None:
        return b""
    if job.fetching:
        return job.fetching.result()
    return local_file(job.request.uri, job.request.etag)


def _key(request: Request) -> str:
    return f"{request.uri}\t{request.offset}\t{request.etag}"


if __name__ == "__main__":
    serve(lambda settings, fd, pipe: Child(Settings(**settings), fd, pipe).work)
