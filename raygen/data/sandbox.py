"""Decoding in a child process, so that no video can take the job with it.

    sandbox = Sandbox(config.data)
    for outcome in sandbox.decode(requests): ...        # Decoded or Refusal, in order

A video that crashes the decoder, hangs it or bloats it costs its child process, never the caller:
the child notes in shared memory which request it is at, so the one to blame is known by name, and
a new child goes on with the rest. The clips come back through the same shared memory. The child is
a fresh interpreter (raygen.data.sandbox_child), not a fork of a process that runs threads.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from raygen.errors import AccessError, RaygenError

if TYPE_CHECKING:
    # The child imports this module, and starts sooner without pydantic.
    from raygen.config import DataConfig

CHILD = "raygen.data.sandbox_child"
# A child that a signal ended may have been anyone's victim: its clip gets a second chance.
STRIKES = 2
# Children in a row that end before they take up a request.
FALSE_STARTS = 3
START_SECONDS = 60.0
# Storage has time-outs of its own; this is for what escapes them.
FETCH_SECONDS = 300.0
# Of a child, whose address space is limited: an arena of malloc and a thread of BLAS take 64 MB of
# it each. Frames are freed and wanted again with each clip: kept, they cost no page faults.
ENVIRONMENT = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(16 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(64 << 20),
    "OPENBLAS_NUM_THREADS": "1",
}
# How a child says that it ran out of memory.
OUT_OF_MEMORY = 77

PROGRESS = np.dtype([("begun", np.float64), ("fetched", np.float64), ("done", np.float64)])
"""When a request was taken up, had its bytes, was through: time.monotonic() seconds; 0: not yet."""


@dataclass(frozen=True)
class Request:
    """One clip of the video whose `bytes` bytes begin at `offset` of the object `uri`.

    seconds: the video's duration by the catalogue. start: in [0, 1), the share of the shot's spare
    time before the clip. crop: (x, y) as fractions of the room to move, (0.5, 0.5) is the centre.
    low, high: the shot within which the clip must lie, in seconds.
    """

    uri: str
    etag: str
    offset: int
    bytes: int
    seconds: float
    start: float
    crop: tuple[float, float]
    low: float
    high: float

    @property
    def fetched(self) -> bool:
        """Whether its bytes are read here; FFmpeg opens a local file of one video by itself."""
        return self.offset > 0 or "://" in self.uri


@dataclass(frozen=True)
class Refusal:
    """Why there is no clip: a phrase that follows the video's name."""

    reason: str


@dataclass(frozen=True)
class Decoded:
    """A clip, uint8 [T, H, W, 3]: a view of shared memory until the next call of `decode`.

    fetch_s: seconds waited for its bytes, beyond what fetching ahead had hidden; decode_s: seconds.
    """

    clip_THWC: NDArray[np.uint8]
    fetch_s: float
    decode_s: float


@dataclass(frozen=True)
class Settings:
    """What a child is told once: the shape of clips, and its limits in bytes and megapixels."""

    frames: int
    size: int
    fps: float
    cache_bytes: int
    memory_bytes: int
    megapixels: float


@dataclass(frozen=True)
class Work:
    """What a child is told each time: the numbered requests, and the slots of the slab.

    Good clips go into the slots from `slot` on, without gaps.
    """

    slots: int
    slot: int
    requests: list[tuple[int, Request]]


