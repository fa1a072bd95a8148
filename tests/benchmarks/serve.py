"""What serving costs beside generation itself: `python -m tests.benchmarks.serve`.

    raw        clips per CPU-second of the generator in one process, at its best batch
    raygen     serve.app, end to end over HTTP, at 1, 8 and 32 clients, npy and mp4
    litserve   LitServe with the same generator, drawing and encoder
    uvicorn    a plain FastAPI endpoint with the same, one clip at a time

CPU time is that of all processes that a request passes: the proxy (HAProxy where it is installed,
unless `--ingress python`) and the replica with its encoders. Ray's housekeeping, which runs
whether or not anybody asks, stands beside it. The servers have each load in turn, three times, of
which the middle one counts; who is not asked is stopped meanwhile. Raw drawing is measured before
and after, so that a machine that slows down does so for all. Clients are threads of this process,
with an address of its own each time: nothing is cached. The generator has learnt a few rendered
shapes (serve_fitted.py), for clips that compress as clips do, or is any export: `--export PATH`.
What encoding an mp4 takes beside drawing it is measured as well, and so how much of raw a server
of mp4 can reach at most.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import itertools
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

os.environ["RAY_AUTH_MODE"] = "disabled"
os.environ["OMP_NUM_THREADS"] = "1"

import psutil
import torch
from rich.console import Console
from rich.table import Table

from tests.benchmarks.serve_fitted import export_fitted
from tests.benchmarks.serve_peers import Source

console = Console()
CLIENTS = (1, 8, 32)
FORMATS = ("npy", "mp4")
SEEDS = itertools.count(1)
ROUNDS = 3  # of each load
START_S = 600.0  # a busy machine is slow, not broken
ROLES = ("ServeReplica", "ProxyActor", "haproxy")  # of processes, by their names
HAPROXY = {
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",
    "RAY_SERVE_HAPROXY_NBTHREAD": "1",
}


@dataclass(frozen=True)
class Load:
    """What one server took for the clips of one load."""

    clips: int
    wall_s: float
    cpu_s: float  # of what requests pass
    other_s: float  # CPU of everything else in the server's process tree
    batch: float  # clips drawn together, the mean over batches; 0: not said
    latency_ms: float  # the median

    @property
    def per_cpu_s(self) -> float:
        return self.clips / self.cpu_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="small", help="whose networks are served (small)")
    parser.add_argument("--fit", type=float, default=90.0, help="seconds that it learns for (90)")
    parser.add_argument("--export", help="a folder or s3:// prefix, served in its place")
    parser.add_argument("--clips", type=int, default=192, help="of each load (192)")
    parser.add_argument("--ingress", choices=("haproxy", "python"), help="raygen's")
    parser.add_argument("--servers", default="raygen,litserve,uvicorn", help="which are compared")
    parser.add_argument("--json", type=Path, help="where the figures go, as one flat object")
    arguments = parser.parse_args()
    ingress = arguments.ingress or ("haproxy" if shutil.which("haproxy") else "python")
    with tempfile.TemporaryDirectory() as folder:
        exported = arguments.export or export_fitted(arguments.preset, Path(folder), arguments.fit)
        servers = arguments.servers.split(",")
        figures = compare(exported, arguments.clips, ingress, servers)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


def compare(exported: str, clips: int, ingress: str, servers: list[str]) -> dict[str, float]:
    """The figures, which are printed as well."""
    torch.set_num_threads(1)
    source = Source(exported, "auto")
    drawing = str(source.drawer.drawing)
    console.print(f"drawn as {drawing}; raygen behind {ingress}")
    table = Table(
        *("server", "clients", "format", "clips/CPU s", "of raw", "of raw with encoding"),
        *("clips/s", "batch", "ms a request", "housekeeping"),
    )
    loads: dict[tuple[str, int, str], Load] = {}  # of the middle round
    over: dict[tuple[str, int, str], float] = {}
    raws: list[float] = []
    mp4s: list[float] = []
    alone: dict[str, float] = {}  # the same by one clip at a time, for the lone client's format
    with contextlib.ExitStack() as stack:
        there = {}
        for server in servers:
            there[server] = stack.enter_context(running(server, exported, drawing, ingress))
            _signal(there[server][0], signal.SIGSTOP)
        for clients, format in itertools.product(CLIENTS, FORMATS):
            count = min(clips, 48) if clients == 1 else clips
            rounds: dict[str, list[tuple[Load, float]]] = defaultdict(list)
            for _, server in itertools.product(range(ROUNDS), servers):
                process, port = there[server]
                before_s = raw_s(source, 8, 4)
                _signal(process, signal.SIGCONT)
                load = measured(process, port, server, clients, format, count)
                _signal(process, signal.SIGSTOP)
                rounds[server].append((load, (before_s + raw_s(source, 8, 4)) / 2))
            if clients == 1:
                alone[format] = raw_s(source, 1, 16)
            file_s = encoding_s(source, format)
            if format == "mp4":
                mp4s.append(file_s)
            for server in servers:
                # The middle one: a machine has its moments.
                ordered = sorted(rounds[server], key=lambda pair: pair[0].per_cpu_s * pair[1])
                load, clip_s = ordered[ROUNDS // 2]
                loads[server, clients, format] = load
                raws.append(clip_s)
                over[server, clients, format] = load.per_cpu_s * clip_s
                console.print(
                    f"{server}, {clients} clients, {format}: {load.per_cpu_s * clip_s:.3f}"
                )
                encoded = load.per_cpu_s * (clip_s + file_s)
                table.add_row(
                    *(server, str(clients), format, f"{load.per_cpu_s:.1f}"),
                    *(f"{load.per_cpu_s * clip_s:.3f}", f"{encoded:.3f}"),
                    *(f"{load.clips / load.wall_s:.1f}", f"{load.batch:.2f}"),
                    *(f"{load.latency_ms:.1f}", f"{load.other_s / load.wall_s:.1%} of a CPU"),
                )
    console.print(table)
    raw, mp4 = statistics.median(raws), statistics.median(mp4s)
    console.print(
        f"raw: {1 / raw:.1f} clips per CPU-second in batches of 8, {1000 * raw:.1f} ms each; "
        f"an mp4 takes {1000 * mp4:.1f} ms more: no server of them could have more than "
        f"{raw / (raw + mp4):.3f} of raw"
    )
    figures = {
        "raw_clips_per_cpu_s": 1 / raw,
        "encoding_ms_mp4": 1000 * mp4,
        "most_over_raw_mp4": raw / (raw + mp4),
    }
    if "raygen" in servers:
        for clients, format in itertools.product((8, 32), FORMATS):
            name = f"clips_per_cpu_s_over_raw_{format}_{clients}"
            figures[name] = over["raygen", clients, format]
        figures["mean_batch_32"] = loads["raygen", 32, "npy"].batch
        lone = loads["raygen", 1, "npy"]
        figures["overhead_ms_1"] = 1000 * (lone.cpu_s / lone.clips - alone["npy"])
        for peer, clients in itertools.product(servers[1:], (8, 32)):
            # By whichever format is the worse.
            figures[f"over_{peer}_{clients}"] = min(
                over["raygen", clients, f] / over[peer, clients, f] for f in FORMATS
            )
    return figures


def _signal(process: psutil.Process, number: signal.Signals) -> None:
    """To a server and all that it has started."""
    for each in [process, *process.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            each.send_signal(number)


def raw_s(source: Source, batch: int, times: int) -> float:
    """CPU seconds a clip, drawn so many at once."""
    source.draw(list(range(batch)))
    start = time.thread_time()
    for turn in range(times):
        source.draw(list(range(turn, turn + batch)))
    return (time.thread_time() - start) / (times * batch)


def encoding_s(source: Source, format: str) -> float:
    """CPU seconds of a file."""
    clips = source.draw(list(range(16)))
    source.encode(clips[0], format)
    start = time.thread_time()
    for clip_THWC in clips:
        source.encode(clip_THWC, format)
    return (time.thread_time() - start) / len(clips)


@contextlib.contextmanager
def running(
    server: str, exported: str, drawing: str, ingress: str
) -> Iterator[tuple[psutil.Process, int]]:
    """One of the servers, once it answers, and its port on loopback."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    command = [sys.executable, "-m", "tests.benchmarks.serve_peers"]
    environment = os.environ | (HAPROXY if (server, ingress) == ("raygen", "haproxy") else {})
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [*command, server, exported, str(port), drawing],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            env=environment,
        )
        try:
            deadline = time.monotonic() + START_S
            while not _answers(server, port):
                if process.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    sys.exit(f"{server} did not start:\n{log.read().decode()[-3000:]}")
                time.sleep(0.5)
            yield psutil.Process(process.pid), port
        finally:
            if process.poll() is None:
                _signal(psutil.Process(process.pid), signal.SIGCONT)
            process.communicate()  # its stdin ends, and so does it


