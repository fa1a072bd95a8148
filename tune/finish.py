"""The end of a search: its best checkpoint exported, and how it ended written down."""

from __future__ import annotations

import time

from raygen.data import store
from raygen.errors import TrainingError
from raygen.export import CONFIG, export_run
from raygen.runs import Run, checkpoint_name
from tune.records import BEST, Records


def finish(records: Records, reason: str, *, budget: float, spent: float) -> None:
    """Exports the best to STORAGE/best. Raises TrainingError where no trial has a figure."""
    best = records.best
    if best is None:
        raise TrainingError(
            f"{reason}, and no trial has come to a figure; the same command with a larger "
            "--budget goes on",
            0,
        )
    trial, result = best
    destination = records.path(BEST)
    if store.exists(store.join(destination, CONFIG)):
        for item in list(store.list_objects(destination)):
            store.delete(item.uri)
    run = Run.open(records.run_uri(trial))
    export_run(run.at(run.path(checkpoint_name(result.step))), destination)
    records.set(
        ended={
            "at": time.time(),
            "reason": reason,
            "budget": budget,
            "spent": spent,
            "best": trial.name,
        }
    )
