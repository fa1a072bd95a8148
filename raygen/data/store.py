"""Objects behind a URI: `s3://` through boto3 (raygen.data.s3), everything else a local path.

`AWS_ENDPOINT_URL` and the usual AWS variables and profiles are honoured. Every failure that a user
can mend leaves as a StorageError that names the URI: an AccessError where nothing else in that
place will work either, an ObjectChanged where the object is not the one that was asked for.
"""

from __future__ import annotations

import io
import os
import tempfile
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import boto3
import pyarrow.fs as pafs

from raygen.data import s3
from raygen.errors import StorageError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_WRITING = ".raygen-writing-"  # a local file that is no object yet: never listed


@dataclass(frozen=True)
class Object:
    """One listed object: its URI, its size in bytes, and its etag (local: mtime and size)."""

    uri: str
    size: int
    etag: str


def is_s3(uri: str) -> bool:
    """Whether `uri` names an S3 object or prefix."""
    return uri.startswith("s3://")


def absolute(uri: str) -> str:
    """The URI that means the same from any working directory."""
    return uri.rstrip("/") if is_s3(uri) else str(Path(uri).expanduser().resolve())


def join(uri: str, *parts: str) -> str:
    """`uri` with `parts` below it."""
    return "/".join([uri.rstrip("/"), *(part.strip("/") for part in parts)])


def list_objects(uri: str, *, start_after: str = "", recursive: bool = True) -> Iterator[Object]:
    """Every object below `uri`, in lexicographic order, in memory that does not grow with them.

    `start_after`, the URI of an object, leaves out those up to it and itself; without `recursive`
    only what lies in the folder itself is listed, and `prefixes` names the folders in it. Raises
    StorageError where the bucket or folder does not exist or may not be read.
    """
    if not is_s3(uri):
        root = Path(absolute(uri))
        found = [root] if root.is_file() else _files(root, recursive)
        for path in found:
            if str(path) > start_after:
                try:
                    stat = path.stat()
                except FileNotFoundError:  # deleted since its folder was read
                    continue
                yield Object(str(path), stat.st_size, _etag(stat))
        return
    bucket, _ = s3.split(uri)
    after = s3.split(start_after)[1] if start_after else ""
    for page in s3.pages(uri, start_after=after, recursive=recursive):
        for item in page.get("Contents", ()):
            if not item["Key"].endswith("/"):
                yield Object(f"s3://{bucket}/{item['Key']}", item["Size"], item["ETag"].strip('"'))


def prefixes(uri: str) -> list[str]:
    """The folders that lie in `uri` itself, sorted: each may be listed apart from the others."""
    if not is_s3(uri):
        root = absolute(uri)
        return [entry.path for entry in _entries(root) if entry.is_dir(follow_symlinks=False)]
    bucket, _ = s3.split(uri)
    return [
        f"s3://{bucket}/{item['Prefix'].rstrip('/')}"
        for page in s3.pages(uri, recursive=False)
        for item in page.get("CommonPrefixes", ())
    ]


def read_bytes(uri: str, *, etag: str | None = None) -> bytes:
    """The whole object.

    Raises StorageError where it is missing or unreadable, ObjectChanged where it is not the one
    that was listed with `etag`.
    """
    if is_s3(uri):
        return s3.get(uri, etag=etag)
    with _open(uri, etag) as file:
        return file.read()


def read_range(uri: str, offset: int, length: int, *, etag: str | None = None) -> bytes:
    """`length` bytes from `offset` on; fewer only where the object ends before. Raises alike."""
    if length == 0:
        return b""
    if is_s3(uri):
        return s3.get(uri, (offset, offset + length), etag)
    with _open(uri, etag) as file:
        file.seek(offset)
        return file.read(length)


