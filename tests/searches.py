"""A search as it lies on storage, made without training: for tests of what comes after."""

import json
from pathlib import Path

import numpy as np
import yaml

from raygen.data import store
from raygen.runs import EMA, EVALUATION, STATE, checkpoint_name
from tests.small_runs import make_run
from tune.records import Records, Result
from tune.space import Space

SPACE: dict[str, object] = {
    "base": "tiny",
    "overrides": {
        "data.frames": 8,
        "data.size": 16,
        "model.generator_width": 8,
        "model.critic_width": 8,
        "model.latent_dim": 8,
        "train.batch_size": 4,
        "train.steps": 30,
    },
    "space": {
        "optim.generator.lr": {"loguniform": [1e-4, 1e-2]},
        "loss.gamma": {"uniform": [0.5, 8.0]},
        "model.kind": {"choice": ["strided", "upsampling"]},
    },
    "levels": 3,
}


def write_space(folder: Path, **keys: object) -> Path:
    """SPACE with some keys otherwise, as a file."""
    path = folder / "space.yaml"
    path.write_text(yaml.safe_dump(SPACE | keys))
    return path


def make_search(folder: Path, trials: int = 12, seed: int = 0) -> tuple[Space, Records]:
    """A search whose score depends on the learning rate alone; its best three have a run each."""
    space = Space.load(write_space(folder), ["data.uri=clips"])
    records = Records.open(str(folder / "search"), space)
    rng = np.random.default_rng(seed)
    for number in range(trials):
        values = space.sample(rng)
        off = abs(np.log(values["optim.generator.lr"] / 1e-3))
        for level in range(1, 1 + int(rng.integers(1, 4))):
            score = float(20 + 10 * off + 30 / level)
            figures = {"frechet": score / 2, "clip_s": 0.01 * (1 + number % 3)}
            step, dollars = space.levels[level - 1], 0.002 * level
            records.report(number, values, Result(level, step, dollars, score, 0.0, figures))
    for trial in records.trials.values():
        kind = trial.values["model.kind"]
        run = make_run(records.path("trials"), kind=kind, name=trial.name)
        best = trial.best("min")
        assert best is not None
        source, target = (run.path(checkpoint_name(step)) for step in (20, best.step))
        for name in (EMA, STATE):
            store.write_bytes(store.join(target, name), store.read_bytes(store.join(source, name)))
        store.write_bytes(
            store.join(target, EVALUATION), json.dumps({"score": best.score}).encode()
        )
    return space, records
