"""Where labels, captions and splits come from: folders, official lists, manifests, YouTube-8M.

    raygen data scan s3://bucket/ucf101 -o cat.parquet --labels ucf101:s3://bucket/lists

A source is asked with a video's path below the scanned root. One that names its videos answers
None for any other, which the scan then refuses without looking at it.
"""

from __future__ import annotations

import csv
import fnmatch
import io
import json
import re
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.json as pajson
import pyarrow.parquet as pq

from raygen.data import store, tfrecord
from raygen.data.catalog import UNLABELLED
from raygen.errors import ConfigError, DataError

KINDS = "folders, ucf101:FOLDER, manifest:FILE, youtube8m:FOLDER"
# Kinetics' names of splits, which its mirrors give a size: train_256.
_SPLIT = re.compile(r"(train|val|test)(?:id|idate|idation)?(?:_\d+)?", re.IGNORECASE)
_READERS = 8


@dataclass(frozen=True)
class Labels:
    """What a source says of one video."""

    label: str = UNLABELLED
    caption: str = ""
    split: str = ""
    weight: float = 1.0
    vector: list[float] | None = None


class LabelSource(Protocol):
    """Answers for one path after another."""

    def __call__(self, path: str) -> Labels | None:
        """Labels of the video at `path` below the root; None where the source does not know it."""

    def missing(self) -> list[str]:
        """Videos that the source names and was not asked about."""


def source(spec: str, root: str) -> LabelSource:
    """The source that `--labels SPEC` names, for videos below `root`.

    Raises ConfigError for an unknown kind, DataError or StorageError for what cannot be read.
    """
    kind, _, place = spec.partition(":")
    if spec == "folders":
        return Folders()
    if place and kind == "ucf101":
        return Listed(_ucf101(place), stems=True)
    if place and kind == "manifest":
        return Listed(_manifest(place, root))
    if place and kind == "youtube8m":
        return Listed(_youtube8m(place), stems=True)
    raise ConfigError(f"--labels {spec}: must be one of {KINDS}")


class Folders:
    """The label is the folder a video lies in; a folder named train, val or test is its split."""

    def __call__(self, path: str) -> Labels:
        """Kinetics' split/class/file, UCF101's class/file, split/file, or a file alone."""
        folder, above = [*reversed(PurePosixPath(path).parts[:-1]), "", ""][:2]
        if match := _SPLIT.fullmatch(folder):
            return Labels(split=match[1].lower())
        match = _SPLIT.fullmatch(above)
        return Labels(folder or UNLABELLED, split=match[1].lower() if match else "")

    def missing(self) -> list[str]:
        """Folders promise nothing."""
        return []


class Listed:
    """Videos named one by one, by path or, with `stems`, by file name without suffix."""

    def __init__(self, entries: Iterable[tuple[str, Labels]], *, stems: bool = False) -> None:
        self.stems = stems
        self.entries = dict(entries)
        self.unseen = dict.fromkeys(self.entries)

    def __call__(self, path: str) -> Labels | None:
        """What the list says of `path`."""
        key = PurePosixPath(path).stem if self.stems else path
        self.unseen.pop(key, None)
        return self.entries.get(key)

    def missing(self) -> list[str]:
        """In the order of the list."""
        return list(self.unseen)


def sidecars(files: dict[str, bytes]) -> dict[str, str]:
    """Label, caption and split of a WebDataset sample, from what lies beside its video.

    `files` maps suffix to content: txt (the caption), cls (the label), json (label or class,
    caption or text, split). What none of them says is absent.
    """
    found: dict[str, str] = {}
    try:
        beside = json.loads(files.get("json", b"{}"))
    except ValueError:
        beside = {}
    for name, keys in (("label", ("label", "class")), ("caption", ("caption", "text"))):
        for key in keys:
            if isinstance(beside, dict) and beside.get(key) not in (None, ""):
                found.setdefault(name, str(beside[key]))
    if isinstance(beside, dict) and beside.get("split"):
        found["split"] = str(beside["split"])
    for name, suffix in (("label", "cls"), ("caption", "txt")):
        if text := files.get(suffix, b"").decode(errors="replace").strip():
            found[name] = text
    return found


def _ucf101(place: str) -> Iterator[tuple[str, Labels]]:
    """Train and test list 1 of a folder, or of the split whose trainlist file `place` is."""
    folder, number = place.rstrip("/"), "01"
    if match := re.fullmatch(r"(.*)/(?:train|test)list(\d\d)\.txt", place):
        folder, number = match.groups()
    for split in ("train", "test"):
        uri = store.join(folder, f"{split}list{number}.txt")
        lines = store.read_bytes(uri).decode(errors="replace").split("\n")
        for line in filter(None, map(str.strip, lines)):
            # "Archery/v_Archery_g01_c01.avi", and in the train lists the number of the class.
            path = PurePosixPath(line.split()[0])
            if len(path.parts) != 2:
                raise DataError(f"{uri} is no list of UCF101: {line!r} is not CLASS/FILE", uri)
            # By stem: copies of UCF101 are often flat, or converted to mp4.
            yield path.stem, Labels(path.parent.name, split=split)


