from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raygen.data.catalog import SCHEMA, Catalogue
from raygen.errors import DataError, StorageError


def catalogue(*rows: dict[str, Any]) -> Catalogue:
    usual: dict[str, Any] = {"etag": "e", "offset": 0, "bytes": 9, "label": "a", "duration": 4.0}
    usual |= {"weight": 1.0, "cuts": [], "status": "ok", "reason": ""}
    numbered = [usual | {"uri": f"/{k}.mp4"} | row for k, row in enumerate(rows)]
    return Catalogue(pa.Table.from_pylist(numbered, schema=SCHEMA))


def numbers(found: Catalogue) -> list[int]:
    return [int(uri[1:-4]) for uri in found.table["uri"].to_pylist()]


def test_what_was_written_is_read_on_disk_and_on_s3(tmp_path: Path, s3: str) -> None:
    before = catalogue({"cuts": [1.5, 2.5]}, {"caption": "ein Sprung über den Zaun"})
    for place in (str(tmp_path / "deep" / "c.parquet"), f"{s3}/c.parquet"):
        before.write(place)
        assert Catalogue.read(place).table.equals(before.table)


def test_columns_of_a_scan_are_left_behind(tmp_path: Path) -> None:
    found = catalogue({}, {})
    pq.write_table(found.table.append_column("motion", [[1.0, 2.0]]), tmp_path / "c.parquet")
    assert Catalogue.read(str(tmp_path / "c.parquet")).table.equals(found.table)


def test_what_is_no_catalogue_is_said_to_be_none(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    path.write_bytes(b"PAR1 but not really")
    with pytest.raises(DataError, match="is not a catalogue; make one with `raygen data scan`"):
        Catalogue.read(str(path))
    pq.write_table(pa.table({"uri": ["x"], "etag": ["y"]}), path)
    with pytest.raises(DataError, match=r"not a catalogue of this version .*no column offset"):
        Catalogue.read(str(path))
    sink = io.BytesIO()
    pq.write_table(catalogue(*[{"caption": str(k)} for k in range(999)]).table, sink)
    data = bytearray(sink.getvalue())
    data[100:1500] = b"\xff" * 1400
    path.write_bytes(data)
    with pytest.raises(DataError, match="is broken; make it again"):
        Catalogue.read(str(path))
    with pytest.raises(StorageError):
        Catalogue.read(str(tmp_path / "none.parquet"))


def test_usable_rows_are_whole_and_long_enough_between_cuts() -> None:
    found = catalogue(
        {},
        {"status": "refused", "reason": "is empty"},
        {"duration": 1.9},
        {"cuts": [2.0]},
        {"cuts": [1.0, 3.1]},
        {"cuts": [1.0, 2.0, 3.0]},
        {"duration": None, "status": "refused", "reason": "is empty"},
        {"duration": 9.0, "cuts": [0.5, 8.9]},
    )
    assert numbers(found.usable(2.0)) == [0, 3, 4, 7]
    assert numbers(found.usable(2.05)) == [0, 4, 7]
    assert numbers(found.usable(4.0)) == [0, 7]
    assert numbers(found.usable(0.0)) == [0, 2, 3, 4, 5, 7]
    assert len(catalogue().usable(1.0)) == 0


def test_usable_rows_of_a_part_are_those_of_the_whole() -> None:
    found = catalogue(*[{"cuts": [k / 8]} for k in range(32)])
    part = Catalogue(found.table.slice(20, 8))
    assert numbers(part.usable(3.0)) == [24, 25, 26, 27]


def test_labels_weights_and_selection() -> None:
    found = catalogue({"label": "wave"}, {"label": "bend", "weight": 2.5}, {"label": "wave"})
    assert found.classes == ["bend", "wave"]
    assert found.labels().tolist() == [1, 0, 1]
    assert found.labels().dtype == np.int32
    assert found.weights().tolist() == [1.0, 2.5, 1.0]
    assert found.weights().dtype == np.float32
    assert numbers(found.select([2, 0])) == [2, 0]


def test_the_digest_is_of_rows_and_their_order_not_of_how_they_are_kept() -> None:
    rows = [{"etag": str(k)} for k in range(7)]
    found = catalogue(*rows)
    pieces = pa.concat_tables([found.table.slice(0, 3), found.table.slice(3)])
    assert Catalogue(pieces).digest == found.digest
    assert len(found.digest) == 16
    assert found.select([1, 0, 2, 3, 4, 5, 6]).digest != found.digest
    for change in ({"etag": "x"}, {"offset": 512}, {"uri": "/other.mp4"}):
        assert catalogue(rows[0] | change, *rows[1:]).digest != found.digest


def test_reasons_are_counted_and_those_that_name_another_video_together() -> None:
    twins = [{"status": "refused", "reason": f"is a near duplicate of /{k}.mp4"} for k in range(3)]
    found = catalogue({}, {"status": "refused", "reason": "is empty"}, *twins)
    assert found.refused == {"is a near duplicate": 3, "is empty": 1}


def test_a_hundred_thousand_rows() -> None:
    count = 100_000
    uris = pa.array([f"/clips/{k:08d}.mp4" for k in range(count)])
    filled = {name: pa.nulls(count, SCHEMA.field(name).type) for name in SCHEMA.names}
    filled |= {"uri": uris, "etag": uris, "duration": pa.array(np.full(count, 9.0))}
    filled |= {"label": pa.array([str(k % 7) for k in range(count)])}
    filled |= {"status": pa.array(["ok"] * count), "offset": pa.array(np.zeros(count, int))}
    found = Catalogue(pa.table(filled, schema=SCHEMA))
    assert np.bincount(found.labels()).tolist() == [14286] * 5 + [14285] * 2
    assert len(found.usable(9.0)) == count
    assert found.digest == found.usable(1.0).digest
