"""A process on a node that ends it when its lease is over, whoever has died meanwhile.

    python -m raygen.cost.watchdog LEASE_FILE --pid RAYLET [--command "sudo shutdown -h now"]
    python -m raygen.cost.watchdog LEASE_FILE --ttl 900 --command "sudo shutdown -h now"

LEASE_FILE holds the Unix time by which the node has to go; whoever renews the lease rewrites it,
and removes it to let the node be. Then the watchdog ends, as when the raylet is gone, unless
it has a `--ttl`: so many seconds a node lives while nobody leases it. It is started once a node: a
second one ends at once. The node's clock must be right to the second or so (NTP).
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

LOOK_EVERY_S = 0.25
TERM_S = 3.0  # between asking the raylet to end and ending it


def watch(lease: Path, pid: int | None, command: str, ttl_s: float | None) -> None:
    """Returns when the node was let go, or has been ended."""
    with lease.with_suffix(".lock").open("wb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        unleased_since: float | None = time.time() if not lease.exists() else None
        while pid is None or _alive(pid):
            now, until = time.time(), deadline(lease)
            if until is not None:
                unleased_since = None
            elif ttl_s is None:
                return
            else:
                unleased_since = now if unleased_since is None else unleased_since
                until = unleased_since + ttl_s
            if now >= until:
                _end(pid, command)
                return
            time.sleep(min(LOOK_EVERY_S, until - now))


def write_deadline(lease: Path, until: float) -> None:
    """Gives the node until then, Unix seconds."""
    fresh = lease.with_suffix(".new")
    fresh.write_text(repr(until))
    fresh.replace(lease)


def deadline(lease: Path) -> float | None:
    """What `write_deadline` wrote last; None where there is no lease."""
    try:
        return float(lease.read_text())
    except FileNotFoundError:
        return None


def start(lease: Path, pid: int) -> None:
    """Starts a watchdog that outlives this process, its parents and its session.

    RAYGEN_END_COMMAND of the node, as `sudo shutdown -h now`, ends the machine and not only Ray.
    """
    words = ["-m", "raygen.cost.watchdog", str(lease), "--pid", str(pid)]
    command = os.environ.get("RAYGEN_END_COMMAND", "")
    words += ["--command", command] if command else []
    # Ray ends the children of a worker with it: a shell in between, gone at once, makes it none.
    line = " ".join(shlex.quote(word) for word in [sys.executable, *words])
    subprocess.run(
        ["/bin/sh", "-c", f"{line} </dev/null >/dev/null 2>&1 &"],
        start_new_session=True,
        check=True,
    )


def _alive(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    # Ended, but nobody has asked for its exit status.
    return stat.rpartition(")")[2].split()[0] != "Z"


def _end(pid: int | None, command: str) -> None:
    if command:
        subprocess.run(command, shell=True, check=False)
    if pid is None:
        return
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
        deadline_at = time.monotonic() + TERM_S
        while _alive(pid) and time.monotonic() < deadline_at:
            time.sleep(0.05)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m raygen.cost.watchdog", description=__doc__)
    parser.add_argument("lease", type=Path)
    parser.add_argument("--pid", type=int, help="the raylet to end, and whose end ends this")
    parser.add_argument("--command", default="", help="run before the raylet is ended")
    parser.add_argument("--ttl", type=float, help="seconds that a node lives without a lease")
    given = parser.parse_args()
    if given.pid is None and not given.command:
        parser.error("give --pid or --command: nothing to end the node with")
    watch(given.lease, given.pid, given.command, given.ttl)


if __name__ == "__main__":
    main()
