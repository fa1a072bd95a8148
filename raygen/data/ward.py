"""A Warden's child, from within: what it is told, what it answers, and the memory that it may take.

    if __name__ == "__main__":
        ward.serve(lambda settings, fd, pipe: Child(Settings(**settings), fd, pipe).work)

Imports no more than that needs: a child starts as fast as its imports.
"""

from __future__ import annotations

import json
import os
import queue
import resource
import signal
import sys
import threading
from collections.abc import Callable
from errno import ENOMEM
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from raygen.data.warden import OUT_OF_MEMORY
from raygen.errors import DataError, ObjectChanged, StorageError

# Address space for fetching, beyond the videos' own: threads, connections, the client's tables.
FETCHING_BYTES = 128 << 20


def serve(begin: Callable[[dict[str, Any], int, Connection], Callable[[Any], None]]) -> None:
    """`python -m MODULE PIPE FD SETTINGS`: two inherited descriptors, JSON; ends with the parent.

    `begin` makes of settings, shared memory and pipe what is called with all that the parent
    sends; its MemoryError ends this process in a way that the parent understands.
    """
    # Ctrl-C goes to every process at the terminal; the parent decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    pipe, fd = Connection(int(sys.argv[1])), int(sys.argv[2])
    work = begin(json.loads(sys.argv[3]), fd, pipe)
    inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(pipe, inbox), daemon=True).start()
    try:
        while True:
            work(inbox.get())
    except MemoryError:
        os._exit(OUT_OF_MEMORY)


def _receive(pipe: Connection, inbox: queue.SimpleQueue[Any]) -> None:
    """Puts what the parent sends into `inbox`, and ends this process when the parent is gone.

    The kernel's signal for that (PR_SET_PDEATHSIG) comes at the end of the thread that started
    this process, which may be long before its parent's.
    """
    try:
        while True:
            inbox.put(pipe.recv())
    finally:
        os._exit(0)


class Memory:
    """The address space that decoding may take: `decoding` bytes beyond what this process needs."""

    def __init__(self, decoding: int) -> None:
        self._decoding = decoding
        self._needed = self._limit = _address_space()

    def load(self, imports: Callable[[], object]) -> None:
        """Runs `imports`; what they take is needed, and counts towards no limit."""
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
        before = _address_space()
        imports()
        self._needed += _address_space() - before

    def limit(self, held: int) -> None:
        """Gives decoding its share, and `held` bytes to all that is kept beside it."""
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        self._limit = self._needed + held + self._decoding
        if hard != resource.RLIM_INFINITY:
            self._limit = min(self._limit, hard)
        resource.setrlimit(resource.RLIMIT_AS, (self._limit, hard))

    def ran_out(self, error: Exception) -> bool:
        """Whether there was no memory to be had, behind whatever `error` says.

        FFmpeg's decoders call a frame that they found no room for invalid data: then there was less
        left than a frame takes. It may have been an earlier video that took so much: this one gets
        a second chance, in a process of its own.
        """
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, MemoryError) or getattr(cause, "errno", None) == ENOMEM:
                return True
            cause = cause.__context__
        if isinstance(error, StorageError):
            return False
        wanted = max(self._decoding // 2, getattr(error, "frame_bytes", 0))
        return _address_space("VmPeak") > self._limit - wanted


def reason(error: Exception) -> str:
    """What is said of a video over which `error` was raised."""
    if isinstance(error, DataError | StorageError):
        return str(error)
    return f"fails in the decoder ({type(error).__name__}: {' '.join(str(error).split())})"


def local_file(uri: str, etag: str) -> str:
    """The path, for FFmpeg to open. Raises StorageError, ObjectChanged where the etag differs."""
    try:
        # pathlib's costs 20 us more, each time, in caches that decoding has emptied.
        stat = os.stat(uri)  # noqa: PTH116
    except OSError as error:
        raise StorageError(f"cannot read {uri}: {error.strerror}", uri) from None
    if f"{stat.st_mtime_ns:x}-{stat.st_size:x}" != etag:
        raise ObjectChanged(
            f"{uri} was replaced since it was scanned; run `raygen data scan` again", uri
        )
    return uri


def _address_space(field: str = "VmSize") -> int:
    """Bytes of address space that this process takes, or at the most took (VmPeak)."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition(f"{field}:")[2].split()[0]) << 10