class RangedFile(io.RawIOBase):
    """`size` bytes of an object from `offset` on as a seekable file that fetches what is read.

    It fetches whole blocks, more of them at once as long as the reading runs on, and keeps the last
    few MiB: a demuxer that goes from the front to an index at the back and returns reads the object
    hardly at all. `bytes_read` and `requests` count what was fetched. Errors are read_range's.
    """

    KEPT, AT_ONCE = 32, 8  # blocks

    def __init__(
        self,
        uri: str,
        size: int,
        *,
        offset: int = 0,
        etag: str | None = None,
        block: int = 256 << 10,
    ) -> None:
        super().__init__()
        self.bytes_read = self.requests = 0
        self._uri, self._size, self._offset, self._etag = uri, size, offset, etag
        self._block = block
        self._blocks: OrderedDict[int, bytes] = OrderedDict()
        self._position = 0
        self._run, self._run_end = 0, 0

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def tell(self) -> int:
        """The position in bytes."""
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Moves without reading; beyond the end there is nothing to read."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise ValueError(f"position {base + offset} is before the start of {self._uri}")
        self._position = base + offset
        return self._position

    def readinto(self, buffer: WriteableBuffer) -> int:
        """Fills `buffer`, as far as there is something to fill it with."""
        view = memoryview(buffer).cast("B")
        wanted = min(len(view), max(0, self._size - self._position))
        done = 0
        while done < wanted:
            number, begin = divmod(self._position, self._block)
            piece = self._get(number, wanted - done)[begin : begin + wanted - done]
            if not piece:  # the object is shorter than its catalogue says
                break
            view[done : done + len(piece)] = piece
            done += len(piece)
            self._position += len(piece)
        return done

    def _get(self, number: int, wanted: int) -> bytes:
        if number not in self._blocks:
            self._fetch(number, wanted)
        self._blocks.move_to_end(number)
        return self._blocks[number]

    def _fetch(self, number: int, wanted: int) -> None:
        ahead = 2 * self._run if number == self._run_end else 1
        left = -(-self._size // self._block) - number
        self._run = min(left, self.AT_ONCE, max(1, ahead, wanted // self._block))
        self._run_end = number + self._run
        begin = number * self._block
        length = min(self._run * self._block, self._size - begin)
        data = read_range(self._uri, self._offset + begin, length, etag=self._etag)
        self.requests += 1
        self.bytes_read += len(data)
        for k in range(self._run):
            self._blocks[number + k] = data[k * self._block : (k + 1) * self._block]
        while len(self._blocks) > self.KEPT:
            self._blocks.popitem(last=False)


def write_bytes(uri: str, data: bytes, *, only_if_absent: bool = False) -> bool:
    """Writes the object whole or not at all, and returns whether it did.

    With `only_if_absent` an object that is there stays, and of several writers at once one wins:
    `data` that names its writer tells it apart. Raises StorageError where writing is not allowed.
    """
    if is_s3(uri):
        return s3.put(uri, data, only_if_absent=only_if_absent)
    path = Path(uri)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=_WRITING, delete=False) as file:
            written = Path(file.name)
            try:
                file.write(data)
                file.flush()
                written.chmod(0o644)
                if only_if_absent:
                    path.hardlink_to(written)
                else:
                    written.replace(path)
            except FileExistsError:
                return False
            finally:
                written.unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(f"cannot write {uri}: {error.strerror}", uri) from None
    return True


def exists(uri: str) -> bool:
    """Whether there is an object at `uri`."""
    return s3.head(uri) if is_s3(uri) else Path(uri).is_file()


def delete(uri: str) -> None:
    """Removes the object at `uri`, if there is one."""
    if is_s3(uri):
        s3.remove(uri)
        return
    try:
        Path(uri).unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(f"cannot delete {uri}: {error.strerror}", uri) from None


def copy(source: str, target: str) -> None:
    """Copies an object, in memory that does not grow with it. Raises StorageError."""
    (reads, origin), (writes, place) = open_storage(source), open_storage(target)
    try:
        if not is_s3(target):
            writes.create_dir(place.rpartition("/")[0])
        pafs.copy_files(
            origin, place, source_filesystem=reads, destination_filesystem=writes, use_threads=False
        )
    except OSError as error:
        raise StorageError(f"cannot copy {source} to {target}: {error}", target) from None


def check_writable(uri: str) -> None:
    """Raises StorageError unless an object below `uri` can be written."""
    probe = join(uri, ".raygen-write-check")
    write_bytes(probe, b"")
    delete(probe)


def open_storage(uri: str) -> tuple[pafs.FileSystem, str]:
    """`uri` as Arrow knows it: the filesystem, and the path within it (Ray Train, Parquet)."""
    if not is_s3(uri):
        return pafs.LocalFileSystem(), absolute(uri)
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
    scheme, _, host = endpoint.rpartition("://")
    region = boto3.Session().region_name or "us-east-1"
    filesystem = pafs.S3FileSystem(
        endpoint_override=host or None, scheme=scheme or "https", region=region
    )
    return filesystem, uri.removeprefix("s3://").rstrip("/")


@contextmanager
def _open(uri: str, etag: str | None) -> Iterator[BinaryIO]:
    try:
        with Path(uri).open("rb") as file:
            if etag is not None and _etag(os.fstat(file.fileno())) != etag:
                raise s3.changed(uri)
            yield file
    except OSError as error:
        raise StorageError(f"cannot read {uri}: {error.strerror}", uri) from None


def _etag(stat: os.stat_result) -> str:
    return f"{stat.st_mtime_ns:x}-{stat.st_size:x}"


def _files(folder: str | Path, recursive: bool) -> Iterator[Path]:
    """The files below `folder` in the order in which S3 lists keys; links to folders are not."""
    for entry in _entries(folder):
        if entry.name.startswith(_WRITING):
            continue
        if entry.is_file():
            yield Path(entry.path)
        elif recursive and entry.is_dir(follow_symlinks=False):
            yield from _files(entry.path, recursive)


def _entries(folder: str | Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            # S3 compares whole keys, and in those a folder's name goes on with a slash.
            return sorted(entries, key=lambda e: e.name if e.is_file() else e.name + "/")
    except FileNotFoundError:
        raise StorageError(f"no folder at {folder}", str(folder)) from None
    except OSError as error:
        raise StorageError(f"cannot list {folder}: {error.strerror}", str(folder)) from None
