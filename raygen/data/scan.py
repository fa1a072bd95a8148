"""A bucket listed and probed into a catalogue, by ranged reads.

    raygen data scan s3://bucket/clips -o catalogue.parquet

Listing goes into a file first, in parallel over ranges of keys; then rows are made in its order
and written group by group, so a million videos take no more memory than a thousand. A second scan
into the same catalogue looks only at what is new: rows are known again by URI and etag. Videos are
opened in child processes, this one's or, from LARGE objects on, those of Ray's tasks.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Self

import pyarrow as pa
import pyarrow.parquet as pq

from raygen.config import LimitsConfig
from raygen.data import store
from raygen.data.catalog import SCHEMA, Catalogue
from raygen.data.known import Known, Row
from raygen.data.labels import Folders, Labels, LabelSource
from raygen.data.listing import SHARD, SUFFIXES, Listing, suffix
from raygen.data.probing import LocalWorkers, RayWorkers, Task, new_row, refuse
from raygen.data.screen import NO_SCREENS, Screens, judge
from raygen.data.store import Object
from raygen.errors import DataError, StorageError

LARGE = 4096  # objects from which on starting Ray pays
GROUP_ROWS = 4096  # of a row group
UNLISTED = "is not named by the source of labels"
_COPIED = 8 << 20  # bytes at a time

# Beside the catalogue's own columns a scan keeps what screening saw, for the next scan.
SCAN_SCHEMA = pa.schema(
    [
        *SCHEMA,
        ("motion", pa.float32()),
        ("light", pa.float32()),
        ("look", pa.binary()),
        ("shots", pa.list_(pa.float32())),
    ]
)

DEFAULT_LIMITS = LimitsConfig()

OnProbe = Callable[[int, int], None]


@dataclass
class Report:
    """What a scan did.

    listed, probed: objects, and how many of them were looked at (the rest was known); missing:
    videos that only the source of labels names.
    """

    listed: int = 0
    probed: int = 0
    missing: list[str] = field(default_factory=list)


def scan(
    uri: str,
    *,
    labels: LabelSource | None = None,
    previous: Catalogue | None = None,
    screens: Screens = NO_SCREENS,
    limits: LimitsConfig = DEFAULT_LIMITS,
    on_probe: OnProbe = lambda done, of: None,
    large: int = LARGE,
) -> Catalogue:
    """`scan_to` in memory; `previous` is the catalogue of an earlier scan."""
    with tempfile.TemporaryDirectory(prefix="raygen-") as folder:
        before, after = (str(Path(folder) / name) for name in ("before.parquet", "after.parquet"))
        if previous is not None:
            previous.write(before)
        scan_to(
            uri,
            after,
            labels=labels,
            previous=None if previous is None else before,
            screens=screens,
            limits=limits,
            on_probe=on_probe,
            large=large,
        )
        return Catalogue.read(after)


def scan_to(
    uri: str,
    output: str,
    *,
    labels: LabelSource | None = None,
    previous: str | None = None,
    screens: Screens = NO_SCREENS,
    limits: LimitsConfig = DEFAULT_LIMITS,
    on_probe: OnProbe = lambda done, of: None,
    large: int = LARGE,
) -> Report:
    """Lists `uri`, probes every video below it, and writes the catalogue to `output`.

    `labels` are the names of folders where it is None; `previous` is the catalogue of an earlier
    scan, and may be `output`; `limits` are what one video may cost, object_mb aside, for that much
    is never fetched; `on_probe(done, of)` is told of progress, in objects; from `large` objects on
    Ray does the work. Raises StorageError where `uri` cannot be listed, DataError where it holds no
    video. A video that cannot be probed is a refused row.
    """
    root = store.absolute(uri)
    with tempfile.TemporaryDirectory(prefix="raygen-") as folder:
        listing = Listing(Path(folder), root)
        if not listing.count:
            looked_for = " ".join(sorted({*SUFFIXES, SHARD}))
            raise DataError(f"no video below {root} (looked for {looked_for})", root)
        return write_rows(
            listing.groups(),
            root,
            output,
            labels=Folders() if labels is None else labels,
            previous=previous,
            screens=screens,
            on_probe=lambda done: on_probe(done, listing.count),
            workers=(RayWorkers if listing.count >= large else LocalWorkers)(limits),
        )


def write_rows(
    groups: Iterable[list[Object]],
    root: str,
    output: str,
    *,
    labels: LabelSource,
    previous: str | None,
    screens: Screens,
    on_probe: Callable[[int], None],
    workers: LocalWorkers | RayWorkers,
) -> Report:
    """The second half of a scan: listed objects below `root`, group by group, to a catalogue."""
    known = None if previous is None else Known(previous)
    report = Report()
    with tempfile.TemporaryDirectory(prefix="raygen-") as folder:
        path = Path(folder) / "rows.parquet"
        with _Writer(path, labels, root, screens) as writer, workers:
            waiting: deque[_Group] = deque()
            for objects in groups:
                waiting.append(_Group(objects, known, labels, root, bool(screens), workers))
                report.listed += len(objects)
                report.probed += waiting[-1].probed
                if len(waiting) > workers.ahead:
                    on_probe(writer.add(waiting.popleft()))
            while waiting:
                on_probe(writer.add(waiting.popleft()))
        if screens.drops and (refused := judge(path, screens)):
            path = _refused(path, refused)
        _publish(path, output)
    report.missing = labels.missing()
    return report


class _Group:
    """Neighbours in a listing, on their way from objects to rows."""

    def __init__(
        self,
        objects: list[Object],
        known: Known | None,
        labels: LabelSource,
        root: str,
        look: bool,
        workers: LocalWorkers | RayWorkers,
    ) -> None:
        self.size = len(objects)
        before = [[] for _ in objects] if known is None else known.of(objects)
        self.rows: list[list[Row]] = []
        tasks, self._tasks = [], []
        for number, (item, rows) in enumerate(zip(objects, before, strict=True)):
            rows = rows if all(row["codec"] is not None for row in rows) else []
            shard = suffix(item.uri) == SHARD
            if not rows and not shard:
                rows = [new_row(item.uri, item.etag, 0, item.size)]
            rows = [_unrefused(row) for row in rows]
            if not shard:
                rows = [_labelled(row, labels, _below(root, item.uri)) for row in rows]
            self.rows.append(rows)
            if not rows or any(_wanting(row, look) for row in rows):
                tasks.append(Task(item, rows, look))
                self._tasks.append(number)
        self.probed = len(tasks)
        self._result = workers.submit(tasks)

    def finish(self) -> list[Row]:
        """The rows, once they are complete."""
        for number, rows in zip(self._tasks, self._result(), strict=True):
            self.rows[number] = rows
        return [row for rows in self.rows for row in rows]


class _Writer:
    """Rows to a Parquet file, GROUP_ROWS at a time."""

    def __init__(self, path: Path, labels: LabelSource, root: str, screens: Screens) -> None:
        self._file = pq.ParquetWriter(path, SCAN_SCHEMA, compression="zstd")
        self._labels, self._root, self._cuts = labels, root, screens.cuts
        self._rows: list[Row] = []
        self._done = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self._rows:
            self._write()
        self._file.close()

    def add(self, group: _Group) -> int:
        """Writes what is complete of the group; returns the number of objects so far."""
        for row in group.finish():
            if "member" in row:
                row = _labelled(row, self._labels, _below(self._root, row["member"]))
            if self._cuts:
                row["cuts"] = row.get("shots") or []
            self._rows.append(row)
        if len(self._rows) >= GROUP_ROWS:
            self._write()
        self._done += group.size
        return self._done

    def _write(self) -> None:
        self._file.write_table(pa.Table.from_pylist(self._rows, schema=SCAN_SCHEMA))
        self._rows = []


def _unrefused(row: Row) -> Row:
    """The row as probing left it: without what an earlier scan's labels and screens said."""
    fresh = row | {"cuts": []}
    return fresh if row["codec"] == "" else fresh | {"status": "ok", "reason": ""}