def _manifest(uri: str, root: str) -> Iterator[tuple[str, Labels]]:
    data = io.BytesIO(store.read_bytes(uri))
    suffix = PurePosixPath(uri).suffix.lower()
    try:
        if suffix == ".csv":
            table = pacsv.read_csv(data)
        elif suffix in (".jsonl", ".json", ".ndjson"):
            table = pajson.read_json(data)
        elif suffix == ".parquet":
            table = pq.read_table(data)
        else:
            raise DataError(f"{uri} is no manifest; it must end in .csv, .jsonl or .parquet", uri)
    except pa.ArrowException as error:
        raise DataError(f"{uri} cannot be read: {' '.join(str(error).split())}", uri) from None
    key = next((name for name in ("uri", "path") if name in table.column_names), None)
    if key is None:
        has = ", ".join(table.column_names)
        raise DataError(f"{uri} needs a column uri or path; it has {has}", uri)
    root = root.rstrip("/") + "/"
    for path, label, caption, split, weight, vector in zip(
        _texts(table, key),
        _texts(table, "label" if "label" in table.column_names else "class"),
        _texts(table, "caption"),
        _texts(table, "split"),
        _weights(table, uri),
        _vectors(table, uri),
        strict=True,
    ):
        yield path.removeprefix(root), Labels(label or UNLABELLED, caption, split, weight, vector)


def _texts(table: pa.Table, name: str) -> list[str]:
    if name not in table.column_names:
        return [""] * len(table)
    texts: list[str] = pc.fill_null(table[name].cast(pa.string()), "").to_pylist()
    return texts


def _weights(table: pa.Table, uri: str) -> list[float]:
    if "weight" not in table.column_names:
        return [1.0] * len(table)
    try:
        column = pc.fill_null(table["weight"].cast(pa.float32()), 1.0)
    except pa.ArrowException:
        raise DataError(f"{uri}: the column weight holds what is no number", uri) from None
    if len(column) and not 0 <= pc.min(column).as_py() < float("inf"):
        raise DataError(f"{uri}: the column weight holds what is not 0 or more", uri)
    weights: list[float] = column.to_pylist()
    return weights


def _vectors(table: pa.Table, uri: str) -> list[list[float] | None]:
    if "vector" not in table.column_names:
        return [None] * len(table)
    try:
        column = table["vector"].cast(pa.list_(pa.float32()))
    except pa.ArrowException:
        raise DataError(
            f"{uri}: the column vector must hold lists of numbers, as .jsonl and .parquet can", uri
        ) from None
    vectors: list[list[float] | None] = column.to_pylist()
    if any(vector is not None and not np.isfinite(vector).all() for vector in vectors):
        raise DataError(f"{uri}: the column vector holds what is no finite number", uri)
    return vectors


def _youtube8m(place: str) -> Iterator[tuple[str, Labels]]:
    """Every record of a folder's *.tfrecord files, or of those that a glob matches."""
    folder, pattern = place.rstrip("/"), "*.tfrecord"
    if any(sign in place for sign in "*?["):
        folder, _, pattern = place.rpartition("/")
    items = [item.uri for item in store.list_objects(folder)]
    files = [uri for uri in items if fnmatch.fnmatch(PurePosixPath(uri).name, pattern)]
    if not files:
        raise DataError(f"no {pattern} in {folder}", folder)
    vocabulary = next((uri for uri in items if uri.endswith("/vocabulary.csv")), None)
    names = _vocabulary(vocabulary) if vocabulary else {}
    with ThreadPoolExecutor(_READERS) as pool:
        for records in pool.map(_records, files):
            for name, numbers in records:
                labels = [names.get(number, str(number)) for number in sorted(numbers)]
                caption = ", ".join(labels) if names else ""
                yield name, Labels(labels[0] if labels else UNLABELLED, caption)


def _records(uri: str) -> list[tuple[str, list[int]]]:
    found = []
    for record in tfrecord.records(store.read_bytes(uri), uri):
        features: dict[str, Any] = tfrecord.features(record, uri)
        name = next((features[key] for key in ("id", "video_id") if key in features), None)
        if name:
            found.append((name[0].decode(errors="replace"), features.get("labels", [])))
    return found


def _vocabulary(uri: str) -> dict[int, str]:
    rows = csv.DictReader(io.StringIO(store.read_bytes(uri).decode(errors="replace")))
    try:
        return {int(row["Index"]): row["Name"] for row in rows if row["Name"]}
    except (KeyError, ValueError, TypeError):
        raise DataError(f"{uri} needs the columns Index and Name", uri) from None
