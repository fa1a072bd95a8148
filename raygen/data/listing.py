"""A listing kept in a file: what lies below a prefix, in order, in flat memory.

Keys are cut into ranges at the names of folders, and the ranges listed in parallel; each goes into
a file of its own, so that the order of the whole is the order of the keys.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

import pyarrow as pa

from raygen.data import store
from raygen.data.store import Object

SHARD = ".tar"
SUFFIXES = frozenset(
    ".mp4 .m4v .mov .mkv .webm .avi .flv .ts .mts .m2ts .mpg .mpeg .3gp .wmv .ogv .gif".split()
)
LISTERS = 16
RANGES = 64  # at most, and where the first folders are fewer than LISTERS, theirs are asked for
GROUP = 64  # objects

_SCHEMA = pa.schema([("uri", pa.string()), ("size", pa.int64()), ("etag", pa.string())])


def suffix(path: str) -> str:
    """The last suffix, in lower case, with its dot."""
    return PurePosixPath(path).suffix.lower()


class Listing:
    """Videos and tar shards below `root`, listed into files in `folder` when it is made.

    Raises StorageError where `root` does not exist or may not be read.
    """

    def __init__(self, folder: Path, root: str) -> None:
        ranges = list(enumerate(_ranges(root)))
        self.files = [folder / f"{number}.listing" for number, _ in ranges]
        with ThreadPoolExecutor(LISTERS) as pool:
            counts = pool.map(lambda part: _keep(part[1], self.files[part[0]]), ranges)
            self.count = sum(counts)

    def groups(self) -> Iterator[list[Object]]:
        """The objects in order, up to GROUP at a time."""
        for path in self.files:
            with pa.OSFile(str(path)) as file, pa.ipc.open_stream(file) as reader:
                for batch in reader:
                    columns = batch.to_pydict()
                    yield [Object(*values) for values in zip(*columns.values(), strict=True)]


def _ranges(root: str) -> list[Iterator[Object]]:
    edges = _edges(root) if store.is_s3(root) else []
    pairs = itertools.pairwise([None, *edges, None])
    return [_between(root, low, high) for low, high in pairs]


def _edges(root: str) -> list[str]:
    edges = store.prefixes(root)
    if len(edges) < LISTERS:
        deeper = [folder for edge in edges for folder in store.prefixes(edge)]
        edges = sorted({*edges, *deeper})
    return [f"{edge}/" for edge in edges[:: -(-len(edges) // RANGES) or 1]]


def _between(root: str, low: str | None, high: str | None) -> Iterator[Object]:
    """Objects whose URI is beyond `low` and before `high`, both with a slash at the end."""
    found = store.list_objects(root, start_after=low or "")
    return itertools.takewhile(lambda item: high is None or item.uri < high, found)


def _keep(objects: Iterable[Object], path: Path) -> int:
    wanted = (item for item in objects if (end := suffix(item.uri)) in SUFFIXES or end == SHARD)
    count = 0
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, _SCHEMA) as writer:
        while group := list(itertools.islice(wanted, GROUP)):
            rows = [{"uri": item.uri, "size": item.size, "etag": item.etag} for item in group]
            writer.write_batch(pa.RecordBatch.from_pylist(rows, schema=_SCHEMA))
            count += len(group)
    return count
