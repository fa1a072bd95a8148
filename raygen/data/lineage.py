"""`consumed/` of a run: which clips its weights have seen, and at which step.

    from raygen.data import lineage
    lineage.read("runs/tiny")    # columns step and row (of the run's catalogue.parquet)

One small file a checkpoint, written before it: what a checkpoint has trained on is in the files
up to its step, once, also after a crash.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raygen.data import store

FOLDER = "consumed"
SCHEMA = pa.schema([("step", pa.int64()), ("row", pa.int64())])


def add(run_uri: str, step: int, consumed: Sequence[tuple[int, int]]) -> None:
    """Writes what was consumed since the last checkpoint: (step, row) of every clip."""
    pairs = np.array(sorted(consumed), np.int64).reshape(-1, 2)
    sink = io.BytesIO()
    table = pa.table({"step": pairs[:, 0], "row": pairs[:, 1]}, schema=SCHEMA)
    pq.write_table(table, sink, compression="zstd")
    store.write_bytes(store.join(run_uri, FOLDER, f"step-{step:08d}.parquet"), sink.getvalue())


def read(run_uri: str) -> pa.Table:
    """Columns step and row (of the run's catalogue): one row for each time a clip was used.

    Raises StorageError where the files cannot be listed or read.
    """
    files = [pq.read_table(io.BytesIO(store.read_bytes(uri))) for _, uri in _files(run_uri)]
    return pa.concat_tables([SCHEMA.empty_table(), *files])


def forget_after(run_uri: str, step: int) -> None:
    """Deletes what is ahead of the checkpoint that a run goes on from. Raises StorageError."""
    for saved, uri in _files(run_uri):
        if saved > step:
            store.delete(uri)


def inherit(run_uri: str, parent_uri: str, step: int) -> None:
    """Takes over what another run's weights had seen by `step`, from which this one goes on."""
    for saved, uri in _files(parent_uri):
        if saved <= step:
            store.copy(uri, store.join(run_uri, FOLDER, uri.rpartition("/")[2]))


def _files(run_uri: str) -> list[tuple[int, str]]:
    folder = store.join(run_uri, FOLDER)
    if not store.is_s3(folder) and not Path(folder).is_dir():
        return []  # no checkpoint has made it yet; on S3 there is nothing to make
    # A process that was killed while it wrote leaves a file of another name.
    found = [o for o in store.list_objects(folder) if PurePosixPath(o.uri).stem.startswith("step-")]
    return sorted((int(PurePosixPath(o.uri).stem.removeprefix("step-")), o.uri) for o in found)