def _wanting(row: Row, look: bool) -> bool:
    unseen = row.get("codec") is None or (look and row.get("motion") is None)
    return row["status"] == "ok" and unseen


def _labelled(row: Row, labels: LabelSource, path: str) -> Row:
    """The row with what the source says of `path`; what lies beside a shard's member goes first."""
    names = ("label", "caption", "split") if "member" in row else ()
    beside = {name: row[name] for name in names if row[name]}
    said = labels(path)
    if said is None and "label" not in beside and row["status"] == "ok":
        row = refuse(row, UNLISTED)
    return row | asdict(said or Labels()) | beside


def _below(root: str, uri: str) -> str:
    return uri.removeprefix(root).lstrip("/") or PurePosixPath(uri).name


def _refused(path: Path, refused: dict[int, str]) -> Path:
    """A copy of the scan's file in which these rows are refused."""
    target, done = path.with_name("screened.parquet"), 0
    file = pq.ParquetFile(path)
    with pq.ParquetWriter(target, SCAN_SCHEMA, compression="zstd") as writer:
        for group in range(file.metadata.num_row_groups):
            rows = file.read_row_group(group).to_pylist()
            for number in range(len(rows)):
                if (reason := refused.get(done + number)) is not None:
                    rows[number] = refuse(rows[number], reason)
            writer.write_table(pa.Table.from_pylist(rows, schema=SCAN_SCHEMA))
            done += len(rows)
    return target


def _publish(path: Path, output: str) -> None:
    """The file at `path` to `output`, whole or not at all."""
    if store.is_s3(output):
        filesystem, target = store.open_storage(output)
        try:
            with path.open("rb") as file, filesystem.open_output_stream(target) as sink:
                shutil.copyfileobj(file, sink, _COPIED)
        except OSError as error:
            raise StorageError(f"cannot write {output}: {error}", output) from None
        return
    place = Path(output)
    partial = place.with_name(f".{place.name}.{os.getpid()}.partial")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            shutil.copyfile(path, partial)
            partial.replace(place)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(f"cannot write {output}: {error.strerror}", output) from None
