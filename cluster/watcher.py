"""On each node: drains it when its cloud takes it back, and ends it when it outlives its head.

    eval "$(python -m cluster.watcher --labels)"       # before `ray start`: what the node is
    python -m cluster.watcher HEAD:6379 --ttl 600 --command "sudo shutdown -h now" &   # beside it
    python -m cluster.watcher HEAD:6379 --drain 50     # a pod's preStop hook: drain, and wait

A notice (see cluster.notices) becomes Ray's drain with the reason preemption and the deadline, on
which a training saves and leaves. With `--grace` SIGTERM is such a notice, with `--tenure` the age
of a node that was meant to be spot and is not, by its cloud, so that spot is asked for again.

With `--ttl` and `--command` a watchdog (raygen.cost.watchdog) ends the machine once the head has
not said for so many seconds that this node is one of its own: the head is gone, the network to it,
or Ray on this machine. The watchdog is a process of its own, and needs neither Ray nor this one.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cluster.notices import Metadata, Notice
from raygen.cost import watchdog
from raygen.cost.node import (
    LABEL_MARKET,
    LABEL_TYPE,
    LABEL_ZONE,
    Identity,
    ask_metadata,
    metadata_endpoint,
)
from raygen.cost.spot import region

LABEL_REGION = "ray.io/availability-region"
OVERRIDE = (
    "RAY_OVERRIDE_LABELS"  # what the autoscaler believes of a node type; Ray believes it last
)
POLL_S = 2.0
RENEW_S = 10.0
ASK_S = 10.0  # for the head to answer
LEAVE_S = 120.0  # for a node at the end of its tenure
SPARED_S = 3.0  # between a drain's end and the machine's: for what leaves last


def labels(identity: Identity, environment: Mapping[str, str]) -> dict[str, str]:
    """Environment variables by which `ray start` gives a node the labels that are true.

    Those that the autoscaler hands down are kept where the metadata says nothing else.
    """
    true = {
        LABEL_MARKET: identity.market,
        LABEL_ZONE: identity.zone,
        LABEL_REGION: region(identity.zone),
        LABEL_TYPE[0]: identity.type,
    }
    believed = json.loads(environment.get(OVERRIDE) or "{}")
    return {
        "RAY_NODE_MARKET_TYPE": identity.market,
        "RAY_NODE_ZONE": identity.zone,
        "RAY_NODE_REGION": region(identity.zone),
        OVERRIDE: json.dumps({**believed, **{key: value for key, value in true.items() if value}}),
    }


def local_nodes() -> list[str]:
    """Ray's ids of the nodes that this machine is, in whatever cluster."""
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            words = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:  # it has ended
            continue
        if Path(words[0]).name == "raylet":
            found += [w.partition("=")[2] for w in words if w.startswith("--node_id=")]
    return found


class Head:
    """The cluster's head, at HOST:PORT, to this machine's nodes.

    `node` is Ray's id of the only one that is meant, here or on another machine.
    Its methods raise what Ray raises where the head does not answer (an Exception of no one kind).
    """

    def __init__(self, gcs: str, node: str = "") -> None:
        self._gcs, self._node = gcs, node
        self._client: Any = None

    def alive(self) -> list[str]:
        """Nodes of the machine that the head counts as its own."""
        from ray.core.generated.gcs_pb2 import GcsNodeInfo  # type: ignore[import-not-found,unused-ignore]

        found = self._ask().get_all_node_info(
            timeout=ASK_S, state_filter=GcsNodeInfo.GcsNodeState.ALIVE
        )
        there = {info.node_id.hex() for info in found.values()}
        mine = [self._node] if self._node else local_nodes()
        return [node for node in mine if node in there]

    def drain(self, notice: Notice) -> list[str]:
        """Drains them by the notice's deadline; returns those that are told."""
        from ray.core.generated import autoscaler_pb2  # type: ignore[import-not-found,unused-ignore]

        reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
        told = []
        for node in self.alive():
            deadline = int(max(notice.until, time.time() + 1) * 1000)
            accepted, why = self._ask().drain_node(node, reason, notice.kind, deadline)
            if accepted:
                told.append(node)
            else:
                _say(f"{node[:8]} is not drained: {why}")
        return told

    def _ask(self) -> Any:
        if self._client is None:
            from ray._raylet import GcsClient  # type: ignore[attr-defined,unused-ignore]

            self._client = GcsClient(address=self._gcs)
        return self._client


class Watcher:
    """Hears notices, and drains the nodes of this machine for each, once."""

    def __init__(self, head: Head, sources: Sequence[Any]) -> None:
        self._head, self._sources = head, sources
        self._told: dict[str, float] = {}

    def turn(self) -> None:
        """Asks every source (an object with `notices`), and drains where one has news."""
        for source in self._sources:
            try:
                heard = source.notices()
            except (OSError, ValueError, KeyError) as error:
                _say(f"the metadata service: {error}")
                continue
            for notice in heard:
                # The second of two notices counts where it leaves less time.
                if notice.until < min(self._told.values(), default=float("inf")):
                    self._drain(notice)

    def _drain(self, notice: Notice) -> None:
        try:
            told = self._head.drain(notice)
        except Exception as error:  # Ray's, of no one kind: the next turn asks again
            _say(f"the head does not answer: {_line(error)}")
            return
        if told:
            self._told[notice.kind] = notice.until
            names = ", ".join(node[:8] for node in told)
            _say(f"{notice.kind}: {names} to be left within {notice.until - time.time():.0f} s")


