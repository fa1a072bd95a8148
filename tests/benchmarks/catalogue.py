"""A second scan's memory and time over the number of objects.

    python -m tests.benchmarks.catalogue --objects 10000,1000000 --json PATH

The listing is generated, and so is the catalogue of the first scan, which knows all of its videos
but one in a thousand: those are one local file under many names, and are probed. Each size is a
process of its own, whose peak memory counts; `start` is the same process before it begins.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from raygen.config import LimitsConfig
from raygen.data.catalog import SCHEMA
from raygen.data.labels import Folders
from raygen.data.listing import GROUP
from raygen.data.probing import LocalWorkers
from raygen.data.scan import GROUP_ROWS, write_rows
from raygen.data.screen import NO_SCREENS
from raygen.data.store import Object
from tests.clips import encode, moving

NEW_EVERY = 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--objects", default="10000,1000000", help="sizes, with commas between")
    parser.add_argument("--json", type=Path, help="where the figures go, as one flat object")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(arguments.one)))  # noqa: T201
        return
    table = Table("objects", "start MB", "peak MB", "seconds", "objects/s", "probed")
    figures: dict[str, float] = {}
    for count in map(int, arguments.objects.split(",")):
        command = [sys.executable, "-m", "tests.benchmarks.catalogue", "--one", str(count)]
        result = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
        figures |= {f"{name}_{count}": value for name, value in result.items()}
        table.add_row(
            f"{count:,}",
            f"{result['start_mb']:.0f}",
            f"{result['peak_mb']:.0f}",
            f"{result['seconds']:.1f}",
            f"{count / result['seconds']:,.0f}",
            f"{result['probed']:,.0f}",
        )
    Console().print(table)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


def measure(count: int) -> dict[str, float]:
    """A second scan of `count` objects."""
    with tempfile.TemporaryDirectory() as folder:
        video = Path(folder) / "clip.mp4"
        video.write_bytes(encode(moving("red-circle-right", 0, frames=8)))
        before, after = (str(Path(folder) / name) for name in ("before.parquet", "after.parquet"))
        with pq.ParquetWriter(before, SCHEMA, compression="zstd") as writer:
            for objects in listing(count, video, GROUP_ROWS):
                writer.write_table(pa.Table.from_pylist(rows(objects), schema=SCHEMA))
        start, began = peak_mb(), time.monotonic()
        report = write_rows(
            listing(count, video, GROUP),
            folder,
            after,
            labels=Folders(),
            previous=before,
            screens=NO_SCREENS,
            on_probe=lambda done: None,
            workers=LocalWorkers(LimitsConfig()),
        )
        seconds = time.monotonic() - began
        written = pq.read_metadata(after).num_rows
        assert written == report.listed == count
    return {
        "start_mb": start,
        "peak_mb": peak_mb(),
        "seconds": seconds,
        "probed": float(report.probed),
    }


def listing(count: int, video: Path, group: int) -> Iterator[list[Object]]:
    """Objects as a bucket lists them, in order; one in NEW_EVERY is really there."""
    size, folder = video.stat().st_size, video.parent
    stat = video.stat()
    etag = f"{stat.st_mtime_ns:x}-{stat.st_size:x}"
    for first in range(0, count, group):
        numbers = range(first, min(first + group, count))
        yield [
            Object(str(video), size, etag)
            if number % NEW_EVERY == 0
            else Object(
                f"{folder}/class-{number // 9999:03d}/{number:09d}.mp4", size, f"{number:x}"
            )
            for number in numbers
        ]


def rows(objects: list[Object]) -> list[dict[str, object]]:
    """What the first scan would have said of those that are not really there."""
    usual: dict[str, object] = {"offset": 0, "label": "x", "caption": "", "split": "", "cuts": []}
    usual |= {"duration": 10.0, "frames": 300, "fps": 30.0, "width": 320, "height": 240}
    usual |= {"rotation": 0, "codec": "h264", "weight": 1.0, "status": "ok", "reason": ""}
    return [
        usual | {"uri": item.uri, "etag": item.etag, "bytes": item.size}
        for item in objects
        if "class-" in item.uri
    ]


def peak_mb() -> float:
    """The most memory that this process has had, MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
