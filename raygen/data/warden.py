"""Jobs done in a child process, so that no video can take the parent with it.

    warden = Warden("raygen.data.sandbox_child", settings, memory_mb=2048, seconds=30.0)
    made = warden.see_through(len(jobs), refused, lambda indices: [jobs[i] for i in indices])

A video that crashes FFmpeg, hangs it or bloats it costs a child, never the caller. The child notes
in shared memory when it takes up a job, when it has its bytes and when it is through
(raygen.data.ward is its side), so the job to blame is known, and a new child goes on with the
rest. Of several jobs that were under way each is done again alone. A child is a fresh interpreter,
not a fork of a process that runs threads.
"""

from __future__ import annotations

import json
import mmap
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raygen.errors import AccessError, RaygenError

# A child that a signal ended may have been anyone's victim: its job gets a second chance.
STRIKES = 2
# Children in a row that end before they take up a job.
FALSE_STARTS = 3
START_SECONDS = 60.0
# Storage has time-outs of its own; this is for what escapes them.
FETCH_SECONDS = 300.0
# Of one job, however often it fetches: for what reads its video over and over.
WHOLE_SECONDS = 3600.0
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
"""When a job was taken up or last asked for bytes, had them, was through: time.monotonic() seconds;
0: not yet."""


def table_bytes(jobs: int) -> int:
    """Bytes at the start of the shared memory that the progress of `jobs` takes: whole pages."""
    return -(-jobs * PROGRESS.itemsize // mmap.PAGESIZE) * mmap.PAGESIZE


def progress_table(fd: int, jobs: int) -> NDArray[np.void]:
    """The shared memory `fd`, grown where it is too small, as a row of PROGRESS for each job."""
    size = table_bytes(max(1, jobs))
    if os.fstat(fd).st_size < size:
        os.ftruncate(fd, size)
    return np.frombuffer(mmap.mmap(fd, size), PROGRESS, jobs)


@dataclass(frozen=True)
class _Child:
    process: subprocess.Popen[bytes]
    pipe: Connection


@dataclass(frozen=True)
class _Loss:
    """Why a child is gone, the jobs of which one did it, and whether it was surely that one."""

    reason: str
    suspects: list[int]
    certain: bool


class Warden:
    """Keeps one child at work. One caller at a time; the child starts with the first job.

    module: what the child runs, with two descriptors, its pipe and the shared memory `fd`, and
    `settings` as JSON. memory_mb, seconds: the limits by which it is judged, those of data.limits.
    restarts: how many children had to be replaced. progress: of the last call's jobs.
    """

    def __init__(
        self, module: str, settings: Mapping[str, object], *, memory_mb: int, seconds: float
    ) -> None:
        self.restarts = 0
        self.fd = os.memfd_create("raygen-jobs")
        self.progress = progress_table(self.fd, 0)
        self._module, self._settings = module, json.dumps(settings)
        self._memory_mb, self._seconds = memory_mb, seconds
        self._child: _Child | None = None
        self._stopped = False

    @property
    def pid(self) -> int | None:
        """The child's process id, None where none runs."""
        return self._child.process.pid if self._child else None

    def see_through(
        self, jobs: int, refused: dict[int, str], work: Callable[[list[int]], object]
    ) -> dict[int, Any]:
        """Child after child, until each job is done or in `refused`, to which reasons are added.

        `work` makes what the child is sent of the numbers of the jobs that are left for it. Returns
        what it answered, by number. Raises AccessError where the storage as a whole is out of
        reach, RaygenError where no child can be started.
        """
        if jobs > len(self.progress):
            self.progress = progress_table(self.fd, jobs)
        self.progress[:jobs] = 0
        try:
            return self._see_through(jobs, refused, work)
        except BaseException:
            # Whatever the child is at belongs to this call.
            self._kill()
            raise

    def stop(self) -> None:
        """Ends, from another thread, a call that is under way: it raises CancelledError."""
        self._stopped = True
        if child := self._child:
            child.process.kill()

    def close(self) -> None:
        """Ends the child; the warden is of no use afterwards."""
        self._kill()
        os.close(self.fd)

    def _see_through(
        self, jobs: int, refused: dict[int, str], work: Callable[[list[int]], object]
    ) -> dict[int, Any]:
        made: dict[int, Any] = {}
        strikes: Counter[int] = Counter()
        false_starts = 0
        while pending := [
            index
            for index in range(jobs)
            if index not in refused and index not in made and not self.progress["done"][index]
        ]:
            struck = [index for index in pending if strikes[index]]
            turn = struck[:1] or pending
            if self._stopped:
                raise CancelledError
            loss = self._attempt(turn, work(turn), refused, made)
            if loss is None:
                continue
            self.restarts += 1
            if not loss.suspects:
                false_starts += 1
                if false_starts == FALSE_STARTS:
                    raise RaygenError(
                        f"{FALSE_STARTS} decoder processes in a row ended before they took up a "
                        f"clip (the last one {loss.reason}); see what they printed, and whether "
                        "this machine has memory and processes to spare"
                    )
                continue
            false_starts = 0
            strikes.update(loss.suspects)
            for index in loss.suspects:
                if loss.certain or strikes[index] == STRIKES:
                    refused[index] = loss.reason
            self.progress[[index for index in self._under_way(turn) if index not in refused]] = 0
        return made

    def _attempt(
        self, turn: Sequence[int], work: object, refused: dict[int, str], made: dict[int, Any]
    ) -> _Loss | None:
        """Has one child do `work`, as far as it gets; None where it got through."""
        child = self._child = self._child or self._start()
        sent = time.monotonic()
        first_seen: dict[int, float] = {}

        def current() -> list[int]:
            under_way = self._under_way(turn)
            return [index for index in under_way if index not in refused and index not in made]

        try:
            child.pipe.send(work)
            while True:
                now, at = time.monotonic(), current()
                first_seen = {index: first_seen.get(index, now) for index in at}
                patience, loss = self._patience(now, first_seen, sent)
                if patience <= 0:
                    self._kill()
                    return loss
                # What begins while this waits is not overdue before one of the limits has passed.
                if not child.pipe.poll(min(patience, self._seconds, FETCH_SECONDS)):
                    continue
                match child.pipe.recv():
                    case ("made", int(index), answer):
                        made[index] = answer
                    case ("refused", int(index), str(reason)):
                        refused[index] = reason
                    case ("access", str(message), str(uri)):
                        raise AccessError(message, uri)
                    case _:
                        return None
        except (EOFError, ConnectionError):
            code = child.process.wait()
            self._kill()
            return _Loss(self._death(code), current(), certain=False)

    def _under_way(self, turn: Sequence[int]) -> list[int]:
        """The jobs that the child has taken up and is not through with."""
        rows = self.progress[list(turn)]
        found = np.flatnonzero((rows["begun"] > 0) & (rows["done"] == 0))
        return [turn[index] for index in found.tolist()]

    def _patience(
        self, now: float, first_seen: Mapping[int, float], sent: float
    ) -> tuple[float, _Loss]:
        """Seconds until the first of the jobs is overdue, and what to say after them."""
        if not first_seen:
            reason = f"hung for {START_SECONDS:g} s"
            return sent + START_SECONDS - now, _Loss(reason, [], certain=False)
        # What alone is under way is to blame; others may wait for what one of them holds.
        certain = len(first_seen) == 1
        left = []
        for index, seen in first_seen.items():
            begun, fetched, _ = self.progress[index].tolist()
            end, reason = begun + FETCH_SECONDS, f"took more than {FETCH_SECONDS:g} s to fetch"
            if fetched:
                end = fetched + self._seconds
                reason = f"took more than {self._seconds:g} s to decode (data.limits.seconds)"
            if seen + WHOLE_SECONDS < end:
                end, reason = seen + WHOLE_SECONDS, f"took more than {WHOLE_SECONDS:g} s in all"
            left.append((end - now, _Loss(reason, [index], certain)))
        return min(left, key=lambda each: each[0])

    def _death(self, code: int) -> str:
        if code == OUT_OF_MEMORY:
            return f"needs more than {self._memory_mb} MB to decode (data.limits.memory_mb)"
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return f"crashed the decoder ({how})"

    def _start(self) -> _Child:
        ours, theirs = Pipe()
        # The child finds raygen where this process did, and nothing by its working directory.
        paths = os.pathsep.join(path or os.getcwd() for path in sys.path)  # noqa: PTH109
        arguments = [str(theirs.fileno()), str(self.fd), self._settings]
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", self._module, *arguments],
            stdin=subprocess.DEVNULL,
            pass_fds=(theirs.fileno(), self.fd),
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
