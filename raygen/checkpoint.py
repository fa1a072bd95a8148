"""Saving and restoring the pair through Ray Train.

Every rank writes its own shards into a folder of its own; Ray Train merges the folders into one,
`step-00000200/`, on the run's storage:

    ema.safetensors       the averaged generator, whole
    generator/  critic/   DeepSpeed's shards
    state.json            step, data position, world size, what was spent, the config

state.json is written once every rank's files are there: it is what makes a checkpoint one. Ray
Train keeps a list of its own, which a killed driver may not have written, so a run goes on from
what lies on its storage.

Order, latents and augmentation are pure functions of (seed, step), so there is no random state to
keep, and the data position is the step.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ray.train
from safetensors.torch import load_file, save_file

from raygen import reshard
from raygen.data import store
from raygen.engine import Pair
from raygen.runs import EMA, STATE, Progress, Run, checkpoint_name

Gather = Callable[[Any], list[Any]]
"""Collective: what every rank gave it, by rank."""


def save(
    pair: Pair, progress: Progress, metrics: dict[str, Any], run_uri: str, gather: Gather
) -> None:
    """Reports a checkpoint and `metrics` to Ray Train; every rank calls it at the same step."""
    context = ray.train.get_context()
    first = context.get_world_rank() == 0
    name = checkpoint_name(progress.step)
    # Collective at stage 3, so before rank 0 goes its own way.
    average = pair.ema.gather()
    with tempfile.TemporaryDirectory(prefix="raygen-") as folder:
        pair.save(folder)
        if first:
            save_file(average, Path(folder) / EMA)
        ray.train.report(
            metrics | asdict(progress),
            checkpoint=ray.train.Checkpoint.from_directory(folder),
            checkpoint_dir_name=name,
        )
    gather(None)
    if first:
        state = asdict(progress) | {
            "world_size": context.get_world_size(),
            "config": pair.config.dump(),
        }
        uri = store.join(run_uri, name, STATE)
        store.write_bytes(uri, json.dumps(state, indent=2).encode())


@dataclass(frozen=True)
class Resumed:
    """Where a run stands: at its newest checkpoint at `uri`, or at the beginning."""

    progress: Progress
    uri: str = ""
    world_size: int = 0
    zero_stage: int = 0

    def universal(self, world_size: int) -> bool:
        """Whether workers of this number must have its shards converted."""
        # Stage 0 has none: every rank holds all.
        return bool(self.uri) and self.world_size != world_size and self.zero_stage > 0


def resumed(run_uri: str, gather: Gather) -> Resumed:
    """What this run goes on from; collective. What lies beyond it, torn, is removed."""
    found = None
    if ray.train.get_context().get_world_rank() == 0:
        run = Run.open(run_uri)
        found = _newest(run)
        run.discard_after(found.progress.step)
    newest: Resumed = gather(found)[0]
    return newest


def _newest(run: Run) -> Resumed:
    checkpoints = run.checkpoints()
    if not checkpoints:
        return Resumed(Progress())
    state = json.loads(store.read_bytes(store.join(checkpoints[-1], STATE)))
    stage = state["config"]["train"]["zero_stage"]
    return Resumed(Progress.of(state), checkpoints[-1], state["world_size"], stage)


def restore(pair: Pair, before: Resumed, gather: Gather) -> None:
    """Takes up the checkpoint of `before`, if there is one; collective."""
    if not before.uri:
        return
    filesystem, path = store.open_storage(before.uri)
    with ray.train.Checkpoint(path, filesystem).as_directory() as folder:
        average = load_file(Path(folder) / EMA)
        if not pair.universal:
            pair.load(folder, average)
            return
        with tempfile.TemporaryDirectory(prefix="raygen-") as scratch:
            # One rank of each node converts for all of them.
            node, first = ray.get_runtime_context().get_node_id(), None
            if ray.train.get_context().get_local_rank() == 0:
                reshard.to_universal(folder, scratch)
                first = scratch
            shared = {where: path for where, path in gather((node, first)) if path}
            pair.load(shared[node], average)
            gather(None)  # nobody deletes what another still reads
