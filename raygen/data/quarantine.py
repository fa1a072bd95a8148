"""`quarantine.parquet` of a run: the clips that it could not decode, and why."""

from __future__ import annotations

import io
from collections.abc import Mapping

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raygen.data import store
from raygen.data.catalog import Catalogue

QUARANTINE = "quarantine.parquet"


def read(run_uri: str) -> dict[str, str]:
    """Name of a clip (`Catalogue.names`) to the reason for refusing it; empty where none was."""
    uri = store.join(run_uri, QUARANTINE)
    if not store.exists(uri):
        return {}
    rows = pq.read_table(io.BytesIO(store.read_bytes(uri))).to_pylist()
    return {row["clip"]: row["reason"] for row in rows}


def rows(run_uri: str, catalogue: Catalogue) -> dict[int, str]:
    """Row of the catalogue to the reason, for every clip that the run has refused so far."""
    known = read(run_uri)
    if not known:
        return {}
    found = pc.index_in(pa.array(list(known), pa.string()), value_set=catalogue.names())
    pairs = zip(found.to_pylist(), known.values(), strict=True)
    return {row: reason for row, reason in pairs if row is not None}


def add(run_uri: str, catalogue: Catalogue, refused: Mapping[int, str]) -> None:
    """Writes the `refused` rows beside what is there already; one rank at a time."""
    if not refused:
        return
    names = catalogue.names().take(list(refused)).to_pylist()
    all_rows = read(run_uri) | dict(zip(names, refused.values(), strict=True))
    sink = io.BytesIO()
    pq.write_table(pa.table({"clip": list(all_rows), "reason": list(all_rows.values())}), sink)
    store.write_bytes(store.join(run_uri, QUARANTINE), sink.getvalue())
