"""The new configurations that the policy looks at, of which it begins one at the most."""

from __future__ import annotations

from collections.abc import Container

import numpy as np

from tune.outlook import Fresh, Outlook
from tune.terms import Config, Rules, Space

BARREN = 16  # draws in a row that bring nothing new: the space has hardly more
BEST = 3  # trials near which it looks


def candidates(
    rng: np.random.Generator, space: Space, taken: Container[str], outlook: Outlook, rules: Rules
) -> Fresh | None:
    """Draws from the space, and steps from the best; none that is `taken` (its repr)."""
    drawn: dict[str, Config] = {}
    barren = 0
    for _ in range(rules.drawn):
        config = space.sample(rng)
        name = repr(config)
        barren = barren + 1 if name in drawn or name in taken else 0
        drawn[name] = config
        if barren == BARREN:
            break
    best_ND = outlook.process.x_ND[np.argsort(outlook.own_N)[:BEST]]
    n, d = rules.near, best_ND.shape[1]
    step_ND = rng.choice([0.05, 0.15], (n, 1)) * rng.standard_normal((n, d))
    step_ND *= rng.random((n, d)) < 0.6
    for near_D in np.clip(best_ND[np.arange(n) % len(best_ND)] + step_ND, 0, 1):
        config = space.decode(near_D)
        drawn[repr(config)] = config
    config_M = [config for name, config in drawn.items() if name not in taken]
    if not config_M:
        return None
    return outlook.fresh(config_M, np.array([space.encode(config) for config in config_M]))
