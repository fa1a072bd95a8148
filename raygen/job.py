"""What the driver hands to the workers of a group. Knows no DeepSpeed: the driver makes it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from raygen.config import Config
from raygen.cost.bill import NOTHING, Bill
from raygen.data.catalog import Catalogue


@dataclass(frozen=True)
class Job:
    """What the driver hands to every worker of a group.

    `board` is an actor handle of raygen.board.Board. `elapsed_s` were spent on the run before, also
    on what was lost, and `bill` is what it has cost; `failures` counts the groups that were lost
    without notice. A rewound run goes on from before step `onset`, with `lr_scale` of its learning
    rates.
    """

    config: Config
    run_uri: str
    catalogue: Catalogue
    board: Any
    lr_scale: float = 1.0
    elapsed_s: float = 0.0
    bill: Bill = NOTHING
    failures: int = 0
    onset: int | None = None
