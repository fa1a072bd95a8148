"""`fit(config)`: from a config to a trained run on its storage, over Ray Train.

raygen train tiny data.uri=s3://bucket/clips train.workers=2
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from raygen import cost, tracking
from raygen.board import Status, start_board
from raygen.config import Config
from raygen.data import store
from raygen.data.catalog import Catalogue
from raygen.data.scan import scan
from raygen.errors import CheckpointError, ClusterError, ConfigError, DataError, Interrupted
from raygen.ray_session import join
from raygen.runs import CATALOGUE, Run, run_uri

LOOK_EVERY_S = 0.25


def fit(
    config: Config,
    *,
    on_status: Callable[[Status], None] = lambda status: None,
    on_note: Callable[[str], None] = lambda note: None,
) -> Run:
    """Trains, or goes on with the run of this name; returns it when it has ended and is saved.

    `on_status` is called with the newest status a few times a second, `on_note` with what a user
    should read once. Raises a RaygenError for what a user can mend (Interrupted after Ctrl-C,
    saved) and Ray's own error, with the worker's traceback, for anything else.
    """
    cost.price(config.train.node)
    tracking.check_installed(config)
    before = Run.find(config)
    if before is not None:
        before.check_resumable(config)
    catalogue = _catalogue(config, before, on_note)
    if before is not None and before.classes != catalogue.classes and before.checkpoints():
        raise CheckpointError(
            f"run {before.uri} knows the classes {', '.join(before.classes)}, and "
            f"{config.data.uri} has {', '.join(catalogue.classes)}: give the new run another name="
        )
    store.check_writable(config.storage)
    connect(config, on_note)
    # The manifest last: a run that has one has all.
    catalogue.write(store.join(run_uri(config), CATALOGUE))
    run = Run.create(
        config,
        catalogue.classes,
        {"uri": config.data.uri, "digest": catalogue.digest, "clips": len(catalogue)},
    )
    _watch(config, run, catalogue, on_status)
    return run


def connect(config: Config, on_note: Callable[[str], None] = lambda note: None) -> None:
    """Joins the cluster of `RAY_ADDRESS`, or starts a local Ray; done once a process.

    Raises ClusterError where a local Ray is smaller than `config.train` asks for.
    """
    train = config.train
    join()
    have = ray.cluster_resources()
    for kind, each in (("CPU", train.cpus_per_worker), ("GPU", train.gpus_per_worker)):
        needed, there = train.workers * each, have.get(kind, 0.0)
        if needed <= there:
            continue
        fits = int(there // each)
        shortage = f"train.workers={train.workers} need {needed:g} {kind}s, and Ray has {there:g}"
        if "RAY_ADDRESS" in os.environ:
            on_note(f"{shortage}: waiting for the cluster to grow")
        elif fits:
            raise ClusterError(f"{shortage}; take train.workers={fits}")
        else:
            lower = f"lower train.{kind.lower()}s_per_worker (now {each:g})"
            raise ClusterError(f"{shortage}; {lower}")


def _catalogue(config: Config, before: Run | None, on_note: Callable[[str], None]) -> Catalogue:
    uri = config.data.uri
    if not uri:
        raise ConfigError(
            "data.uri is empty: say where the clips are, as in data.uri=s3://bucket/clips; "
            "`raygen data synth FOLDER` renders some",
            "data.uri",
        )
    if before is not None and before.config.data.uri == uri:
        # The order of the clips is the order of this very table.
        return Catalogue.read(before.path(CATALOGUE))
    found = Catalogue.read(uri) if uri.endswith(".parquet") else scan(uri)
    if config.data.split:
        found = found.of_split(config.data.split)
    usable = found.usable(config.data.frames / config.data.fps)
    if not len(found):
        raise DataError(f"no video at {uri} is of the split {config.data.split!r}", uri)
    if not len(usable):
        why = _why(found, usable)
        raise DataError(f"none of the {len(found)} videos at {uri} can be used: {why}", uri)
    if len(usable) < len(found):
        on_note(f"{len(found) - len(usable)} of {len(found)} videos refused: {_why(found, usable)}")
    return usable


def _why(found: Catalogue, usable: Catalogue) -> str:
    reasons = found.refused.most_common(3)
    short = len(found) - found.refused.total() - len(usable)
    return ", ".join(f"{n} x {why}" for why, n in [*reasons, ("too short", short)] if n)


def _watch(
    config: Config, run: Run, catalogue: Catalogue, on_status: Callable[[Status], None]
) -> None:
    board = start_board()
    job = {"config": config.dump(), "run_uri": run.uri, "catalogue": catalogue, "board": board}
    trainer = _trainer(config, job)
    ended = threading.Event()
    errors: list[BaseException] = []

    def train() -> None:
        try:
            trainer.fit()
        except BaseException as error:
            errors.append(error)
        finally:
            ended.set()

    # Beside the main thread, where Ray would take Ctrl-C for itself and abort unsaved.
    threading.Thread(target=train, daemon=True).start()
    with _counted_interrupts() as interrupts:
        asked = False
        while not ended.wait(LOOK_EVERY_S):
            status, _ = ray.get(board.look.remote())
            if status is not None:
                on_status(status)
            if interrupts and not asked:
                asked = True
                board.stop.remote()
            if len(interrupts) > 1:
                raise Interrupted(
                    "stopped at once; the same command goes on from the last checkpoint"
                )
    status, failure = ray.get(board.look.remote())
    if failure is not None:
        raise failure
    if errors:
        raise errors[0]
    on_status(status)
    if asked:
        raise Interrupted(
            f"stopped and saved at step {status.step}; the same command goes on from there"
        )


@contextmanager
def _counted_interrupts() -> Iterator[list[int]]:
    """A list that grows by one with each Ctrl-C; outside the main thread it stays empty."""
    interrupts: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield interrupts
        return
    before = signal.signal(signal.SIGINT, lambda number, frame: interrupts.append(number))
    try:
        yield interrupts
    finally:
        signal.signal(signal.SIGINT, before)


def _trainer(config: Config, job: dict[str, Any]) -> TorchTrainer:
    train = config.train
    filesystem, path = store.open_storage(store.absolute(config.storage))
    return TorchTrainer(
        _train_worker,
        train_loop_config=job,
        scaling_config=ScalingConfig(
            num_workers=train.workers,
            use_gpu=train.gpus_per_worker > 0,
            resources_per_worker={"CPU": train.cpus_per_worker, "GPU": train.gpus_per_worker},
        ),
        run_config=RunConfig(
            name=config.name,
            storage_path=path,
            storage_filesystem=filesystem,
            failure_config=FailureConfig(max_failures=train.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=train.keep_checkpoints),
        ),
    )


def _train_worker(job: dict[str, Any]) -> None:
    import torch

    if not torch.cuda.is_available():
        os.environ["DS_ACCELERATOR"] = "cpu"
    # DeepSpeed chooses its accelerator when it is imported, so not before this line.
    from raygen.worker import Job, train_worker

    train_worker(Job(**job | {"config": Config.parse(job["config"])}))
