"""BudgetScheduler under a real Ray Tune, on trials whose curves are known."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from ray import tune
from ray.tune import RunConfig, Tuner

from raygen.config import Config
from raygen.errors import Interrupted
from tune.budget import BudgetScheduler
from tune.measure import measure
from tune.policy import Policy

LEVELS = 9
PRICE = 0.1  # dollars a level


class Line:
    """x in [0, 1]; the nearer to 0.7 the better."""

    def sample(self, rng: np.random.Generator) -> dict[str, Any]:
        return {"x": float(rng.random())}

    def encode(self, config: dict[str, Any]) -> np.ndarray:
        return np.array([config["x"]])

    def decode(self, vector: np.ndarray) -> dict[str, Any]:
        return {"x": float(vector[0])}


class Purse:
    """What is left of so many dollars, by what the policy has heard."""

    def __init__(self, policy: Policy, dollars: float) -> None:
        self.policy, self.dollars = policy, dollars

    def left(self) -> float:
        return self.dollars - self.policy.spent - self.policy.committed

    def admit(self, dollars: float) -> bool:
        return dollars <= self.left() + dollars + 1e-9


def trial(config: dict[str, Any]) -> None:
    for level in range(config["done"] + 1, LEVELS + 1):
        score = abs(config["values"]["x"] - 0.7) + 1 / level
        tune.report({"level": level, "score": score, "dollars": level * PRICE})


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def search(policy: Policy, dollars: float, folder: Path) -> bytes:
    """Runs it; the last state."""
    kept: list[bytes] = []
    scheduler = BudgetScheduler(policy, Purse(policy, dollars), kept.append)
    Tuner(
        tune.with_resources(trial, {"CPU": 1}),
        tune_config=tune.TuneConfig(
            scheduler=scheduler, search_alg=scheduler.searcher, num_samples=100, reuse_actors=False
        ),
        run_config=RunConfig(storage_path=str(folder), verbose=0),
    ).fit()
    return kept[-1]


@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
def test_promotes_ends_within_its_money_and_goes_on_from_its_state(tmp_path: Path) -> None:
    policy = Policy(Line(), money=4.0, levels=LEVELS, workers=2, level_dollars=PRICE)
    state = search(policy, 2.0, tmp_path)  # as far as a driver came that was killed
    before = json.loads(state)
    assert 1.0 < policy.spent <= 2.0 + 1e-9
    restored = Policy.restore(Line(), before)
    search(restored, 4.0, tmp_path)
    levels = [t.level for t in restored.trials]
    assert LEVELS in levels  # promoted
    assert min(levels) < LEVELS  # paused
    assert any(t.starts > 1 for t in restored.trials)
    assert restored.spent <= 4.0 + 1e-9
    assert len(restored.trials) >= len(before["trials"])
    for then, now in zip(before["trials"], restored.trials, strict=False):
        assert now.config == then["config"]
        assert now.level >= then["level"]  # nothing that was paid is paid again
        assert now.dollars == pytest.approx(now.level * PRICE)


@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
def test_measuring_ends_once_it_is_told_to() -> None:
    with pytest.raises(Interrupted, match="the cap is reached"):
        measure(Config.load("tiny"), lambda: "the cap is reached")
    deadline = time.monotonic() + 60
    while ray.available_resources().get("CPU") != 2 and time.monotonic() < deadline:
        time.sleep(0.2)
    assert ray.available_resources()["CPU"] == 2  # nothing is held
