"""Configurations worth trying first: the base's own, and the best of earlier searches.

    python -m tune tune/spaces/small.yaml --budget 50 --from searches/tiny

What an earlier search found good seldom is bad in another: other clips, a longer training, a wider
space. Its scores are not believed, only its configurations tried before any is drawn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain, zip_longest
from typing import Any

from raygen.errors import ConfigError
from tune.dimensions import Choice
from tune.records import Records
from tune.space import Space

Config = dict[str, Any]


def first(space: Space, earlier: Sequence[str], most: int) -> list[Config]:
    """At most `most` configurations of `space`, no two alike, the base's own before others.

    The searches at the storages `earlier` give their best in turns. What lies outside a range is
    brought to its end; what the space does not allow is left out. Raises ConfigError where a
    storage holds no search, or none of its trials has a figure.
    """
    # The base's own may stand on what a range ends before: it is what the space was written around.
    tried = [space.base.flat(), *chain.from_iterable(zip_longest(*map(_best, earlier)))]
    found: dict[str, Config] = {}
    for values in tried:
        fitted = None if values is None else _fitted(space, values)
        if fitted is not None:
            found.setdefault(repr(fitted), fitted)
    return list(found.values())[:most]


def _best(storage: str) -> list[Mapping[str, Any]]:
    """All of a search's trials that have a figure, whole configurations, the best first."""
    records = Records.find(storage)
    if records is None:
        raise ConfigError(f"--from {storage}: no search there; give the --storage of one", "from")
    scored = [(t, r.score) for t in records.trials.values() if (r := t.best(records.mode))]
    if not scored:
        raise ConfigError(f"--from {storage}: none of its trials has come to a figure", "from")
    scored.sort(key=lambda pair: pair[1], reverse=records.mode == "max")
    base: dict[str, Any] = records.document["base"]
    return [base | trial.values for trial, _ in scored]


def _fitted(space: Space, values: Mapping[str, Any]) -> Config | None:
    """The configuration of the space next to these values; None where there is none."""
    for each in space.dimensions:
        if each.key not in values:
            return None
        if isinstance(each, Choice) and values[each.key] not in each.options:
            return None
    fitted = space.decode(space.encode(values))
    return fitted if space.refusal(fitted) is None else None