def measured(
    process: psutil.Process, port: int, server: str, clients: int, format: str, clips: int
) -> Load:
    """So many clips, asked for by so many clients at once, each waiting for its own."""
    ask(server, port, clients, format, 2 * clients, SEEDS)
    before = cpu_of(process, server)
    start = time.monotonic()
    answers = ask(server, port, clients, format, clips, SEEDS)
    wall_s = time.monotonic() - start
    after = cpu_of(process, server)
    cpu_s, other_s = (after[part] - before[part] for part in range(2))
    batches = [batch for _, batch in answers if batch]
    mean = len(batches) / sum(1 / batch for batch in batches) if batches else 0.0
    latency_ms = 1000 * statistics.median(seconds for seconds, _ in answers)
    return Load(len(answers), wall_s, cpu_s, other_s, mean, latency_ms)


def ask(
    server: str, port: int, clients: int, format: str, clips: int, seeds: Iterator[int]
) -> list[tuple[float, int]]:
    """Seconds of each request, and the batch that its clip was drawn in."""
    answers: list[tuple[float, int]] = []
    wanted, failed = iter(range(clips)), threading.Event()
    lock = threading.Lock()
    digest = _digest(port) if server == "raygen" else ""

    def client() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
        while not failed.is_set():
            with lock:
                if next(wanted, None) is None:
                    break
                seed = next(seeds)
            start = time.monotonic()
            if digest:
                path = f"/v1/models/{digest}/clips/{seed}?format={format}"
                connection.request("GET", path)
            else:
                _predict(connection, seed, format)
            answer = connection.getresponse()
            body = answer.read()
            if answer.status != 200:
                failed.set()
                console.print(f"{server}: {answer.status} {body[:300]!r}")
            batch = int(answer.headers.get("X-Raygen-Batch", 0))
            answers.append((time.monotonic() - start, batch))
        connection.close()

    threads = [threading.Thread(target=client) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed.is_set():
        sys.exit(1)
    return answers


def cpu_of(process: psutil.Process, server: str) -> tuple[float, float]:
    """CPU seconds of what requests pass, and of the rest of the tree."""
    seconds: dict[str, float] = {"": 0.0}
    roles: dict[int, str] = {}  # of processes; what one of them starts, as its encoders, has its
    for each in [process, *process.children(recursive=True)]:  # parents come first
        try:
            times, words, parent = each.cpu_times(), each.cmdline(), each.ppid()
        except psutil.NoSuchProcess:
            continue
        name = Path(words[0]).name if words else ""
        role = next((role for role in ROLES if role in name), roles.get(parent, ""))
        roles[each.pid] = role
        seconds[role] = seconds.get(role, 0.0) + times.user + times.system
    total = sum(seconds.values())
    if server != "raygen":
        return total, 0.0
    # HAProxy asks replicas itself; Ray's own proxy then waits for what no replica answers.
    proxy = "haproxy" if "haproxy" in seconds else "ProxyActor"
    passed = seconds.get("ServeReplica", 0.0) + seconds.get(proxy, 0.0)
    return passed, total - passed


def _answers(server: str, port: int) -> bool:
    try:
        if server == "raygen":
            return bool(_digest(port))
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        _predict(connection, 0, "npy")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException, ValueError):
        return False


def _predict(connection: http.client.HTTPConnection, seed: int, format: str) -> None:
    """Asks a peer, as both of them would have it."""
    body = json.dumps({"seed": seed, "format": format})
    headers = {"Content-Type": "application/json"}
    connection.request("POST", f"/predict?seed={seed}&format={format}", body, headers)


def _digest(port: int) -> str:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", "/v1/models/best")
    answer = connection.getresponse()
    if answer.status != 200:
        raise ConnectionError(f"{answer.status}: not yet there")
    return str(json.loads(answer.read())["digest"])


if __name__ == "__main__":
    main()
