"""A bucket listed and probed once into a Parquet table, one row a video.

    raygen data scan s3://bucket/clips -o catalogue.parquet

The label of a video is the name of the folder it lies in.
"""

from __future__ import annotations

import hashlib
import io
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raygen.data import decode, store
from raygen.errors import DataError, StorageError

SUFFIXES = frozenset(
    ".mp4 .m4v .mov .mkv .webm .avi .flv .ts .mts .m2ts .mpg .mpeg .3gp .wmv .ogv .gif".split()
)
UNLABELLED = "unlabelled"
SCHEMA = pa.schema(
    [
        ("uri", pa.string()),
        ("etag", pa.string()),
        ("bytes", pa.int64()),
        ("label", pa.string()),
        ("duration", pa.float64()),
        ("frames", pa.int64()),
        ("fps", pa.float64()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("rotation", pa.int32()),
        ("codec", pa.string()),
        ("status", pa.string()),
        ("reason", pa.string()),
    ]
)


@dataclass(frozen=True)
class Catalogue:
    """Rows of SCHEMA; `status` is "ok" or "refused", and then `reason` says why."""

    table: pa.Table

    @classmethod
    def read(cls, uri: str) -> Catalogue:
        """Raises DataError where `uri` is no catalogue, StorageError where it cannot be read."""
        data = store.read_bytes(uri)
        try:
            return cls(pq.read_table(io.BytesIO(data)).select(SCHEMA.names).cast(SCHEMA))
        except (pa.ArrowException, KeyError, ValueError):
            raise DataError(
                f"{uri} is not a catalogue; make one with `raygen data scan`", uri
            ) from None

    def write(self, uri: str) -> None:
        """Writes Parquet to a local path or s3://."""
        sink = io.BytesIO()
        pq.write_table(self.table, sink, compression="zstd")
        store.write_bytes(uri, sink.getvalue())

    def usable(self, seconds: float) -> Catalogue:
        """The rows that probed well and last at least `seconds`, in the catalogue's order."""
        enough = pc.greater_equal(self.table["duration"], seconds - 1e-3)
        return Catalogue(self.table.filter(pc.and_(pc.equal(self.table["status"], "ok"), enough)))

    @property
    def classes(self) -> list[str]:
        """Sorted class names; the position is the class id."""
        return sorted(set(self.table["label"].to_pylist()))

    @property
    def digest(self) -> str:
        """What the rows are, in 16 hexadecimal digits: SHA-256 over every URI and etag."""
        pairs = zip(self.table["uri"].to_pylist(), self.table["etag"].to_pylist(), strict=True)
        return hashlib.sha256("\n".join(map("\t".join, pairs)).encode()).hexdigest()[:16]

    @property
    def refused(self) -> Counter[str]:
        """Reason to number of videos refused for it."""
        return Counter(reason for reason in self.table["reason"].to_pylist() if reason)

    def __len__(self) -> int:
        return int(self.table.num_rows)


def scan(
    uri: str, *, threads: int = 8, on_probe: Callable[[int, int], None] = lambda done, of: None
) -> Catalogue:
    """Lists `uri` and probes every video below it; `on_probe(done, of)` is told of progress.

    Raises StorageError where `uri` cannot be listed, DataError where it holds no video. A video
    that cannot be probed is a refused row.
    """
    uri = store.absolute(uri)
    objects = [o for o in store.list_objects(uri) if _suffix(o.uri) in SUFFIXES]
    if not objects:
        raise DataError(f"no video below {uri} (looked for {' '.join(sorted(SUFFIXES))})", uri)
    rows = []
    with ThreadPoolExecutor(threads) as pool:
        for done, row in enumerate(pool.map(lambda o: _row(uri, o), objects), start=1):
            rows.append(row)
            on_probe(done, len(objects))
    return Catalogue(pa.Table.from_pylist(rows, schema=SCHEMA))


def _row(root: str, item: store.Object) -> dict[str, Any]:
    row: dict[str, Any] = {
        "uri": item.uri,
        "etag": item.etag,
        "bytes": item.size,
        "label": _label(root, item.uri),
        "status": "ok",
        "reason": "",
    }
    try:
        return row | asdict(decode.probe(store.read_bytes(item.uri)))
    except (DataError, StorageError) as error:
        return row | {"status": "refused", "reason": str(error)}


def _label(root: str, uri: str) -> str:
    folders = PurePosixPath(uri.removeprefix(root).lstrip("/")).parent
    return folders.name or UNLABELLED


def _suffix(uri: str) -> str:
    return PurePosixPath(uri).suffix.lower()
