"""Where a running training tells its driver how it stands, and hears from it what to do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raygen.cost.bill import Bill
from raygen.gauges import TRAINING
from raygen.vault import Vaults

Wish = Literal["", "stop", "grow"]
"""What the driver wants of the workers: to go on, or to save and end, for good or to be more."""

Ended = Literal["", "steps", "budget", "stopped", "grew", "preempted", "unhealthy"]
"""Why the workers came to their end, saved; empty while they train."""


@dataclass(frozen=True)
class Status:
    """One look at a training.

    fraction in [0, 1] is how much of the steps or of the budget is done, whichever is more;
    rates, and the share of time in which the trainer was `starved` of clips, are over the last
    seconds; `nodes` are Ray's ids of them, by rank; `saved_at` is the newest checkpoint on storage.
    Before step `onset` all was well; of an unhealthy end, `detail` says what was not. After the
    status that is `closed` comes no other: what this group had to say and to save is out.
    """

    step: int
    steps: int
    fraction: float
    elapsed_s: float
    dollars: float
    nodes: tuple[str, ...] = ()
    clips_per_s: float = 0.0
    started_at: int = 0
    saved_at: int = 0
    refused: int = 0
    starved: float = 0.0
    losses: Mapping[str, float] = field(default_factory=dict)
    ended: Ended = ""
    detail: str = ""
    onset: int = 0
    closed: bool = False

    @property
    def workers(self) -> int:
        """How many train."""
        return len(self.nodes)

    def figures(self) -> dict[str, float]:
        """What of it is exported: see raygen.gauges."""
        losses = {f"raygen_{key.replace('/', '_')}": each for key, each in self.losses.items()}
        return {
            "raygen_step": self.step,
            "raygen_steps": self.steps,
            "raygen_saved_step": self.saved_at,
            "raygen_clips_per_second": self.clips_per_s,
            "raygen_starved": self.starved,
            "raygen_workers": self.workers,
            **{name: each for name, each in losses.items() if name in TRAINING},
        }

    @property
    def remaining_s(self) -> float:
        """Seconds to go at the pace so far; infinite before the first step."""
        if self.fraction <= 0:
            return float("inf")
        return self.elapsed_s * (1 - self.fraction) / self.fraction


@dataclass(frozen=True)
class Look:
    """What the driver sees: the newest status of this group, what ends the training, new notes."""

    status: Status | None
    failure: Exception | None
    notes: list[str]


@dataclass(frozen=True)
class Answer:
    """What rank 0 hears: the driver's wish, what the run has cost, and checkpoints judged since."""

    wish: Wish
    bill: Bill
    judged: list[tuple[int, Mapping[str, float]]]


class Board:
    """An actor beside the driver; it outlives the groups of workers, and owns their vaults."""

    def __init__(self) -> None:
        self._status: Status | None = None
        self._failure: Exception | None = None
        self._wish: Wish = ""
        self._bill = Bill()
        self._notes: list[str] = []
        self._judged: list[tuple[int, Mapping[str, float]]] = []
        self._workers: dict[int, Any] = {}
        self._vaults: dict[str, Any] = {}

    def begin(self) -> None:
        """Another group of workers is about to start."""
        self._status, self._wish, self._workers = None, "", {}

    def join(self, rank: int, worker: Any, node: str) -> None:
        """Takes a worker's own handle, and sees to it that there is a vault on its node."""
        self._workers[rank] = worker
        if node not in self._vaults or not Vaults.alive(self._vaults[node]):
            self._vaults[node] = Vaults.start(node)

    def post(self, status: Status) -> Answer:
        """Takes a status from rank 0."""
        self._status = status
        judged, self._judged = self._judged, []
        return Answer(self._wish, self._bill, judged)

    def fail(self, error: Exception) -> None:
        """Takes the error that ends this training; the first one stays."""
        self._failure = self._failure or error

    def note(self, text: str) -> None:
        """Takes a line that a user should read once."""
        self._notes.append(text)

    def judged(self, step: int, figures: Mapping[str, float]) -> None:
        """Takes what the judge said of the checkpoint of `step`, for the tracker."""
        self._judged.append((step, figures))

    def look(self, bill: Bill) -> Look:
        """For the driver, which knows what the run has cost."""
        self._bill = bill
        notes, self._notes = self._notes, []
        return Look(self._status, self._failure, notes)

    def ask(self, wish: Wish) -> None:
        """For the driver: takes effect at the next step."""
        self._wish = wish

    def workers(self) -> list[Any]:
        """Handles of the workers of this group."""
        return list(self._workers.values())

    def vaults(self) -> dict[str, Any]:
        """Handles by node, of the dead as well."""
        return self._vaults


def start_board() -> Any:
    """The handle of a new board on this node; it lives as long as the driver."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(num_cpus=0, scheduling_strategy=here)(Board).remote()
