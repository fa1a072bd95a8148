"""What a catalogue holds: counts and quantiles for a terminal, one clip a class on a sheet.

raygen data inspect catalogue.parquet -o sheet.png
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raygen import video
from raygen.data import decode
from raygen.data.catalog import Catalogue
from raygen.data.probing import open_row
from raygen.data.screen import REASONS
from raygen.errors import AccessError, DataError, StorageError

TOP = 20
SHEET_CLASSES, SHEET_FRAMES, SHEET_SIZE = 16, 8, 96
SHEET_SECONDS = 2.0
SHEET_TRIES = 3  # videos of a class
_QUANTILES = (0.0, 0.05, 0.5, 0.95, 1.0)

Section = tuple[str, list[str], list[list[str]]]
"""A title, the names of columns, and rows of them."""


def summary(catalogue: Catalogue) -> Iterator[Section]:
    """The tables that describe the catalogue, the most asked for first."""
    table = catalogue.table
    ok = table.filter(pc.equal(table["status"], "ok"))
    count = [f"{len(ok):,} usable", f"{len(table) - len(ok):,} refused"]
    seconds, size = (pc.sum(ok[name]).as_py() or 0 for name in ("duration", "bytes"))
    yield "videos", count, [[hours(seconds), amount(size)]]
    yield classes(catalogue)
    for name in ("split", "codec"):
        yield _counts(name, ok, name)
    yield (
        "captions and cuts",
        ["videos with a caption", "videos with cuts"],
        [
            [
                f"{_true(pc.not_equal(ok['caption'], '')):,}",
                f"{_true(pc.greater(pc.list_value_length(ok['cuts']), 0)):,}",
            ]
        ],
    )
    if len(ok):
        columns = ["", *(f"{q:.0%}" for q in _QUANTILES)]
        rows = [
            ["seconds", *_quantiles(ok["duration"], "{:.2f}")],
            ["frames a second", *_quantiles(ok["fps"], "{:.2f}")],
            ["width", *_quantiles(ok["width"], "{:.0f}")],
            ["height", *_quantiles(ok["height"], "{:.0f}")],
            ["MB", *_quantiles(pc.divide(ok["bytes"].cast(pa.float64()), 1e6), "{:.2f}")],
        ]
        yield "from the least to the most", columns, rows
    refused = [[f"{number:,}", reason] for reason, number in catalogue.refused.most_common(TOP)]
    if refused:
        yield "refused", ["videos", "because it"], refused


def classes(catalogue: Catalogue) -> Section:
    """The TOP classes of what is not refused, by number of videos."""
    table = catalogue.table
    return _counts("label", table.filter(pc.equal(table["status"], "ok")), "class")


def savings(catalogue: Catalogue) -> list[str]:
    """A line for each screen that dropped something: videos, bytes, and the decoding it saves."""
    table = catalogue.table
    lines = []
    everything = pc.sum(table["duration"]).as_py() or 0.0
    for reason in REASONS:
        dropped = table.filter(pc.starts_with(table["reason"], reason))
        if len(dropped):
            seconds, size = (pc.sum(dropped[name]).as_py() for name in ("duration", "bytes"))
            why = reason.removesuffix(" of")
            lines.append(
                f"dropped {len(dropped):,}, each of which {why}: {amount(size)}, {hours(seconds)}, "
                f"{seconds / everything:.1%} of the video to decode"
            )
    return lines


def sheet(catalogue: Catalogue) -> bytes:
    """A PNG contact sheet: one clip for each of the SHEET_CLASSES largest classes.

    Raises DataError where none of them decodes, AccessError where storage is out of reach.
    """
    ok = catalogue.usable(0.0)
    labels = ok.labels()
    numbers = np.bincount(labels, minlength=len(ok.classes)) if len(ok) else np.zeros(0, int)
    clips, names = [], []
    for label in np.argsort(-numbers, kind="stable")[:SHEET_CLASSES]:
        for row in np.flatnonzero(labels == label)[:SHEET_TRIES]:
            try:
                clips.append(_clip({name: ok.table[name][int(row)].as_py() for name in _READ}))
            except AccessError:
                raise
            except (DataError, StorageError):
                continue
            names.append(ok.classes[label])
            break
    if not clips:
        raise DataError("no video of the catalogue decodes: there is nothing to draw")
    return video.contact_sheet(np.stack(clips), names, columns=SHEET_FRAMES)


_READ = ("uri", "etag", "offset", "bytes", "duration")


def _clip(row: dict[str, Any]) -> decode.Clip:
    """SHEET_SECONDS from the middle of a video, or all of a shorter one."""
    seconds = min(row["duration"], SHEET_SECONDS)
    start = (row["duration"] - seconds) / 2
    rate = SHEET_FRAMES / max(seconds, 1e-3)
    return decode.decode(open_row(row), start=start, frames=SHEET_FRAMES, fps=rate, size=SHEET_SIZE)


def _counts(name: str, table: pa.Table, title: str) -> Section:
    grouped = table.group_by(name).aggregate([([], "count_all"), ("duration", "sum")])
    order = pc.sort_indices(grouped, [("count_all", "descending"), (name, "ascending")])
    rows = [
        [row[name] or "(none)", f"{row['count_all']:,}", hours(row["duration_sum"] or 0.0)]
        for row in grouped.take(order[:TOP]).to_pylist()
    ]
    if len(grouped) > TOP:
        rows.append([f"and {len(grouped) - TOP:,} more", "", ""])
    return f"{title}: {len(grouped):,}", [title, "videos", "of video"], rows


def _true(flags: Any) -> int:
    return int(pc.sum(flags).as_py() or 0)


def _quantiles(column: Any, form: str) -> list[str]:
    return [form.format(value.as_py()) for value in pc.quantile(column, list(_QUANTILES))]


def hours(seconds: float) -> str:
    """Seconds as a person says them."""
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:,.1f} h"


def amount(size: float) -> str:
    """Bytes as a person says them."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6)):
        if size >= scale:
            return f"{size / scale:,.1f} {unit}"
    return f"{size / 1e3:,.1f} kB"
