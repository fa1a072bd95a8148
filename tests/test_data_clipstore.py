"""Decoded clips kept in Parquet parts: bounded, shared between processes, unharmed by crashes."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from raygen.config import DataConfig
from raygen.data import clipstore, grid, store
from raygen.data.clipstore import ClipStore
from raygen.data.frames import Clip
from raygen.errors import AccessError, StorageError

GB = 10**9
CONFIG = DataConfig(frames=16, fps=16, size=32)


def clip(seed: int, shape: tuple[int, int, int] = (4, 16, 16)) -> Clip:
    """Noise, so that ZSTD cannot make it small: a limit in bytes means what it says."""
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), np.uint8)


def key(n: int) -> str:
    return f"{n:032x}"


def parts(folder: Path) -> list[Path]:
    return sorted(folder.glob("clips-*.parquet"))


def put(folder: str, seeds: range, limit: int = GB) -> None:
    """What the writers in other processes run."""
    cache = ClipStore(folder, limit)
    for seed in seeds:
        cache.put(key(seed), clip(seed))
    cache.close()


def other_process(code: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", f"from tests.test_data_clipstore import *\n{code}"],
        cwd=Path(__file__).parents[1],
        stderr=subprocess.PIPE,
    )


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every miss looks for new parts."""
    monkeypatch.setattr(clipstore, "REFRESH_S", 0.0)


def test_clips_come_back_as_they_went_in(tmp_path: Path) -> None:
    shapes = [(4, 16, 16), (16, 64, 64), (8, 32, 48)]
    clips = {key(i): clip(i, shapes[i % 3]) for i in range(150)}
    cache = ClipStore(str(tmp_path), GB)
    for name, each in clips.items():
        cache.put(name, each)
    assert len(parts(tmp_path)) == 2  # of 64 clips each, the rest is held
    for reader in (cache, ClipStore(str(tmp_path), GB)):
        found = reader.get_many(list(clips))
        assert len(found) == (150 if reader is cache else 128)
        for name, each in found.items():
            np.testing.assert_array_equal(each, clips[name])
            each[:] = 0
        for name, each in reader.get_many(list(found)).items():
            np.testing.assert_array_equal(each, clips[name])
    assert reader.stats.hits == 256
    assert reader.stats.misses == 22
    cache.close()
    assert cache.stats.bytes_written == sum(part.stat().st_size for part in parts(tmp_path))
    assert ClipStore(str(tmp_path), GB).kept(clips) == clips.keys()


def test_a_part_is_filled_by_bytes_too(tmp_path: Path) -> None:
    cache = ClipStore(str(tmp_path), 8 * 100_000)
    for i in range(3):
        cache.put(key(i), clip(i, (16, 32, 32)))  # 49,152 bytes, an eighth of the limit is 100,000
    assert len(parts(tmp_path)) == 1


def test_what_is_put_may_change_afterwards(tmp_path: Path) -> None:
    cache, shared = ClipStore(str(tmp_path), GB), clip(0)
    cache.put(key(0), shared)
    shared[:] = 0
    np.testing.assert_array_equal(cache.get_many([key(0)])[key(0)], clip(0))


def test_parts_are_parquet_that_anyone_reads(tmp_path: Path) -> None:
    put(str(tmp_path), range(3))
    (part,) = parts(tmp_path)
    row = pq.read_table(part).to_pylist()[1]
    assert (row["key"], row["frames"], row["height"], row["width"]) == (key(1), 4, 16, 16)
    assert row["clip"] == clip(1).tobytes()
    metadata = pq.read_metadata(part)
    assert metadata.num_row_groups == 3
    assert metadata.row_group(0).column(metadata.num_columns - 1).compression == "ZSTD"


def test_still_pictures_take_little_room(tmp_path: Path) -> None:
    cache = ClipStore(str(tmp_path), GB)
    cache.put(key(0), np.full((16, 64, 64, 3), 200, np.uint8))
    cache.close()
    assert cache.stats.bytes_written < 4000


def test_a_random_clip_is_read_alone(tmp_path: Path) -> None:
    cache = ClipStore(str(tmp_path), GB)
    for i in range(20):
        cache.put(key(i), clip(i, (16, 64, 64)))
    cache.close()
    reader = ClipStore(str(tmp_path), GB)
    reader.get_many([key(7)])
    assert reader.stats.bytes_read < 1.1 * 16 * 64 * 64 * 3
    reader.get_many([key(8), key(9)])
    assert reader.stats.bytes_read < 3.2 * 16 * 64 * 64 * 3


