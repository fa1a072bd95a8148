"""What counts the clips of a contestant of the data benchmark, and what they cost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import psutil
import ray
from ray.exceptions import RayError

from raygen import ray_session
from raygen.config import DataConfig
from raygen.data.catalog import Catalogue
from raygen.data.plan import Plan
from raygen.data.receiver import Receiver
from raygen.data.stream import Dealer, Feed
from tests.benchmarks import data_peers
from tests.benchmarks.data_peers import BATCH, Job

SEED = 0
START_S = 90.0


@dataclass(frozen=True)
class Timing:
    """Seconds: before the window, and of it."""

    warm_up: float
    window: float


@dataclass(frozen=True)
class Sample:
    """One window: clips a second, CPU milliseconds a clip."""

    rate: float
    cpu_ms: float


class NotAvailable(Exception):
    """Why a contestant takes no part."""


class Counted(Dealer):
    """A dealer that notes when each task ran, and how many clips came of it."""

    def __init__(self, catalogue: Catalogue, feed: Feed) -> None:
        super().__init__(catalogue, feed)
        self.began: dict[int, float] = {}
        self.ended: list[tuple[float, float, int]] = []

    async def start(self, first: int) -> set[int]:
        known = await super().start(first)
        self.began[first] = time.monotonic()
        return known

    async def decoded(self, first: int, good: list[int], refused: dict[int, str]) -> None:
        self.ended.append((self.began.pop(first), time.monotonic(), len(good)))
        await super().decoded(first, good, refused)

    async def pid(self) -> int:
        return os.getpid()

    async def made(self, begin: float, end: float) -> float | None:
        """Clips made between two moments, a task's evenly over its time; None: not all is known."""
        if any(began < end for began in self.began.values()):
            return None
        return sum(
            count * max(0.0, min(end, ended) - max(begin, began)) / (ended - began)
            for began, ended, count in self.ended
        )


@contextmanager
def peer_process(name: str, job: Job, folder: Path) -> Iterator[Callable[[], dict[int, int]]]:
    """Gives what counts the clips by worker process, once each has made one."""

    def tally() -> dict[int, int]:
        files = [path for path in tallies.iterdir() if path.stat().st_size]
        return {int(path.name): int(np.fromfile(path, np.int64)[0]) for path in files}

    tallies, spec, log = folder / "tally", folder / "job.json", folder / "log"
    tallies.mkdir()
    spec.write_text(json.dumps(asdict(replace(job, tally=str(tallies)))))
    command = [sys.executable, "-c", f"from {data_peers.__name__} import main; main()"]
    command += [name, str(spec)]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + START_S
        while sum(count > 0 for count in tally().values()) < job.workers:
            if process.poll() is not None or time.monotonic() > deadline:
                raise NotAvailable(last_words(log))
            time.sleep(0.1)
        try:
            yield tally
        except (psutil.NoSuchProcess, ZeroDivisionError):
            raise NotAvailable(last_words(log)) from None
    finally:
        end(process)


def last_words(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "made no clip"


def end(process: subprocess.Popen[bytes]) -> None:
    """Ends it and all that it has started, so that the next one has the machine for itself."""
    with suppress(psutil.NoSuchProcess):
        children = psutil.Process(process.pid).children(recursive=True)
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(10)
        for child in children:
            with suppress(psutil.NoSuchProcess):
                child.kill()
        psutil.wait_procs(children, 10)
    process.kill()
    process.wait()


@contextmanager
def local_ray() -> Iterator[None]:
    ray_session.join()
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def streaming(catalogue: Catalogue, config: DataConfig) -> Iterator[Receiver]:
    feed = Feed(Plan(len(catalogue), SEED), config, BATCH, 1, 0, {})
    with local_ray():
        dealer = ray.remote(num_cpus=0)(Counted).remote(catalogue, feed)
        dealer.open.remote()
        receiver = Receiver(dealer, 0, config.prefetch)
        try:
            yield receiver
        finally:
            ray.kill(dealer)
            # Its thread ends with this; one that went on would start another Ray.
            with suppress(RayError):
                for _ in receiver:
                    pass


def raygen(catalogue: Catalogue, config: DataConfig, timing: Timing) -> Sample:
    """raygen as it feeds a trainer that takes every batch at once."""
    with streaming(catalogue, config) as receiver:
        next(receiver)
        take(receiver, timing.warm_up)
        pids = decoding(receiver)
        begin, cpu_before = time.monotonic(), cpu_seconds(pids)
        take(receiver, timing.window)
        finish, cpu_after = time.monotonic(), cpu_seconds(pids)
        while (clips := ray.get(receiver.dealer.made.remote(begin, finish))) is None:
            next(receiver)
    return Sample(clips / (finish - begin), 1000 * (cpu_after - cpu_before) / clips)


def take(receiver: Receiver, seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        next(receiver)


def decoding(receiver: Receiver) -> list[int]:
    """The dealer's process and the decode actors'."""
    dealer = psutil.Process(ray.get(receiver.dealer.pid.remote()))
    workers = dealer.parent().children()
    return [dealer.pid] + [p.pid for p in workers if "MapBatches(_Decode)" in str(p.cmdline())]


def tree(pids: Iterable[int]) -> list[psutil.Process]:
    """These processes and all that they have started."""
    roots = [psutil.Process(pid) for pid in pids]
    return roots + [child for root in roots for child in root.children(recursive=True)]


def cpu_seconds(pids: Iterable[int]) -> float:
    return float(sum(times.user + times.system for times in (p.cpu_times() for p in tree(pids))))
