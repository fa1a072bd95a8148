"""The catalogue: a bucket of videos as one Parquet table, one row a video.

    found = Catalogue.read("s3://bucket/catalogue.parquet")
    found.usable(seconds=1.0).classes

`raygen data scan` (raygen.data.scan) makes it. The bytes of a video are
`store.read_range(uri, offset, bytes, etag=etag)`: an object of its own, or a part of a tar shard.
"""

from __future__ import annotations

import hashlib
import io
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import ArrayLike, NDArray

from raygen.data import store
from raygen.errors import DataError

UNLABELLED = "unlabelled"
SCHEMA = pa.schema(
    [
        ("uri", pa.string()),
        ("etag", pa.string()),
        ("offset", pa.int64()),  # where the video's bytes begin in the object
        ("bytes", pa.int64()),  # how many they are
        ("label", pa.string()),
        ("caption", pa.string()),
        ("split", pa.string()),
        ("duration", pa.float64()),  # seconds
        ("frames", pa.int64()),
        ("fps", pa.float64()),
        ("width", pa.int32()),  # pixels, before rotation
        ("height", pa.int32()),
        ("rotation", pa.int32()),  # degrees
        ("codec", pa.string()),  # null: never looked at; "": looked at, and refused
        ("weight", pa.float32()),
        ("cuts", pa.list_(pa.float32())),  # seconds at which another shot begins
        ("vector", pa.list_(pa.float32())),  # the user's own condition; null: none
        ("status", pa.string()),  # "ok" or "refused"
        ("reason", pa.string()),  # why it was refused, completing "VIDEO ..."
    ]
)

# Catalogues of before had none.
_OPTIONAL = "vector"
# Of reasons that name another video, what a count of reasons keeps.
_GENERAL = r"^(is a near duplicate) of .*$"
_DIGESTED = 1 << 16  # rows at a time


