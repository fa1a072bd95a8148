"""`quarantine.parquet` of a run: the clips that it could not decode, and why."""

from __future__ import annotations

import io
from collections.abc import Mapping

import pyarrow as pa
import pyarrow.parquet as pq

from raygen.data import store

QUARANTINE = "quarantine.parquet"


def read(run_uri: str) -> dict[str, str]:
    """URI of a clip to the reason for which it was refused; empty where none was."""
    uri = store.join(run_uri, QUARANTINE)
    if not store.exists(uri):
        return {}
    rows = pq.read_table(io.BytesIO(store.read_bytes(uri))).to_pylist()
    return {row["uri"]: row["reason"] for row in rows}


def add(run_uri: str, refused: Mapping[str, str]) -> None:
    """Writes `refused` beside what is there already; one rank at a time."""
    rows = read(run_uri) | dict(refused)
    sink = io.BytesIO()
    pq.write_table(pa.table({"uri": list(rows), "reason": list(rows.values())}), sink)
    store.write_bytes(store.join(run_uri, QUARANTINE), sink.getvalue())
