"""Files made of clips in processes of their own, which keep nobody waiting for the interpreter.

    encoders = Encoders(1)
    data = await encoders(File([clip_THWC], "mp4", fps=16))         # as raygen.video.encode

A thread that encodes beside the one that draws and the one that answers costs the three of them
about 1.5 ms of CPU more for each mp4, which itself takes 2: they pass the interpreter's lock around
(serve/README.md has the loads). Clips go to a child through shared memory, those that were drawn
together at once, and their files come back together, so that the loop wakes up once for all.
"""

from __future__ import annotations

import atexit
import functools
import math
import mmap
import os
import pickle
import queue
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import NamedTuple

import numpy as np

from raygen import heap, video, watermark
from serve.batcher import Batcher

TOGETHER = 8  # files that a child is given at a time
HELD_S = 0.02  # a file that is done waits so long at most for those after it
KEPT = 16 << 20  # bytes of shared memory that stay for the next clips
ATTEMPTS = 2  # of a file whose child died: anything may have ended the first one


class File(NamedTuple):
    """What is made: clips [T,H,W,3], uint8, of one shape, `fps` frames a second; the rest is as for
    `raygen.video.encode`.
    """

    clips: Sequence[video.Clips]
    format: str
    fps: float
    labels: Sequence[str] = ()
    scale: int = 1
    digest: str = ""  # of the weights that a watermark names; "" for no mark

    def encode(self) -> bytes:
        """The file, made here and now."""
        clips_NTHWC = self.clips[0][None] if len(self.clips) == 1 else np.stack(self.clips)
        if self.digest and self.format not in ("npy", "png"):
            # One mark for the whole of a grid, where a detector looks for it.
            clips_NTHWC = watermark.mark(video.grid(clips_NTHWC), self.digest)[None]
        return video.encode(clips_NTHWC, self.format, self.fps, self.labels, self.scale)


class Encoders:
    """So many children, which all of this process's Encoders share."""

    def __init__(self, count: int) -> None:
        self._pool = _pool(count)
        self._batchers: list[Batcher[File, bytes | str]] = [
            Batcher(self._encode, TOGETHER) for _ in range(count)
        ]
        self._busy = [0] * count
        self.file_s = 0.0  # seconds that one takes, of late

    @property
    def wait_s(self) -> float:
        """Seconds that a file that came now would wait."""
        return min(self._busy) * self.file_s

    async def __call__(self, file: File) -> bytes:
        """The file. Raises RuntimeError where it fails, or no child stays alive over it."""
        least = self._busy.index(min(self._busy))
        self._busy[least] += 1
        try:
            made = await self._batchers[least](file)
        finally:
            self._busy[least] -= 1
        if isinstance(made, str):
            raise RuntimeError(f"cannot make {file.format}: {made}")
        return made

    def close(self) -> None:
        """Lets the threads go; nothing may be asked for afterwards. The children stay."""
        for batcher in self._batchers:
            batcher.close()

    def _encode(self, files: Sequence[File]) -> Iterator[tuple[int, bytes | str]]:
        child = self._pool.get()
        try:
            held: list[tuple[int, bytes | str]] = []
            since = before = time.monotonic()
            for place, made in enumerate(child.encode(files)):
                held.append((place, made))
                now = time.monotonic()
                self.file_s, before = lately(self.file_s, now - before), now
                if now - since >= HELD_S:
                    yield from held
                    held, since = [], now
            yield from held
        finally:
            self._pool.put(child)


def lately(before: float, new: float) -> float:
    """A mean that goes on: over about the last ten; the first is all that is known."""
    return before + 0.1 * (new - before) if before else new


@functools.cache
def _pool(count: int) -> queue.SimpleQueue[_Child]:
    pool: queue.SimpleQueue[_Child] = queue.SimpleQueue()
    for _ in range(count):
        child = _Child()
        atexit.register(child.end)
        pool.put(child)
    return pool


class _Child:
    """A child process, from the outside. One thread at a time."""

    def __init__(self) -> None:
        self._fd = os.memfd_create("raygen-clips")
        self._memory: mmap.mmap | None = None
        self._start()

    def encode(self, files: Sequence[File]) -> Iterator[bytes | str]:
        """Each file as it is made, or why it is not."""
        done, strikes = 0, 0
        while done < len(files):
            try:
                self._send(files[done:])
                while done < len(files):
                    made = pickle.loads(self._pipe.recv_bytes())
                    done, strikes = done + 1, 0
                    yield made
            except (EOFError, ConnectionError):
                code = self.end()
                self._start()
                strikes += 1
                if strikes == ATTEMPTS:
                    done, strikes = done + 1, 0
                    yield f"the encoder ended over it (exit code {code})"

    def _send(self, files: Sequence[File]) -> None:
        nbytes = sum(clip_THWC.nbytes for file in files for clip_THWC in file.clips)
        size = max(KEPT, nbytes)
        if self._memory is None or len(self._memory) != size:
            self._memory = None
            os.ftruncate(self._fd, size)
            self._memory = mmap.mmap(self._fd, size)
        at, told = 0, []
        for file in files:
            shape = (len(file.clips), *file.clips[0].shape)
            clips_NTHWC = np.frombuffer(self._memory, np.uint8, math.prod(shape), at)
            np.stack(file.clips, out=clips_NTHWC.reshape(shape))
            told.append((at, shape, file._replace(clips=())))
            at += clips_NTHWC.nbytes
        self._pipe.send_bytes(pickle.dumps((size, told)))

    def _start(self) -> None:
        ours, theirs = Pipe()
        # The child finds this package where this process did, and nothing by its working directory.
        paths = os.pathsep.join(path or os.getcwd() for path in sys.path)  # noqa: PTH109
        code = f"from serve.encoding import work; work({theirs.fileno()}, {self._fd})"
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", code],
            stdin=subprocess.DEVNULL,
            pass_fds=(theirs.fileno(), self._fd),
            env=os.environ | {"PYTHONPATH": paths, "OPENBLAS_NUM_THREADS": "1"},
        )
        theirs.close()
        self._pipe = ours

    def end(self) -> int:
        """Ends the process; its exit code."""
        self._pipe.close()
        self._process.kill()
        return self._process.wait()


def work(pipe_fd: int, memory_fd: int) -> None:
    """What a child does until its parent is gone."""
    # Ctrl-C goes to every process at the terminal; the parent decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    heap.keep()
    pipe = Connection(pipe_fd)
    memory: mmap.mmap | None = None
    while True:
        try:
            size, files = pickle.loads(pipe.recv_bytes())
        except (EOFError, ConnectionError):
            return
        if memory is None or len(memory) != size:
            memory = mmap.mmap(memory_fd, size)
        for at, shape, file in files:
            clips_NTHWC = np.frombuffer(memory, np.uint8, math.prod(shape), at).reshape(shape)
            made: bytes | str
            try:
                made = file._replace(clips=list(clips_NTHWC)).encode()
            except Exception as error:  # this file's alone
                made = f"{type(error).__name__}: {error}"
            pipe.send_bytes(pickle.dumps(made))
