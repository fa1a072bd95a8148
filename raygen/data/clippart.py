"""One Parquet file of decoded clips: how it is written, found one's way in, and read clip by clip.

Each clip is a row group: the pixels as ZSTD, the small columns beside them in the footer as well,
as statistics. So the footer alone is the index, any reader of Parquet reads the file, and this one
reads a clip as exactly its bytes: 0.14 to 0.2 ms for 16 x 64 x 64 pixels, decompression included.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raygen.data.frames import Clip

SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("frames", pa.int32(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("check", pa.int64(), nullable=False),  # `_check` of the clip
        pa.field("clip", pa.binary(), nullable=False),  # uint8 [T, H, W, 3], RGB
    ]
)
_INDEXED = SCHEMA.names[:-1]
# ZSTD at -1 is read in two thirds of the time of level 1, for a tenth more bytes.
_LEVEL = -1
_MAGIC = b"\x28\xb5\x2f\xfd"
_HEADER_BYTES = 64
_CODEC = pa.Codec("zstd")


class TornError(Exception):
    """A file that is not what was written."""


class Place(NamedTuple):
    """Where a clip lies: `length` bytes from `offset` of the file `part`."""

    part: str
    offset: int
    length: int
    shape: tuple[int, int, int, int]
    check: int


def write(clips: Mapping[str, Clip]) -> bytes:
    """A file of these clips, uint8 [T, H, W, 3], by their keys."""
    shapes = [clip.shape for clip in clips.values()]
    sizes = [[shape[axis] for shape in shapes] for axis in range(3)]
    checks = [_check(clip.reshape(-1)) for clip in clips.values()]
    pixels = [clip.tobytes() for clip in clips.values()]
    sink = io.BytesIO()
    pq.write_table(
        pa.table([list(clips), *sizes, checks, pixels], schema=SCHEMA),
        sink,
        row_group_size=1,
        compression=dict.fromkeys(_INDEXED, "none") | {"clip": "zstd"},
        compression_level={"clip": _LEVEL},
        use_dictionary=False,
        write_statistics=_INDEXED,
        column_encoding={"clip": "PLAIN"},
        store_schema=False,
    )
    return sink.getvalue()


def footer_bytes(tail: bytes) -> int:
    """How many of a file's last bytes `places` needs, by the last eight. Raises TornError."""
    if len(tail) < 8 or tail[-4:] != b"PAR1":
        raise TornError
    return int.from_bytes(tail[-8:-4], "little") + 8


def places(part: str, tail: bytes) -> dict[str, Place]:
    """What the file called `part` holds, by the end of it. Raises TornError."""
    try:
        metadata = pq.read_metadata(pa.BufferReader(tail))
        found = {}
        for group in map(metadata.row_group, range(metadata.num_row_groups)):
            *indexed, clip = map(group.column, range(len(SCHEMA)))
            key, frames, height, width, check = (column.statistics.min for column in indexed)
            span = clip.data_page_offset, clip.total_compressed_size
            found[key] = Place(part, *span, (frames, height, width, 3), check)
    except (pa.ArrowException, OSError, ValueError, AttributeError) as error:
        raise TornError from error
    return found


def read(place: Place, data: memoryview) -> Clip:
    """The clip [T, H, W, 3] whose bytes `data` begins with. Raises TornError.

    They are a data page of Parquet: a header, then ZSTD of the clip's length (uint32) and pixels.
    Arrow's reader would parse the whole footer again for each clip.
    """
    size = math.prod(place.shape)
    begin = bytes(data[:_HEADER_BYTES]).find(_MAGIC)
    if begin < 0:
        raise TornError
    try:
        page = _CODEC.decompress(data[begin : place.length], size + 4)
    except (pa.ArrowException, OSError) as error:
        raise TornError from error
    pixels = np.frombuffer(page, np.uint8, size, offset=4)
    if _check(pixels) != place.check:
        raise TornError
    return pixels.reshape(place.shape)


def _check(pixels: Clip) -> int:
    """The sum of the 64-bit words modulo 2**64, read as a signed number; CRC costs 3 times that."""
    return int(np.frombuffer(pixels, np.int64, pixels.nbytes // 8).sum())
