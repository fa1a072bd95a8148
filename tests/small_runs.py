"""Runs with random weights, as training leaves them on storage: for tests of what comes after."""

import hashlib
import json
from collections.abc import Mapping
from types import MappingProxyType

import torch
from safetensors.torch import save

from raygen.config import Config
from raygen.cost.entries import Lease, Settled
from raygen.cost.ledger import Ledger
from raygen.data import store
from raygen.models import build_generator
from raygen.runs import EMA, STATE, Run, checkpoint_name

CLASSES = ["bend", "jump", "wave"]
SMALL: dict[str, object] = {
    "data.frames": 8,
    "data.size": 16,
    "model.generator_width": 8,
    "model.critic_width": 8,
    "model.latent_dim": 8,
}
"""Overrides of `tiny` that train in no time."""


def make_run(
    storage: str,
    kind: str = "strided",
    name: str = "small",
    seed: int = 0,
    conditions: Mapping[str, object] = MappingProxyType({}),
) -> Run:
    """A run with one checkpoint at step 20: 8 frames of 16x16, at 12.5 frames per second."""
    config = Config.parse(
        {
            "name": name,
            "storage": storage,
            "data": {"uri": "s3://clips/small", "frames": 8, "size": 16, "fps": 12.5},
            "model": {"kind": kind, "latent_dim": 8, "class_dim": 4, "generator_width": 8},
            "conditions": dict(conditions),
        }
    )
    run = Run.create(config, CLASSES, {"uri": "s3://clips/small", "digest": "0f" * 8, "clips": 60})
    torch.manual_seed(seed)
    generator = build_generator(config.model, config.data, len(CLASSES), config.conditions)
    state: dict[str, object] = {"step": 20, "elapsed_s": 90.0, "clips_seen": 320, "dollars": 0.01}
    state["config"] = config.dump()
    folder = run.path(checkpoint_name(20))
    spent = Lease("1", "node", "local", "", "", 0.36, 0.0, 100.0, 0.0)
    Ledger(run.uri).append([spent, Settled("1", 100.0, 0.36, "done")])
    average = {n: t for n, t in generator.state_dict().items() if t.is_floating_point()}
    weights = save(average)
    state["files"] = {EMA: (len(weights), hashlib.sha256(weights).hexdigest())}
    store.write_bytes(store.join(folder, EMA), weights)
    store.write_bytes(store.join(folder, STATE), json.dumps(state).encode())
    return run
