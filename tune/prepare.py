"""What can be wrong with a search, said before Ray starts and before a cent is spent."""

from __future__ import annotations

import math

from raygen.cost.ledger import Ledger
from raygen.cost.prices import price
from raygen.data import store
from raygen.errors import ConfigError
from tune.records import Records
from tune.space import Space


def prepare(space: Space, storage: str, budget: float) -> Records:
    """The search at `storage`, new or to go on with, before anything costs.

    Raises ConfigError where the budget is none, or is spent and nothing came of it, or the storage
    has another search.
    """
    if math.isnan(budget):
        raise ConfigError("give --budget, the dollars that all of the search may cost")
    if not math.isfinite(budget) or budget <= 0:
        raise ConfigError(f"--budget must be a number of dollars above 0 (got {budget:g})")
    price(space.base.train.node)
    if not space.base.data.uri:
        raise ConfigError(
            "data.uri is empty: say where the clips are, as in data.uri=s3://bucket/clips; "
            "`raygen data synth FOLDER` renders some",
            "data.uri",
        )
    if Records.find(storage) is None:
        store.check_writable(storage)
    records = Records.open(storage, space)
    spent = committed(records)
    if spent >= budget and records.best is None:
        raise ConfigError(
            f"--budget {budget:g}: ${spent:.4f} is spent already, or was leased when it was last "
            f"seen; raise it to go on (raygen cost {storage})"
        )
    return records


def committed(records: Records) -> float:
    """Dollars that are spent, or were leased when the search was last seen."""
    return float(Ledger(records.storage).book.committed)


def is_over(records: Records, budget: float) -> bool:
    """Whether the search has come to its end under no smaller a budget."""
    ended = records.document.get("ended")
    return ended is not None and budget <= ended["budget"]