class Signals:
    """SIGTERM as a notice of `grace` seconds; from the main thread."""

    def __init__(self, grace: float) -> None:
        self._grace, self._heard = grace, 0.0
        signal.signal(signal.SIGTERM, self._hear)

    def notices(self) -> list[Notice]:
        """One, once SIGTERM came."""
        return [Notice("eviction", self._heard + self._grace)] if self._heard else []

    def _hear(self, number: int, frame: object) -> None:
        self._heard = self._heard or time.time()


class Tenure:
    """The end of a node's time as a stand-in for spot: what it is, and how long it stays."""

    def __init__(self, identity: Identity, tenure_s: float) -> None:
        self._standing_in = identity.market == "on-demand"
        self._since = identity.launched or time.time()
        self._tenure_s, self._until = tenure_s, 0.0

    def notices(self) -> list[Notice]:
        """One, when it is over."""
        over = time.time() - self._since >= self._tenure_s
        if not self._standing_in or not over:
            return []
        self._until = self._until or time.time() + LEAVE_S
        return [Notice("tenure", self._until)]


def renew(head: Head, lease: Path, ttl_s: float, ended: threading.Event) -> None:
    """Gives this machine `ttl_s` more whenever the head says that it is its own; until `ended`."""
    while not ended.is_set():
        # Whatever it is that Ray raises: nothing was said, so nothing is renewed.
        with contextlib.suppress(Exception):
            if head.alive():
                watchdog.write_deadline(lease, time.time() + ttl_s)
        ended.wait(min(RENEW_S, ttl_s / 4))


def start_watchdog(lease: Path, ttl_s: float, command: str) -> None:
    """Starts the process that ends the machine by `command` when its lease is over."""
    watchdog.write_deadline(lease, time.time() + ttl_s)
    words = [sys.executable, "-m", "raygen.cost.watchdog", str(lease), "--ttl", str(ttl_s)]
    subprocess.Popen(
        [*words, "--command", command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def watch(head: Head, sources: Sequence[Any]) -> None:
    """For ever; returns once SIGTERM was given its time."""
    watcher = Watcher(head, sources)
    signals = next((each for each in sources if isinstance(each, Signals)), None)
    while True:
        watcher.turn()
        ending = signals.notices() if signals else []
        if ending and time.time() >= ending[0].until - SPARED_S:
            return
        time.sleep(POLL_S)


def drain(head: Head, seconds: float) -> None:
    """Drains this machine's nodes; returns when they are gone, or shortly before the deadline."""
    until = time.time() + seconds
    told = head.drain(Notice("eviction", until))
    _say(f"eviction: {', '.join(node[:8] for node in told)} to be left within {seconds:.0f} s")
    while time.time() < until - SPARED_S and head.alive():
        time.sleep(0.5)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m cluster.watcher", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("head", nargs="?", default="", help="HOST:PORT of the head's GCS")
    parser.add_argument("--labels", action="store_true", help="print exports for `ray start`")
    parser.add_argument("--drain", type=float, help="drain now, with so many seconds to go")
    parser.add_argument("--ttl", type=float, help="seconds that this machine outlives its head")
    parser.add_argument("--command", default="", help="ends the machine")
    parser.add_argument("--grace", type=float, help="SIGTERM is a notice of so many seconds")
    parser.add_argument("--tenure", type=float, help="seconds that on-demand stands in for spot")
    parser.add_argument(
        "--no-rebalance", action="store_true", help="stay at a rebalance recommendation"
    )
    parser.add_argument("--node", default="", help="Ray's id of the only node that is meant")
    given = parser.parse_args()
    if given.labels:
        _print_labels()
        return
    if not given.head:
        parser.error("give HOST:PORT of the head, or --labels")
    if (given.ttl is None) != (not given.command):
        parser.error("--ttl and --command belong together")
    head = Head(given.head, given.node)
    if given.drain is not None:
        drain(head, given.drain)
        return
    if given.ttl is not None:
        lease = Path(tempfile.gettempdir()) / "raygen-head-lease"
        start_watchdog(lease, given.ttl, given.command)
        again = threading.Thread(
            target=renew,
            args=(Head(given.head, given.node), lease, given.ttl, threading.Event()),
            daemon=True,
        )
        again.start()
    watch(head, _sources(given))


def _sources(given: argparse.Namespace) -> list[Any]:
    sources: list[Any] = [Metadata(metadata_endpoint(), rebalance=not given.no_rebalance)]
    if given.grace is not None:
        sources.append(Signals(given.grace))
    identity = ask_metadata() if given.tenure is not None else None
    if identity is not None:
        sources.append(Tenure(identity, given.tenure))
    return sources


def _print_labels() -> None:
    identity = ask_metadata()
    if identity is None:
        return
    for name, value in labels(identity, os.environ).items():
        sys.stdout.write(f"export {name}={shlex.quote(value)}\n")


def _line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _say(text: str) -> None:
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {text}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    main()
