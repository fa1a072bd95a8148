"""The clip cache filled ahead: every clip that the plan may draw, once, and the bill."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import ray

from raygen.config import CacheConfig, DataConfig
from raygen.data import clipstore, decode, grid, scan, store
from raygen.data.catalog import SCHEMA, Catalogue
from raygen.data.clipstore import ClipStore
from raygen.data.materialize import materialize
from raygen.data.savings import Report
from raygen.errors import AccessError, ConfigError, DataError, RaygenError, StorageError

CENTRE = (0.5, 0.5)
CONFIG = DataConfig(frames=8, fps=16, size=32)


@pytest.fixture(scope="module", autouse=True)
def _ray(_s3_server: str) -> Iterator[None]:
    """After the S3 server, so that Ray's workers know where it is."""
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def catalogue(shapes: Path) -> Catalogue:
    return scan.scan(str(shapes))


def keys(catalogue: Catalogue, config: DataConfig) -> list[str]:
    return [
        clipstore.key(row["uri"], row["etag"], row["offset"], first, config, CENTRE)
        for row in catalogue.table.to_pylist()
        for first in grid.starts(0, row["duration"], config)
    ]


def test_every_clip_is_decoded_once(catalogue: Catalogue, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    report = materialize(catalogue, CONFIG, str(tmp_path), on_progress=lambda *at: told.append(at))
    # 24 frames at 16 fps: three clips of eight.
    assert (report.videos, report.clips, report.decoded, report.kept) == (12, 36, 36, 36)
    assert told[-1] == (36, 36)
    assert not report.refused
    assert 0 < report.cache_bytes <= sum(p.stat().st_size for p in tmp_path.iterdir())
    assert report.source_bytes == sum(catalogue.table["bytes"].to_pylist())
    assert 0 < report.read_s < report.epoch_decode_s / 12
    # Of a video that is decoded whole, an epoch's one clip costs as much as all of them.
    assert report.epoch_decode_s == pytest.approx(report.decode_s)

    again = materialize(catalogue, CONFIG, str(tmp_path))
    assert (again.decoded, again.decode_s, again.kept) == (0, 0.0, 36)
    assert again.cache_bytes == report.cache_bytes

    cache = ClipStore(str(tmp_path), 10**9)
    found = cache.get_many(keys(catalogue, CONFIG))
    assert len(found) == 36
    row = catalogue.table.to_pylist()[5]
    for first in (0, 8, 16):
        name = clipstore.key(row["uri"], row["etag"], 0, first, CONFIG, CENTRE)
        data = Path(row["uri"]).read_bytes()
        expected = decode.decode(data, start=first / 16, frames=8, fps=16, size=32)
        np.testing.assert_array_equal(found[name], expected)


def test_long_videos_are_decoded_clip_by_clip(catalogue: Catalogue, tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"cache_mb": 0})
    report = materialize(catalogue, config, str(tmp_path))
    assert (report.decoded, report.kept) == (36, 36)
    assert report.epoch_decode_s == pytest.approx(report.decode_s / 3, rel=0.5)
    # How a decoder came by the pixels is no part of the key.
    assert materialize(catalogue, CONFIG, str(tmp_path)).decoded == 0


def test_no_clip_straddles_a_cut(catalogue: Catalogue, tmp_path: Path) -> None:
    cuts = pa.array([[0.7]] * len(catalogue), SCHEMA.field("cuts").type)
    at = SCHEMA.get_field_index("cuts")
    cut = Catalogue(catalogue.table.set_column(at, SCHEMA.field("cuts"), cuts))
    report = materialize(cut, CONFIG, str(tmp_path))
    # Frames 0 to 10 hold one clip of eight, frames 12 to 23 another.
    assert report.clips == report.kept == 24
    row = cut.table.to_pylist()[0]
    names = [clipstore.key(row["uri"], row["etag"], 0, first, CONFIG, CENTRE) for first in (0, 12)]
    assert ClipStore(str(tmp_path), 10**9).kept(names) == set(names)


def test_a_broken_video_is_left_out(shapes: Path, tmp_path: Path) -> None:
    folder = tmp_path / "clips"
    shutil.copytree(shapes, folder)
    found = scan.scan(str(folder))
    broken = Path(found.table["uri"][3].as_py())
    broken.write_bytes(b"<html>not found</html>")
    report = materialize(found, CONFIG, str(tmp_path / "cache"))
    assert report.refused.total() == 1
    assert report.kept == 33
    assert any(line.startswith("refused 1: ") for line in report.lines("local", 0.04))


def test_a_cache_that_is_too_small_is_said(catalogue: Catalogue, tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"cache": CacheConfig(gb=60e3 / 1e9)})
    report = materialize(catalogue, config, str(tmp_path))
    assert report.full
    assert 0 < report.kept < 36
    assert report.cache_bytes <= 60e3
    assert any("data.cache.gb" in line for line in report.lines("local", 0.04))


