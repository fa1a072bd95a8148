"""Decoding in a child process, so that no video can take the job with it.

    sandbox = Sandbox(config.data)
    for outcome in sandbox.decode(requests): ...        # Decoded or Refusal, in order

A video that crashes the decoder, hangs it or bloats it costs its child process, never the caller:
the child notes in shared memory which request it is at, so the one to blame is known by name, and
a new child goes on with the rest. The clips come back through the same shared memory. The child is
a fresh interpreter (raygen.data.sandbox_child), not a fork of a process that runs threads.
"""

from __future__ import annotations

import math
import mmap
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from raygen.data.warden import PROGRESS, Warden, table_bytes
from raygen.sides import Size, sides

if TYPE_CHECKING:
    # The child imports this module, and starts sooner without pydantic.
    from raygen.config import DataConfig

CHILD = "raygen.data.sandbox_child"


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
    size: Size
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

    def __init__(self, fd: int, slots: int, frames: int, size: Size) -> None:
        self.slots = slots
        table, shape = table_bytes(slots), (slots, frames, *sides(size), 3)
        self.nbytes = table + math.prod(shape)
        if os.fstat(fd).st_size < self.nbytes:
            os.ftruncate(fd, self.nbytes)
        memory = mmap.mmap(fd, self.nbytes)
        self.progress = np.frombuffer(memory, PROGRESS, slots)
        self.clips_NTHWC = np.frombuffer(memory, np.uint8, math.prod(shape), table).reshape(shape)


class Sandbox:
    """Requests to clips. One caller at a time; the child starts with the first call.

    clips_NTHWC: the good clips of the last call as one array, like each of them a view of shared
    memory until the next call.
    """

    def __init__(self, config: DataConfig) -> None:
        self._limits = config.limits
        self._settings = Settings(
            frames=config.frames,
            size=config.size,
            fps=config.fps,
            cache_bytes=config.cache_mb << 20,
            memory_bytes=config.limits.memory_mb << 20,
            megapixels=config.limits.megapixels,
        )
        self._warden = Warden(
            CHILD,
            asdict(self._settings),
            memory_mb=config.limits.memory_mb,
            seconds=config.limits.seconds,
        )
        self._slab = Slab(self._warden.fd, 1, config.frames, config.size)
        self.clips_NTHWC = self._slab.clips_NTHWC[:0]

    @property
    def pid(self) -> int | None:
        """The child's process id, None where none runs."""
        return self._warden.pid

    @property
    def restarts(self) -> int:
        """How many children had to be replaced."""
        return self._warden.restarts

    def decode(self, requests: Sequence[Request]) -> list[Decoded | Refusal]:
        """One outcome for each request, in order.

        Raises AccessError where the storage as a whole is out of reach, RaygenError where no
        decoder process can be started.
        """
        if len(requests) > self._slab.slots:
            settings = self._settings
            self._slab = Slab(self._warden.fd, len(requests), settings.frames, settings.size)
        refused = self._oversized(requests)

        def work(indices: list[int]) -> Work:
            # All before the first of them are through: as many clips as were not refused.
            slot = sum(index not in refused for index in range(indices[0]))
            return Work(self._slab.slots, slot, [(index, requests[index]) for index in indices])

        self._warden.see_through(len(requests), refused, work)
        return self._outcomes(self._warden.progress[: len(requests)], refused)

    def close(self) -> None:
        """Ends the child; the sandbox is of no use afterwards, the views that it gave still are."""
        self._warden.close()

    def _oversized(self, requests: Sequence[Request]) -> dict[int, str]:
        limit = self._limits.object_mb
        return {
            index: f"is {request.bytes / 2**20:.0f} MB, above {limit} MB (data.limits.object_mb)"
            for index, request in enumerate(requests)
            if request.fetched and request.bytes > limit << 20
        }

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
