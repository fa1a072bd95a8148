"""Runs with random weights, as training leaves them on storage: for tests of what comes after."""

import hashlib
import json
import tempfile
from collections.abc import Mapping
from types import MappingProxyType

import torch
from safetensors.torch import save
from torch import nn

from raygen.config import Config
from raygen.cost.entries import Lease, Settled
from raygen.cost.ledger import Ledger
from raygen.data import store
from raygen.export import export_run
from raygen.metrics import Evaluation
from raygen.models import build_generator
from raygen.runs import EMA, EVALUATION, STATE, Run, checkpoint_name

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
    size: int = 16,
) -> Run:
    """A run with one checkpoint at step 20: 8 frames of `size`, at 12.5 frames per second."""
    config = Config.parse(
        {
            "name": name,
            "storage": storage,
            "data": {"uri": "s3://clips/small", "frames": 8, "size": size, "fps": 12.5},
            "model": {"kind": kind, "latent_dim": 8, "class_dim": 4, "generator_width": 8},
            "conditions": dict(conditions),
        }
    )
    return run_of(config, seed)


def run_of(config: Config, seed: int = 0, generator: nn.Module | None = None) -> Run:
    """A run of any configuration, with one checkpoint at step 20: `generator`'s, or random."""
    run = Run.create(config, CLASSES, {"uri": "s3://clips/small", "digest": "0f" * 8, "clips": 60})
    torch.manual_seed(seed)
    if generator is None:
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


def judged(frechet: float) -> dict[str, object]:
    """What `raygen evaluate` might have said; the score is `frechet`."""
    return Evaluation(
        clips=60,
        real_clips=60,
        judge_accuracy=0.9,
        class_accuracy=0.8,
        class_accuracies=dict.fromkeys(CLASSES, 0.8),
        frechet=frechet,
        frechet_real=1.0,
        motion_ratio=1.0,
        jerk_ratio=1.0,
        ssim_fake=0.9,
        ssim_real=0.9,
    ).as_dict()


def make_export(
    destination: str,
    *,
    seed: int = 0,
    size: int = 16,
    evaluation: Mapping[str, object] | None = None,
    conditions: Mapping[str, object] = MappingProxyType({}),
) -> str:
    """An export of `make_run` at `destination`, a local folder; returns it."""
    with tempfile.TemporaryDirectory() as folder:
        run = make_run(folder, seed=seed, conditions=conditions, size=size)
        if evaluation is not None:
            run.write_json(EVALUATION, evaluation)
        export_run(run, destination)
    return destination