@dataclass(frozen=True)
class Catalogue:
    """Rows of SCHEMA; `status` is "ok" or "refused", and then `reason` says why."""

    table: pa.Table

    @classmethod
    def read(cls, uri: str) -> Catalogue:
        """Raises DataError where `uri` is no catalogue, StorageError where it cannot be read."""
        data = store.read_bytes(uri)
        try:
            file = open_parquet(io.BytesIO(data), uri)
            table = file.read(columns=SCHEMA.names)
            if _OPTIONAL not in table.column_names:
                none = pa.nulls(len(table), SCHEMA.field(_OPTIONAL).type)
                table = table.append_column(SCHEMA.field(_OPTIONAL), none)
            return cls(table.select(SCHEMA.names).cast(SCHEMA))
        except (pa.ArrowException, OSError):
            raise DataError(
                f"{uri} is broken; make it again with `raygen data scan`", uri
            ) from None

    def write(self, uri: str) -> None:
        """Writes Parquet to a local path or s3://."""
        sink = io.BytesIO()
        pq.write_table(self.table, sink, compression="zstd")
        store.write_bytes(uri, sink.getvalue())

    def usable(self, seconds: float) -> Catalogue:
        """The rows to train on, in the catalogue's order.

        They probed well, were not dropped, and have a shot, or all of the video where no cuts are
        known, of at least `seconds`.
        """
        ok = self._flags(pc.equal(self.table["status"], "ok"))
        return self.select(np.flatnonzero(ok & (self._longest_shots() >= seconds - 1e-3)))

    def select(self, rows: ArrayLike) -> Catalogue:
        """These rows, in this order."""
        return Catalogue(self.table.take(pa.array(np.asarray(rows, np.int64))))

    @property
    def classes(self) -> list[str]:
        """Sorted class names; the position is the class id."""
        return sorted(pc.unique(self.table["label"]).to_pylist())

    def labels(self) -> NDArray[np.int32]:
        """Class id of each row."""
        ids = pc.index_in(self.table["label"], value_set=pa.array(self.classes, pa.string()))
        return np.asarray(ids.to_numpy(), np.int32)

    def weights(self) -> NDArray[np.float32]:
        """How often each row is to be drawn in relation to the others, where sampling asks it."""
        return np.asarray(self.table["weight"].to_numpy(), np.float32)

    def captions(self, rows: ArrayLike) -> list[str]:
        """What is said of these rows; "" where nothing is."""
        captions: list[str] = self._at(rows, "caption").fill_null("").to_pylist()
        return captions

    def vectors(self, rows: ArrayLike) -> list[list[float] | None]:
        """The user's own vector of each of these rows."""
        vectors: list[list[float] | None] = self._at(rows, "vector").to_pylist()
        return vectors

    def names(self) -> pa.ChunkedArray:
        """What each row is called: its URI, with `#OFFSET` where it lies within a shard."""
        part = pc.binary_join_element_wise(
            self.table["uri"], self.table["offset"].cast(pa.string()), "#"
        )
        return pc.if_else(pc.equal(self.table["offset"], 0), self.table["uri"], part)

    def of_split(self, split: str) -> Catalogue:
        """The rows of this split."""
        return Catalogue(self.table.filter(pc.equal(self.table["split"], split)))

    @property
    def digest(self) -> str:
        """What the rows are, in 16 hexadecimal digits: SHA-256 over every URI, etag and offset."""
        digest = hashlib.sha256()
        for start in range(0, len(self), _DIGESTED):
            part = self.table.slice(start, _DIGESTED)
            offsets = part["offset"].cast(pa.string())
            lines = pc.binary_join_element_wise(part["uri"], part["etag"], offsets, "\t")
            whole = pa.ListArray.from_arrays([0, len(lines)], lines.combine_chunks())
            digest.update(pc.binary_join(whole, "\n")[0].as_buffer())
            digest.update(b"\n")
        return digest.hexdigest()[:16]

    @property
    def refused(self) -> Counter[str]:
        """Reason to number of videos refused for it."""
        reasons = self.table["reason"].filter(pc.equal(self.table["status"], "refused"))
        general = pc.replace_substring_regex(reasons, _GENERAL, r"\1")
        return Counter({str(v["values"]): v["counts"].as_py() for v in pc.value_counts(general)})

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def _at(self, rows: ArrayLike, column: str) -> Any:
        return self.table[column].take(pa.array(np.asarray(rows, np.int64)))

    def _flags(self, column: Any) -> NDArray[np.bool_]:
        return np.asarray(column.to_numpy(), np.bool_)

    def _longest_shots(self) -> NDArray[np.float64]:
        """Seconds between the two cuts of each row that are farthest apart; NaN where unknown."""
        longest = np.array(self.table["duration"].to_numpy(), np.float64)
        counts = pc.list_value_length(self.table["cuts"]).fill_null(0).to_numpy()
        rows = np.flatnonzero(counts)
        if len(rows):
            cuts = pc.list_flatten(self.table["cuts"]).to_numpy()
            # Row by row: 0, its cuts, its duration; the steps within a row are its shots.
            ends = np.cumsum(counts[rows])
            edges = np.insert(cuts.astype(np.float64), ends, longest[rows])
            first = ends - counts[rows] + np.arange(len(rows))
            longest[rows] = np.maximum.reduceat(_steps(edges, first), first)
        return longest


def open_parquet(place: Any, uri: str) -> pq.ParquetFile:
    """The catalogue at `place`, a path or a file object, to be read piece by piece.

    Raises DataError, which names `uri`, where it is none.
    """
    try:
        file = pq.ParquetFile(place)
    except pa.ArrowException:
        raise DataError(
            f"{uri} is not a catalogue; make one with `raygen data scan`", uri
        ) from None
    needed = [name for name in SCHEMA.names if name != _OPTIONAL]
    if missing := [name for name in needed if name not in file.schema_arrow.names]:
        raise DataError(
            f"{uri} is not a catalogue of this version (no column {missing[0]}); make it again "
            "with `raygen data scan`",
            uri,
        )
    return file


def _steps(edges: NDArray[np.float64], first: NDArray[np.int64]) -> NDArray[np.float64]:
    steps = np.diff(edges, prepend=0.0)
    steps[first] = edges[first]
    return steps