def test_s3_to_s3(s3: str, shapes: Path) -> None:
    for path in sorted(shapes.rglob("*.mp4"))[:6]:
        store.write_bytes(store.join(s3, "clips", path.parent.name, path.name), path.read_bytes())
    found = scan.scan(store.join(s3, "clips"))
    report = materialize(found, CONFIG, store.join(s3, "cache"))
    assert (report.decoded, report.kept, report.gets_saved) == (18, 18, 0)
    assert report.dollars_month == pytest.approx(report.cache_bytes / 1e9 * 0.023)
    assert materialize(found, CONFIG, store.join(s3, "cache")).decoded == 0


def test_what_a_user_can_mend_is_said_in_one_line(catalogue: Catalogue, tmp_path: Path) -> None:
    random = CONFIG.model_copy(update={"crop": "random"})
    with pytest.raises(ConfigError, match=r"data\.crop=centre"):
        materialize(catalogue, random, str(tmp_path))
    long = CONFIG.model_copy(update={"frames": 256})
    with pytest.raises(DataError, match="none of the 12 videos"):
        materialize(catalogue, long, str(tmp_path))
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot keep clips"):
        materialize(catalogue, CONFIG, str(tmp_path / "file"))


def test_storage_out_of_reach_ends_it(s3: str, shapes: Path, tmp_path: Path) -> None:
    path = next(shapes.rglob("*.mp4"))
    store.write_bytes(store.join(s3, "clips/a.mp4"), path.read_bytes())
    found = scan.scan(store.join(s3, "clips"))
    at = SCHEMA.get_field_index("uri")
    gone = pa.array(["s3://no-such-bucket-anywhere/a.mp4"])
    lost = Catalogue(found.table.set_column(at, SCHEMA.field("uri"), gone))
    with pytest.raises(RaygenError, match="no-such-bucket-anywhere"):
        materialize(lost, CONFIG, str(tmp_path))
    with pytest.raises(AccessError, match="no-such-bucket-anywhere"):
        materialize(found, CONFIG, "s3://no-such-bucket-anywhere/cache")


def bill(**changes: Any) -> Report:
    report = Report("s3://bucket/cache", 1000, 3000, 10**9, True, kept=3000, decoded=3000)
    report.cache_bytes, report.decode_s, report.epoch_decode_s = 10**9, 120.0, 60.0
    report.read_s = 0.3e-3
    for name, value in changes.items():
        setattr(report, name, value)
    return report


def test_the_bill() -> None:
    report = bill()
    assert report.saved_s == pytest.approx(59.7)
    assert report.dollars_month == pytest.approx(0.023)
    assert report.dollars_saved(0.36) == pytest.approx(0.00597)
    # 0.012 for decoding and 0.023 for a month, at 0.00597 an epoch.
    assert report.payback(0.36) == 6
    lines = list(report.lines("c7i.large", 0.36))
    assert lines == [
        "s3://bucket/cache: all 3000 clips of 1000 videos, 1.00 GB for 1.00 GB of video; "
        "3000 decoded now",
        "decoding once cost 2.0 CPU-min; an epoch from the cache saves 59.7 CPU-s ($0.00597 on "
        "c7i.large) and 0 GETs: 0.30 ms a clip in place of 60.00",
        "keeping it costs $0.023 a month (2025-06-15); pays back after 6 epochs",
    ]


def test_a_disk_costs_nothing_and_saves_requests() -> None:
    report = bill(uri="/cache")
    assert report.dollars_month == 0
    assert report.gets_saved == 1000
    assert report.dollars_saved(0.36) == pytest.approx(0.00597 + 0.0004)


def test_a_cache_that_is_slower_does_not_pay() -> None:
    report = bill(read_s=0.1)
    assert report.payback(0.36) is None
    assert "does not pay back" in list(report.lines("local", 0.36))[-1]


def test_the_pieces_of_a_long_video_share_its_clips(tmp_path: Path) -> None:
    """A video of ten minutes has pieces for several decoders, and no clip twice."""
    from raygen.data.materialize import _blocks, _pieces

    row = dict.fromkeys(SCHEMA.names) | {
        "uri": "/v.mp4",
        "etag": "e",
        "offset": 0,
        "bytes": 1,
        "duration": 600.0,
    }
    config = CONFIG.model_copy(update={"cache_mb": 1})
    pieces = list(_pieces(Catalogue(pa.Table.from_pylist([row], SCHEMA)), config))
    firsts = list(itertools.chain.from_iterable(piece["first"] for piece in pieces))
    assert firsts == list(range(0, 9600, 8))
    assert len(pieces) == len(list(_blocks(pieces))) == 19
    assert not any(piece["whole"] for piece in pieces)
