"""`--perturb`: branches, as in population-based training (Jaderberg et al., 2017).

A branch is a trial that begins from the checkpoint of a good one, with what can change on resume
changed a little: numbers by a factor of 0.8 or 1.2, now and then drawn anew. It pays for its own
steps alone. The policy weighs branches beside all else that it could run.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from raygen.config import Config
from raygen.data import lineage, store
from raygen.errors import CheckpointError, ConfigError
from raygen.runs import CATALOGUE, MANIFEST, STATE, Run, checkpoint_name, may_change, run_uri
from tune.dimensions import Range, Whole
from tune.space import Space

FACTORS = (0.8, 1.2)
RESAMPLED = 0.25


class Perturbation:
    """What branches of a space's trials may be. Raises ConfigError where there can be none."""

    def __init__(self, space: Space) -> None:
        self.space = space
        self.keys = [
            each
            for each in space.dimensions
            if isinstance(each, Range | Whole) and may_change(each.key)
        ]
        if not self.keys:
            raise ConfigError(
                "--perturb: nothing in this space is a number that may change while a training "
                "goes on, as optim.generator.lr is",
                "perturb",
            )

    def __call__(self, values: Mapping[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """A configuration near `values`, or `values` where the space allows none."""
        changed = dict(values)
        for each in self.keys:
            unit_D = each.encode(values[each.key] * rng.choice(FACTORS))
            if rng.random() < RESAMPLED:
                unit_D = rng.random(each.width)
            changed[each.key] = each.decode(unit_D)
        return dict(values) if self.space.refusal(changed) else changed


def branch(parent: Run, config: Config, step: int) -> Run:
    """The run of `config`, a new one, as it goes on from its parent's checkpoint of `step`.

    Copied again from the start where it was interrupted: the manifest is last. Raises
    CheckpointError where the checkpoint is not there (any more).
    """
    name = checkpoint_name(step)
    source = parent.path(name)
    if not store.exists(store.join(source, STATE)):
        raise CheckpointError(f"{source} is gone: {config.name} cannot begin from it", step)
    made = Run(run_uri(config), {**parent.manifest, "config": config.dump()})
    store.copy(parent.path(CATALOGUE), made.path(CATALOGUE))
    for each in store.list_objects(source):
        store.copy(each.uri, store.join(made.path(name), each.uri.removeprefix(source)))
    lineage.inherit(made.uri, parent.uri, step)
    made.write_json(MANIFEST, made.manifest)
    return made
