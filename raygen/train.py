"""`fit(config)`: from a config to a trained run on its storage, over Ray Train.

raygen train tiny data.uri=s3://bucket/clips train.workers=2
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray

from raygen import conditioning, exported, tracking
from raygen.board import Status
from raygen.config import Config, SuperresConfig, TrainConfig
from raygen.cost import cap as capped
from raygen.cost.accountant import Accountant
from raygen.cost.bill import Accounts, Purse
from raygen.cost.ledger import Ledger
from raygen.cost.prices import price
from raygen.data import store
from raygen.data.catalog import Catalogue
from raygen.data.scan import scan
from raygen.errors import CheckpointError, ClusterError, ConfigError, DataError
from raygen.ray_session import join, keep_helpers_here
from raygen.runs import CATALOGUE, Run, run_uri
from raygen.supervisor import Supervisor


def fit(
    config: Config,
    *,
    on_status: Callable[[Status], None] = lambda status: None,
    on_note: Callable[[str], None] = lambda note: None,
    stop: threading.Event | None = None,
    accounts: Accounts | None = None,
    judge: Any = None,
) -> Run:
    """Trains, or goes on with the run of this name; returns it when it has ended and is saved.

    `on_status` is called with the newest status a few times a second, `on_note` with what a user
    should read once; once `stop` is set the run saves and ends, as after Ctrl-C. The nodes are
    leased in the run's own ledger under `budget.dollars`; with `accounts`, somebody else's (a
    search's) who leases them, the run books what it holds there under its name. Checkpoints are
    judged by a task each, or by `judge`, a remote method (raygen.judging). Raises a
    RaygenError for what a user can mend (Interrupted when stopped, saved), and for anything else
    an error with the worker's own traceback.
    """
    config = _located(config)
    if accounts is None:
        _check_budget(config)
    tracking.check_installed(config)
    before = Run.find(config)
    if before is not None:
        for change in before.changes(config):
            on_note(f"changed since the last checkpoint: {change}")
    catalogue = _catalogue(config, before, on_note)
    if before is not None and before.classes != catalogue.classes and before.checkpoints():
        raise CheckpointError(
            f"run {before.uri} knows the classes {', '.join(before.classes)}, and "
            f"{config.data.uri} has {', '.join(catalogue.classes)}: give the new run another name="
        )
    for note in uneven(config.train):
        on_note(note)
    conditioning.check(config.conditions, catalogue)
    store.check_writable(config.storage)
    exported.keep_base(config, catalogue.classes)
    connect(config, on_note)
    with _purse(config, accounts) as purse:
        # The manifest last: a run that has one has all.
        catalogue.write(store.join(run_uri(config), CATALOGUE))
        run = Run.create(
            config,
            catalogue.classes,
            {"uri": config.data.uri, "digest": catalogue.digest, "clips": len(catalogue)},
        )
        stop = stop or threading.Event()
        Supervisor(config, run, catalogue, purse, on_status, on_note, stop, judge).run()
    return run


def _check_budget(config: Config) -> None:
    """Raises ConfigError where no price is known, or the cap is spent already."""
    price(config.train.node)
    cap, uri = config.budget.dollars, run_uri(config)
    if cap is not None and Ledger.exists(uri):
        capped.check(Ledger(uri).book, cap, uri)


@contextmanager
def _purse(config: Config, accounts: Accounts | None) -> Iterator[Purse]:
    """What the run pays from: its share of `accounts`, or all of an accountant of its own."""
    train, budget = config.train, config.budget
    if accounts is not None:
        yield Purse(accounts, config.name, trial=True, dollars=budget.dollars)
        return
    # Nodes come only to a cluster; beside those of the workers there may be a head.
    newcomers = train.most_workers + 1 if "RAY_ADDRESS" in os.environ else 0
    accountant = Accountant(
        run_uri(config),
        cap=budget.dollars,
        owner=config.name,
        otherwise=train.node,
        newcomers=newcomers,
        lease_s=budget.lease_s,
        drain_s=budget.drain_s,
    )
    accountant.begin()
    try:
        yield Purse(accountant, config.name)
    finally:
        accountant.close()


def uneven(train: TrainConfig) -> list[str]:
    """A line where some of the numbers of workers cannot share the global batch evenly."""
    least, most, sizes = train.least_workers, train.most_workers, train.world_sizes
    if len(sizes) == most - least + 1:
        return []
    return [
        f"train.batch_size={train.batch_size} splits evenly over {', '.join(map(str, sizes))} "
        f"workers of train.workers=[{least}, {most}]: with room for another number, the next "
        "lower of these train"
    ]


def connect(config: Config, on_note: Callable[[str], None] = lambda note: None) -> None:
    """Joins the cluster of `RAY_ADDRESS`, or starts a local Ray; done once a process.

    Raises ClusterError where a local Ray is smaller than `config.train` asks for.
    """
    train = config.train
    join()
    if "RAY_ADDRESS" in os.environ:
        keep_helpers_here()
    have = ray.cluster_resources()
    for kind, each in (("CPU", train.cpus_per_worker), ("GPU", train.gpus_per_worker)):
        least = train.least_workers
        needed, there = least * each, have.get(kind, 0.0)
        if needed <= there:
            continue
        fits = int(there // each)
        shortage = f"train.workers={least} need {needed:g} {kind}s, and Ray has {there:g}"
        if "RAY_ADDRESS" in os.environ:
            on_note(f"{shortage}: waiting for the cluster to grow")
        elif fits:
            raise ClusterError(f"{shortage}; take train.workers={fits}")
        else:
            lower = f"lower train.{kind.lower()}s_per_worker (now {each:g})"
            raise ClusterError(f"{shortage}; {lower}")


def _located(config: Config) -> Config:
    """With paths that mean the same in the workers, which have a working directory of their own."""
    uris = {
        "storage": config.storage,
        "data.uri": config.data.uri,
        "data.cache.uri": config.data.cache.uri,
    }
    if isinstance(config.model, SuperresConfig):
        uris["model.base"] = config.model.base
    absolute = {key: store.absolute(uri) for key, uri in uris.items() if uri}
    models = {
        "conditions.encoder": config.conditions.encoder,
        "evaluate.features": config.evaluate.features,
    }
    names = ("tokens", "minilm", "embedded")
    for key, path in models.items():
        if path not in names and Path(path).exists():
            absolute[key] = store.absolute(path)
    return Config.parse(config.dump(), absolute)


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
    if uri.endswith(".parquet"):
        found = Catalogue.read(uri)
    else:
        found = scan(uri, limits=config.data.limits)
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