def test_the_key_holds_everything_that_decides_the_pixels() -> None:
    base = ("s3://b/v.mp4", "etag", 0, 16, CONFIG, (0.5, 0.5))
    others = [
        ("s3://b/w.mp4", *base[1:]),
        (base[0], "other", *base[2:]),
        (*base[:2], 512, *base[3:]),
        (*base[:3], 32, *base[4:]),
        (*base[:5], (0.5, 0.25)),
        *[
            (*base[:4], CONFIG.model_copy(update=change), base[5])
            for change in ({"frames": 8}, {"fps": 8.0}, {"size": 48})
        ],
    ]
    keys = {clipstore.key(*spec) for spec in [base, *others]}
    assert len(keys) == 1 + len(others)
    same = CONFIG.model_copy(update={"prefetch": 9, "fps": 16})
    np_first = (*base[:3], np.int64(16), same, (0.5, 0.5))
    assert clipstore.key(*np_first) == clipstore.key(*base)  # type: ignore[arg-type]


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0, 1.0625), (0, 3.4), (2.03, 3.1), (1.5, 9.99)])
def test_starts_divide_a_shot_and_a_request_reaches_each(low: float, high: float) -> None:
    starts = grid.starts(low, high, CONFIG)
    assert starts[0] / 16 >= low - 1e-4
    assert all(b - a == 16 for a, b in itertools.pairwise(starts))
    spare = int(high * 16 + 1e-3) - starts[0] - 16
    assert len(starts) == max(spare, 0) // 16 + 1
    for first in starts:
        share = grid.start_of(first, low, high, CONFIG)
        assert 0 <= share < 1
        assert starts[0] + int(share * (max(spare, 0) + 1)) == first


@pytest.mark.usefixtures("eager")
def test_a_second_process_sees_the_parts_of_the_first(tmp_path: Path) -> None:
    cache = ClipStore(str(tmp_path), GB)
    assert not cache.get_many([key(1)])
    other = other_process(f"put({str(tmp_path)!r}, range(5))")
    assert other.wait() == 0
    np.testing.assert_array_equal(cache.get_many([key(1)])[key(1)], clip(1))


def test_it_does_not_list_at_every_miss(tmp_path: Path) -> None:
    cache = ClipStore(str(tmp_path), GB)
    put(str(tmp_path), range(5))
    assert not cache.get_many([key(1)])
    assert ClipStore(str(tmp_path), GB).get_many([key(1)])


def test_two_processes_write_at_once(tmp_path: Path) -> None:
    limit = 40 * clip(0).nbytes
    ranges = [range(100), range(50, 150)]
    writers = [other_process(f"put({str(tmp_path)!r}, {seeds}, {limit})") for seeds in ranges]
    cache = ClipStore(str(tmp_path), limit)
    while any(writer.poll() is None for writer in writers):
        for name, each in cache.get_many([key(i) for i in range(150)]).items():
            np.testing.assert_array_equal(each, clip(int(name, 16)))
        time.sleep(0.02)
    assert [writer.wait() for writer in writers] == [0, 0]
    assert sum(part.stat().st_size for part in parts(tmp_path)) <= limit
    found = ClipStore(str(tmp_path), limit).get_many([key(i) for i in range(150)])
    assert len(found) >= 20
    for name, each in found.items():
        np.testing.assert_array_equal(each, clip(int(name, 16)))


def test_eviction_keeps_the_limit_and_what_was_read_last(tmp_path: Path) -> None:
    nbytes = clip(0).nbytes
    cache = ClipStore(str(tmp_path), 10 * nbytes)
    for i in range(9):
        cache.put(key(i), clip(i))
        cache.flush()
    for age, part in enumerate(reversed(parts(tmp_path)), start=1):
        os.utime(part, (time.time() - 100 * age, time.time() - 100 * age))
    assert 6 <= len(parts(tmp_path)) <= 9  # a part of one clip is a little more than the clip
    oldest = ClipStore(str(tmp_path), 10 * nbytes)
    first = min(int(name, 16) for name in oldest.kept(map(key, range(9))))
    assert oldest.get_many([key(first)])  # the oldest part, and now the one used last
    for i in range(20, 24):
        oldest.put(key(i), clip(i))
        oldest.flush()
        assert sum(part.stat().st_size for part in parts(tmp_path)) <= 10 * nbytes
    kept = ClipStore(str(tmp_path), 10 * nbytes).kept(map(key, range(30)))
    assert {key(first), key(20), key(23)} <= kept
    assert key(first + 1) not in kept


def test_a_clip_larger_than_the_cache_is_not_kept(tmp_path: Path) -> None:
    cache = ClipStore(str(tmp_path), 1000)
    cache.put(key(0), clip(0))
    cache.close()
    assert parts(tmp_path) == []
    assert not cache.stats.stopped


@pytest.mark.usefixtures("eager")
def test_a_part_that_another_evicted_is_a_miss(tmp_path: Path) -> None:
    cache = ClipStore(str(tmp_path), GB)
    cache.put(key(0), clip(0))
    cache.flush()
    parts(tmp_path)[0].unlink()
    assert not cache.get_many([key(0)])
    cache.put(key(0), clip(0))
    cache.flush()
    assert cache.get_many([key(0)])


