"""A Ray cluster of several raylets on this machine, and a training to watch while they go."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import ray
from ray.cluster_utils import Cluster
from ray.core.generated import autoscaler_pb2  # type: ignore[import-not-found,unused-ignore]

from raygen.board import Status
from raygen.config import Config
from raygen.runs import Run
from raygen.train import fit


class Nodes:
    """A head that runs no training, and worker nodes of one CPU each; use from the main thread.

    `labels`: of each worker node.
    """

    def __init__(self, count: int, labels: dict[str, str] | None = None) -> None:
        self._labels = labels or {}
        # Ray's own: without it `Cluster` and raylets of other tests look alike.
        Path(os.environ.get("RAY_TMPDIR", "/tmp"), "ray").mkdir(parents=True, exist_ok=True)
        self._cluster = Cluster(
            initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False}
        )
        for _ in range(count):
            self.add()
        ray.init(address=self._cluster.address, log_to_driver=False, logging_level="error")

    @property
    def address(self) -> str:
        """HOST:PORT of the head."""
        address: str = self._cluster.address
        return address

    def add(self) -> Any:
        """Another worker node."""
        return self._cluster.add_node(num_cpus=1, labels=self._labels)

    def kill(self, node: Any) -> None:
        """The raylet and everything that runs on it at once, as when the machine is gone."""
        raylet = self.raylet(node)
        for process in [raylet, *raylet.children(recursive=True)]:
            process.kill()
        self._cluster.remove_node(node, allow_graceful=False)

    def replace_lost(self) -> None:
        """As an autoscaler does: another worker node for each that has ended by itself."""
        for node in list(self._cluster.worker_nodes):
            if not node.remaining_processes_alive():
                self._cluster.remove_node(node, allow_graceful=False)
                self.add()

    def drain(self, node: Any, seconds: float) -> None:
        """The notice that a spot node gets, with a deadline in `seconds`."""
        gcs = ray._private.worker.global_worker.gcs_client
        deadline = int((time.time() + seconds) * 1000)
        reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
        accepted, why = gcs.drain_node(node.node_id, reason, "spot notice", deadline)
        assert accepted, why

    @property
    def alive(self) -> dict[str, Any]:
        """Worker nodes by Ray's id of them."""
        return {node.node_id: node for node in self._cluster.worker_nodes}

    def raylet(self, node: Any) -> psutil.Process:
        """The process that is a node."""
        return psutil.Process(node.all_processes["raylet"][0].process.pid)

    def trainers(self, node: Any) -> list[psutil.Process]:
        """The processes of training workers on a node."""
        found = []
        for process in self.raylet(node).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):  # it has ended meanwhile
                if "RayTrainWorker" in " ".join(process.cmdline()):
                    found.append(process)
        return found

    def close(self) -> None:
        """Ends it."""
        ray.shutdown()
        self._cluster.shutdown()


class Training:
    """`fit` in a thread; every status with the time at which it was seen.

    As a context, it is stopped at the end, whatever came between.
    """

    def __init__(self, config: Config) -> None:
        self.seen: list[tuple[float, Status]] = []
        self.notes: list[tuple[float, str]] = []
        self.error: BaseException | None = None
        self.result: Run | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._fit, args=(config,), daemon=True)
        self._thread.start()

    def wait_for(self, what: Callable[[Status], bool], seconds: float = 240) -> Status:
        """The first new status of which `what` holds."""
        known, deadline = len(self.seen), time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self.error is not None:
                raise self.error
            for _, status in self.seen[known:]:
                if what(status):
                    return status
            known = len(self.seen)
            time.sleep(0.05)
        raise AssertionError(f"not within {seconds} s; last: {self.seen[-1:]}, {self.notes}")

    @property
    def groups(self) -> int:
        """How many groups of workers have made a step so far."""
        return len({(s.nodes, s.started_at) for _, s in self.seen if s.step > s.started_at})

    @property
    def newest(self) -> Status:
        """The last status seen."""
        return self.seen[-1][1]

    def stop(self) -> None:
        """As Ctrl-C would; `finish` then raises Interrupted."""
        self._stop.set()

    def finish(self, seconds: float = 240) -> Run:
        """Waits for its end. Raises what it raised."""
        self._thread.join(seconds)
        assert not self._thread.is_alive(), f"still at {self.seen[-1:]}, {self.notes}"
        if self.error is not None:
            raise self.error
        assert self.result is not None
        return self.result

    def __enter__(self) -> Training:
        return self

    def __exit__(self, *failure: object) -> None:
        self._stop.set()
        self._thread.join(120)

    def _fit(self, config: Config) -> None:
        try:
            self.result = fit(
                config,
                on_status=lambda status: self.seen.append((time.monotonic(), status)),
                on_note=lambda note: self.notes.append((time.monotonic(), note)),
                stop=self._stop,
            )
        except BaseException as error:
            self.error = error