class Slab:
    """Memory that both processes map: a row of progress for each request, then as many clips."""

    def __init__(self, fd: int, slots: int, frames: int, size: int) -> None:
        self.slots = slots
        table = -(-slots * PROGRESS.itemsize // mmap.PAGESIZE) * mmap.PAGESIZE
        shape = (slots, frames, size, size, 3)
        self.nbytes = table + math.prod(shape)
        if os.fstat(fd).st_size < self.nbytes:
            os.ftruncate(fd, self.nbytes)
        memory = mmap.mmap(fd, self.nbytes)
        self.progress = np.frombuffer(memory, PROGRESS, slots)
        self.clips_NTHWC = np.frombuffer(memory, np.uint8, math.prod(shape), table).reshape(shape)


@dataclass(frozen=True)
class _Child:
    process: subprocess.Popen[bytes]
    pipe: Connection


@dataclass(frozen=True)
class _Loss:
    """Why a child is gone, and whether that alone condemns the clip that it was at."""

    reason: str
    certain: bool


class Sandbox:
    """Requests to clips. One caller at a time; the child starts with the first call.

    restarts: how many children had to be replaced. clips_NTHWC: the good clips of the last call as
    one array, like each of them a view of shared memory until the next call.
    """

    def __init__(self, config: DataConfig) -> None:
        self.restarts = 0
        self._limits = config.limits
        self._settings = Settings(
            frames=config.frames,
            size=config.size,
            fps=config.fps,
            cache_bytes=config.cache_mb << 20,
            memory_bytes=config.limits.memory_mb << 20,
            megapixels=config.limits.megapixels,
        )
        self._fd = os.memfd_create("raygen-clips")
        self._slab = Slab(self._fd, 1, config.frames, config.size)
        self.clips_NTHWC = self._slab.clips_NTHWC[:0]
        self._child: _Child | None = None

    @property
    def pid(self) -> int | None:
        """The child's process id, None where none runs."""
        return self._child.process.pid if self._child else None

    def decode(self, requests: Sequence[Request]) -> list[Decoded | Refusal]:
        """One outcome for each request, in order.

        Raises AccessError where the storage as a whole is out of reach, RaygenError where no
        decoder process can be started.
        """
        if len(requests) > self._slab.slots:
            self._slab = Slab(self._fd, len(requests), self._settings.frames, self._settings.size)
        progress = self._slab.progress[: len(requests)]
        progress[:] = 0
        refused = self._oversized(requests)
        try:
            self._see_through(requests, progress, refused)
        except BaseException:
            # Whatever the child is at belongs to this call.
            self._kill()
            raise
        return self._outcomes(progress, refused)

    def close(self) -> None:
        """Ends the child; the sandbox is of no use afterwards, the views that it gave still are."""
        self._kill()
        os.close(self._fd)

    def _oversized(self, requests: Sequence[Request]) -> dict[int, str]:
        limit = self._limits.object_mb
        return {
            index: f"is {request.bytes / 2**20:.0f} MB, above {limit} MB (data.limits.object_mb)"
            for index, request in enumerate(requests)
            if request.fetched and request.bytes > limit << 20
        }

    def _see_through(
        self, requests: Sequence[Request], progress: NDArray[np.void], refused: dict[int, str]
    ) -> None:
        """Child after child, until each request is done or in `refused`."""
        strikes: Counter[int] = Counter()
        false_starts = 0
        while pending := [
            index
            for index in range(len(requests))
            if index not in refused and not progress["done"][index]
        ]:
            good = len(requests) - len(pending) - len(refused)
            work = Work(self._slab.slots, good, [(index, requests[index]) for index in pending])
            loss = self._attempt(work, progress, refused)
            if loss is None:
                return
            self.restarts += 1
            at = self._current(pending, progress, refused)
            if at is None:
                false_starts += 1
                if false_starts == FALSE_STARTS:
                    raise RaygenError(
                        f"{FALSE_STARTS} decoder processes in a row ended before they took up a "
                        f"clip (the last one {loss.reason}); see what they printed, and whether "
                        "this machine has memory and processes to spare"
                    )
                continue
            false_starts = 0
            strikes[at] += 1
            if loss.certain or strikes[at] == STRIKES:
                refused[at] = loss.reason
            else:
                progress[at] = 0

    def _attempt(
        self, work: Work, progress: NDArray[np.void], refused: dict[int, str]
    ) -> _Loss | None:
        """Has one child do `work`, as far as it gets; None where it got through."""
        child = self._child = self._child or self._start()
        indices = [index for index, _ in work.requests]
        sent = time.monotonic()
        try:
            child.pipe.send(work)
            while True:
                at = self._current(indices, progress, refused)
                patience, loss = self._patience(None if at is None else progress[at], sent)
                if patience <= 0:
                    self._kill()
                    return loss
                # What begins while this waits is not overdue before one of the limits has passed.
                if not child.pipe.poll(min(patience, self._limits.seconds, FETCH_SECONDS)):
                    continue
                match child.pipe.recv():
                    case ("refused", int(index), str(reason)):
                        refused[index] = reason
                    case ("access", str(message), str(uri)):
                        raise AccessError(message, uri)
                    case _:
                        return None
        except (EOFError, ConnectionError):
            code = child.process.wait()
            self._kill()
            return self._death(code)

    def _current(
        self, indices: Sequence[int], progress: NDArray[np.void], refused: dict[int, str]
    ) -> int | None:
        """The request that the child is at: it takes them up one by one."""
        at = [i for i in indices if progress["begun"][i] and not progress["done"][i]]
        return at[0] if at and at[0] not in refused else None

    def _patience(self, row: np.void | None, sent: float) -> tuple[float, _Loss]:
        """Seconds that the child still has for what it is at, and what to say after them."""
        now, limit = time.monotonic(), self._limits.seconds
        if row is None:
            return sent + START_SECONDS - now, _Loss(f"hung for {START_SECONDS:g} s", False)
        if not row["fetched"]:
            reason = f"took more than {FETCH_SECONDS:g} s to fetch"
            return float(row["begun"]) + FETCH_SECONDS - now, _Loss(reason, True)
        reason = f"took more than {limit:g} s to decode (data.limits.seconds)"
        return float(row["fetched"]) + limit - now, _Loss(reason, True)

    def _death(self, code: int) -> _Loss:
        if code == OUT_OF_MEMORY:
            limit = self._limits.memory_mb
            return _Loss(f"needs more than {limit} MB to decode (data.limits.memory_mb)", False)
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return _Loss(f"crashed the decoder ({how})", False)

    def _outcomes(
        self, progress: NDArray[np.void], refused: dict[int, str]
    ) -> list[Decoded | Refusal]:
        self.clips_NTHWC = self._slab.clips_NTHWC[: len(progress) - len(refused)]
        clips = iter(self.clips_NTHWC)
        return [
            Refusal(refused[index])
            if index in refused
            else Decoded(next(clips), fetched - begun, done - fetched)
            for index, (begun, fetched, done) in enumerate(progress.tolist())
        ]

    def _start(self) -> _Child:
        ours, theirs = Pipe()
        # The child finds raygen where this process did, and nothing by its working directory.
        paths = os.pathsep.join(path or os.getcwd() for path in sys.path)  # noqa: PTH109
        settings = json.dumps(asdict(self._settings))
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", CHILD, str(theirs.fileno()), str(self._fd), settings],
            stdin=subprocess.DEVNULL,
            pass_fds=(theirs.fileno(), self._fd),
            env=os.environ | ENVIRONMENT | {"PYTHONPATH": paths},
        )
        theirs.close()
        return _Child(process, ours)

    def _kill(self) -> None:
        if self._child:
            self._child.process.kill()
            self._child.process.wait()
            self._child.pipe.close()
            self._child = None
