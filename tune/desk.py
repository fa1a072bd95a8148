"""Where running trials tell the search how they stand, and hear from it that they are to stop."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Standing:
    """A look at a trial that runs: `doing` is start, train or judge, `nodes` Ray's ids, by rank."""

    trial: int
    step: int
    doing: str
    dollars: float
    nodes: tuple[str, ...] = ()


class Desk:
    """An actor beside the driver."""

    def __init__(self) -> None:
        self._standings: dict[int, Standing] = {}
        self._notes: list[str] = []
        self._stop = False

    def post(self, standing: Standing) -> bool:
        """Takes a trial's standing; whether it is to save and end."""
        self._standings[standing.trial] = standing
        return self._stop

    def gone(self, trial: int) -> None:
        """The trial does not run any more."""
        self._standings.pop(trial, None)

    def note(self, text: str) -> None:
        """Takes a line for the user."""
        self._notes.append(text)

    def stop(self) -> None:
        """Has all trials save and end."""
        self._stop = True

    def look(self) -> tuple[dict[int, Standing], list[str]]:
        """Who runs, and notes that were not read yet."""
        notes, self._notes = self._notes, []
        return dict(self._standings), notes


def beside_driver(actor: type[Any], **options: Any) -> Any:
    """An actor class whose actors live on this node, hold nothing, and end with the driver."""
    import ray  # takes seconds, and a Standing needs none
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(num_cpus=0, scheduling_strategy=here, **options)(actor)
