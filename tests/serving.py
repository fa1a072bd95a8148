"""A real `serve run CONFIG` in a process of its own: serve/config.yaml and what is said here.

    with serving(folder, {"export": export}, {"num_replicas": 2}) as there:
        there.url, there.replicas()

It starts a Ray of its own on loopback, and ends it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import httpx
import psutil
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
START_S = 900.0  # a busy machine is slow, not broken
NOTHING: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True)
class Serving:
    """A server that answers."""

    url: str
    process: psutil.Process

    def processes(self) -> list[psutil.Process]:
        """The whole tree."""
        return [self.process, *self.process.children(recursive=True)]

    def replicas(self) -> list[psutil.Process]:
        """What draws."""
        return [each for each in self.processes() if "ServeReplica" in _name(each)]

    def digest(self) -> str:
        """Of what is best: clips under it need no redirect."""
        return str(httpx.get(f"{self.url}/v1/models/best", timeout=120).json()["digest"])


def _name(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""


@contextlib.contextmanager
def serving(
    folder: Path,
    arguments: Mapping[str, Any],
    deployment: Mapping[str, Any] = NOTHING,
    http: Mapping[str, Any] = NOTHING,
    environment: Mapping[str, str] = NOTHING,
) -> Iterator[Serving]:
    """serve/config.yaml with these arguments and options of the deployment; None takes one out."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    document = yaml.safe_load((ROOT / "serve/config.yaml").read_text())
    document["http_options"] |= {"port": port, **http}
    application = document["applications"][0]
    application["args"] |= {"drawing": "plain", "videos": str(folder / "videos"), **arguments}
    options = application["deployments"][0] | dict(deployment)
    if "num_replicas" in options:
        del options["autoscaling_config"]
    application["deployments"] = [{k: v for k, v in options.items() if v is not None}]
    config = folder / "config.yaml"
    config.write_text(yaml.safe_dump(document))
    variables = {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
        "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "serve.edge:edge",
        "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "300",
    }
    log = folder / "serve.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [str(Path(sys.executable).with_name("serve")), "run", str(config)],
            cwd=ROOT,
            stdout=output,
            stderr=output,
            env={**os.environ, **variables, **environment},
        )
    there = Serving(f"http://127.0.0.1:{port}", psutil.Process(process.pid))
    try:
        patience = time.monotonic() + START_S
        while not _answers(there.url):
            assert process.poll() is None, log.read_text()[-5000:]
            assert time.monotonic() < patience, log.read_text()[-5000:]
            time.sleep(0.5)
        yield there
    finally:
        tree = there.processes()
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(120)
        for each in tree:  # what it left
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()
        process.wait(60)


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/v1/models", timeout=60).status_code == 200
    except httpx.TransportError:
        return False


@dataclass(frozen=True)
class Answer:
    """What a caller got, and when."""

    at: float  # seconds of time.monotonic, when it was asked
    seconds: float
    status: int  # 0: the connection broke
    headers: Mapping[str, str]
    content: bytes


Ask = Callable[[httpx.Client, int], httpx.Response]
"""How a caller asks for its so manyeth."""


def clips(path: str, seeds: int) -> Ask:
    """Asks for the clips of these seeds in turn, under `path` with {} for the seed."""
    return lambda http, number: http.get(path.format(number % seeds))


@contextlib.contextmanager
def asking(url: str, clients: int, ask: Ask, keep: bool = True) -> Iterator[list[Answer]]:
    """So many clients, each asking for 0, 1, ... of its own share, until it ends.

    A caller that gets no answer for two minutes fails the test. Unless `keep`, contents are not
    kept.
    """
    stop, answers, failures = threading.Event(), [], []

    def client(first: int) -> None:
        number = first
        with httpx.Client(base_url=url, timeout=120, follow_redirects=True) as http:
            while not stop.is_set():
                at = time.monotonic()
                try:
                    got = ask(http, number)
                    what = (got.status_code, dict(got.headers), got.content if keep else b"")
                except httpx.TimeoutException as error:
                    failures.append(error)
                    return
                except httpx.TransportError:
                    what = (0, {}, b"")
                answers.append(Answer(at, time.monotonic() - at, *what))
                number += clients

    threads = [threading.Thread(target=client, args=(first,)) for first in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield answers
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    if failures:
        pytest.fail(f"{len(failures)} callers got no answer: {failures[0]!r}")


def flood(url: str, path: str, per_s: float, seconds: float) -> list[Answer]:
    """What a clip of each seed, asked for so often whatever is answered meanwhile, gets.

    Times count from when a request was due. One without an answer for two minutes fails the test.
    """

    async def one(http: httpx.AsyncClient, seed: int, due: float) -> Answer:
        await asyncio.sleep(due - time.monotonic())
        try:
            got = await http.get(path.format(seed))
        except httpx.TimeoutException:
            raise
        except httpx.TransportError:
            return Answer(due, time.monotonic() - due, 0, {}, b"")
        return Answer(due, time.monotonic() - due, got.status_code, dict(got.headers), got.content)

    async def every() -> list[Answer]:
        start, limits = time.monotonic(), httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=url, timeout=120, limits=limits) as http:
            count = round(per_s * seconds)
            return await asyncio.gather(*(one(http, k, start + k / per_s) for k in range(count)))

    return asyncio.run(every())


def is_refusal(answer: Answer) -> bool:
    """A problem document that says when to ask again."""
    kind = answer.headers.get("content-type")
    return (
        answer.status == 503
        and kind == "application/problem+json"
        and int(answer.headers["retry-after"]) > 0
    )


@dataclass(frozen=True)
class Sample:
    """What a process holds at a moment."""

    at: float  # seconds of time.monotonic
    mib: float  # resident
    files: int  # descriptors


@contextlib.contextmanager
def watching(process: psutil.Process) -> Iterator[list[Sample]]:
    """Samples of it, one a second, until it ends."""
    stop, samples = threading.Event(), []

    def watch() -> None:
        while not stop.wait(1.0):
            mib = process.memory_info().rss / (1 << 20)
            samples.append(Sample(time.monotonic(), mib, process.num_fds()))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield samples
    finally:
        stop.set()
        thread.join()


def until(true: Callable[[], object], seconds: float = 120.0) -> None:
    """Waits for it; fails after so many seconds."""
    patience = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < patience
        time.sleep(0.1)
