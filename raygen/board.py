"""Where a running training tells its driver how it stands, and hears from it when to stop."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import ray


@dataclass(frozen=True)
class Status:
    """One look at a training.

    fraction in [0, 1] is how much of the steps or of the budget is done, whichever is more;
    rates, and the share of time in which the trainer was `starved` of clips, are over the last
    seconds; `ended` says why it came to its end, or is empty.
    """

    step: int
    steps: int
    fraction: float
    elapsed_s: float
    dollars: float
    clips_per_s: float = 0.0
    started_at: int = 0
    refused: int = 0
    starved: float = 0.0
    losses: Mapping[str, float] = field(default_factory=dict)
    ended: str = ""

    @property
    def remaining_s(self) -> float:
        """Seconds to go at the pace so far; infinite before the first step."""
        if self.fraction <= 0:
            return float("inf")
        return self.elapsed_s * (1 - self.fraction) / self.fraction


class Board:
    """The newest status, an error that ended the training, and the wish to stop it."""

    def __init__(self) -> None:
        self._status: Status | None = None
        self._failure: Exception | None = None
        self._stop = False

    def post(self, status: Status) -> bool:
        """Takes a status from rank 0; whether the driver wants the training to stop."""
        self._status = status
        return self._stop

    def fail(self, error: Exception) -> None:
        """Takes the error that ends this training; the first one stays."""
        self._failure = self._failure or error

    def look(self) -> tuple[Status | None, Exception | None]:
        """The newest status and the failure, for the driver."""
        return self._status, self._failure

    def stop(self) -> None:
        """Asks the training to save and end."""
        self._stop = True


def start_board() -> Any:
    """The handle of a new board; it lives as long as the driver."""
    return ray.remote(num_cpus=0)(Board).remote()
