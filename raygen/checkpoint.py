"""Saving and restoring the pair through Ray Train.

Every rank writes its own shards into a folder of its own; Ray Train merges the folders into one,
`step-00000200/`, on the run's storage:

    state.json            step, elapsed seconds, world size, what was spent, the config
    ema.safetensors       the averaged generator, whole
    generator/  critic/   DeepSpeed's shards

Order, latents and augmentation are pure functions of (seed, step), so there is no random state to
keep, and the data position is the step.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ray.train
from safetensors.torch import load_file, save_file

from raygen.data import store
from raygen.engine import Pair
from raygen.runs import EMA, STATE, Progress, checkpoint_name


def save(pair: Pair, progress: Progress, metrics: dict[str, Any]) -> None:
    """Reports a checkpoint and `metrics` to Ray Train; every rank calls it at the same step."""
    context = ray.train.get_context()
    # Collective at stage 3, so before rank 0 goes its own way.
    average = pair.ema.gather()
    with tempfile.TemporaryDirectory(prefix="raygen-") as folder:
        pair.save(folder)
        if context.get_world_rank() == 0:
            save_file(average, Path(folder) / EMA)
            state = asdict(progress) | {
                "world_size": context.get_world_size(),
                "config": pair.config.dump(),
            }
            (Path(folder) / STATE).write_text(json.dumps(state, indent=2))
        ray.train.report(
            metrics | asdict(progress),
            checkpoint=ray.train.Checkpoint.from_directory(folder),
            checkpoint_dir_name=checkpoint_name(progress.step),
        )


def progress() -> Progress:
    """Where this run stands: at its newest checkpoint, or at the beginning."""
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return Progress()
    uri = store.join(checkpoint.path, STATE)
    with checkpoint.filesystem.open_input_stream(uri) as file:
        state = json.loads(file.read())
    return Progress.of(state)


def restore(pair: Pair) -> None:
    """Takes up the newest checkpoint of this run, if there is one."""
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is not None:
        with checkpoint.as_directory() as folder:
            pair.load(folder, load_file(Path(folder) / EMA))