def test_kill_9_while_writing_leaves_a_usable_cache(tmp_path: Path) -> None:
    for begin, delay in ((0, 0.0), (10**6, 0.01), (2 * 10**6, 0.05)):
        before = len(parts(tmp_path))
        writer = other_process(
            f"for i in itertools.count({begin}, 64): put({str(tmp_path)!r}, range(i, i + 64))"
        )
        while len(parts(tmp_path)) == before and writer.poll() is None:
            time.sleep(0.01)
        time.sleep(delay)
        writer.send_signal(signal.SIGKILL)
        writer.wait()
    written = [name for part in parts(tmp_path) for name in pq.read_table(part)["key"].to_pylist()]
    assert len(written) == 64 * len(parts(tmp_path)) >= 3 * 64
    found = ClipStore(str(tmp_path), GB).get_many(written)
    assert found.keys() == set(written)
    for name, each in found.items():
        np.testing.assert_array_equal(each, clip(int(name, 16)))


def test_only_old_strays_are_swept(tmp_path: Path) -> None:
    for name, age in (("tmpabcdefgh", 7200), ("tmp12345678", 0), ("holiday.mp4", 7200)):
        (tmp_path / name).write_bytes(b"x")
        os.utime(tmp_path / name, (time.time() - age, time.time() - age))
    ClipStore(str(tmp_path), 10).close()
    assert {path.name for path in tmp_path.iterdir()} == {"tmp12345678", "holiday.mp4"}


def test_parquet_that_is_not_ours_is_left_alone(tmp_path: Path) -> None:
    theirs = tmp_path / "part-00000-8d9c.parquet"
    theirs.write_bytes(b"x" * 5000)
    put(str(tmp_path), range(10), limit=4 * clip(0).nbytes)
    assert theirs.exists()


@pytest.mark.parametrize("damage", ["footer", "pixels", "truncated", "empty", "index"])
def test_a_damaged_part_is_a_miss_and_is_removed(tmp_path: Path, damage: str) -> None:
    put(str(tmp_path), range(5))
    (part,) = parts(tmp_path)
    opened_before = ClipStore(str(tmp_path), GB)
    data = bytearray(part.read_bytes())
    if damage == "pixels":
        # In the middle of each clip's bytes: noise is stored as it is, so ZSTD cannot notice.
        for row in range(5):
            column = pq.read_metadata(part).row_group(row).column(5)
            data[column.data_page_offset + column.total_compressed_size // 2] ^= 1
    elif damage == "index":
        data[-1000:-700] = bytes(300)
    elif damage == "footer":
        data[-4:] = b"\0" * 4
    else:
        data = data[: len(data) // 2 if damage == "truncated" else 0]
    part.write_bytes(data)
    for cache in (opened_before, ClipStore(str(tmp_path), GB)):
        found = cache.get_many([key(i) for i in range(5)])
        # One that was opened before knows where the pixels lie, and needs no footer.
        assert not found or (cache is opened_before and damage in ("footer", "index"))
    assert parts(tmp_path) == []


def test_a_full_disk_stops_the_cache_and_nothing_else(tmp_path: Path) -> None:
    code = f"""
import logging, resource
logging.basicConfig()
cache = ClipStore({str(tmp_path)!r}, GB)
cache.put(key(0), clip(0)); cache.flush()
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
for i in range(1, 300): cache.put(key(i), clip(i))
cache.close()
assert cache.stats.stopped
assert set(cache.get_many([key(i) for i in range(300)])) == {{key(0)}}
"""
    process = other_process(code)
    _, errors = process.communicate()
    assert process.returncode == 0, errors.decode()
    assert errors.decode().count("no more clips are cached") == 1
    assert len(parts(tmp_path)) == 1
    assert [path.name for path in tmp_path.iterdir()] == [parts(tmp_path)[0].name]


def test_a_place_that_cannot_be_a_cache_is_said_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"cannot keep clips in .*file"):
        ClipStore(str(tmp_path / "file"), GB)


@pytest.mark.usefixtures("eager")
def test_s3(s3: str) -> None:
    limit = 100 * clip(0).nbytes
    cache, reader = ClipStore(s3, limit), ClipStore(s3, limit)
    for i in range(70):
        cache.put(key(i), clip(i))
    cache.flush()
    wanted = [key(i) for i in (69, 3, 40, 64)]
    for store_ in (cache, reader, ClipStore(s3, limit)):
        found = store_.get_many(wanted)
        assert set(found) == set(wanted)
        for name, each in found.items():
            np.testing.assert_array_equal(each, clip(int(name, 16)))
    for i in range(100, 170):
        cache.put(key(i), clip(i))
    cache.close()
    objects = list(store.list_objects(s3))
    assert sum(o.size for o in objects) <= limit
    # The oldest went, and whoever still believes in it has a miss.
    assert key(3) not in reader.get_many([key(3), key(169)])
    assert reader.get_many([key(169)])
    torn = max(objects, key=lambda o: o.size)
    store.write_bytes(torn.uri, store.read_bytes(torn.uri)[: torn.size // 2])
    assert ClipStore(s3, limit).kept(map(key, range(170))) != set()
    assert torn.uri not in [o.uri for o in store.list_objects(s3)]
    reader.close()


def test_a_bucket_out_of_reach_is_an_access_error(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(AccessError, match="no bucket"):
        ClipStore("s3://no-such-bucket-anywhere/cache", GB)
