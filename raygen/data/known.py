"""What an earlier scan knows: its rows by URI and etag, read group by group.

Held in memory are a hash and a row number for each row, 16 bytes, and the rows of a few groups; a
listing in the order of the earlier one reads each group once.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from raygen.data import store
from raygen.data.catalog import open_parquet
from raygen.data.store import Object

Row = dict[str, Any]
"""One row of a catalogue, with what a scan keeps beside it."""

_GROUPS = 4  # held


class Known:
    """The rows of the catalogue at `uri`. Raises DataError or StorageError where it is none."""

    def __init__(self, uri: str) -> None:
        filesystem, path = store.open_storage(uri)
        self._file = open_parquet(filesystem.open_input_file(path), uri)
        groups = self._file.metadata.num_row_groups
        sizes = [self._file.metadata.row_group(group).num_rows for group in range(groups)]
        self._ends = np.cumsum(np.array(sizes, np.int64))
        hashes = np.fromiter(self._hashes(groups), np.int64, count=sum(sizes))
        self._order = np.argsort(hashes, kind="stable")
        self._hashed = hashes[self._order]
        self._rows = functools.lru_cache(maxsize=_GROUPS)(self._read)

    def of(self, objects: Iterable[Object]) -> list[list[Row]]:
        """The rows of each object, in their order; none where it is new or has changed."""
        objects = list(objects)
        hashes = np.array([_hash(item.uri, item.etag) for item in objects], np.int64)
        low, high = (np.searchsorted(self._hashed, hashes, side) for side in ("left", "right"))
        return [
            [
                row
                for number in self._order[a:b]
                if (row := self._row(int(number)))["uri"] == item.uri and row["etag"] == item.etag
            ]
            for item, a, b in zip(objects, low, high, strict=True)
        ]

    def _row(self, number: int) -> Row:
        group = int(np.searchsorted(self._ends, number, "right"))
        rows = self._rows(group)
        return rows[number - int(self._ends[group])]  # from the group's end, below zero

    def _read(self, group: int) -> list[Row]:
        rows: list[Row] = self._file.read_row_group(group).to_pylist()
        return rows

    def _hashes(self, groups: int) -> Iterator[int]:
        for group in range(groups):
            columns = self._file.read_row_group(group, columns=["uri", "etag"]).to_pydict()
            yield from map(_hash, columns["uri"], columns["etag"])


def _hash(uri: str, etag: str) -> int:
    return hash((uri, etag))
