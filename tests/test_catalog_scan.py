"""Listing and probing, from disk and from S3: what is read, known again, and refused."""

from __future__ import annotations

import io
import os
import signal
import tarfile
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import ray

from raygen.config import LimitsConfig
from raygen.data import decode, store, warden
from raygen.data.catalog import Catalogue
from raygen.data.known import Row
from raygen.data.labels import source
from raygen.data.listing import Listing
from raygen.data.probing import LocalWorkers, Prober, RayWorkers, Task, new_row, open_row
from raygen.data.scan import Report, scan, scan_to
from raygen.data.store import Object
from raygen.errors import AccessError, DataError, StorageError
from tests.clips import encode, moving
from tests.s3_proxy import S3Proxy

BOMB = 6144  # pixels, of each side of a frame


@pytest.fixture(params=["local", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    place: str = request.getfixturevalue("s3") if request.param == "s3" else str(tmp_path / "root")
    return place


@pytest.fixture(scope="module")
def small() -> bytes:
    return encode(moving("red-circle-right", 0, frames=16))


def rescan(root: str, output: str) -> Report:
    return scan_to(root, output, previous=output if store.exists(output) else None)


def shard(files: dict[str, bytes], format: int = tarfile.PAX_FORMAT) -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=format) as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return sink.getvalue()


def test_rows_say_what_was_encoded(root: str, small: bytes) -> None:
    store.write_bytes(store.join(root, "train/jump/a.mp4"), small)
    store.write_bytes(store.join(root, "val/wave/b.mp4"), small)
    store.write_bytes(store.join(root, "val/wave/b.txt"), b"not a video")
    found = scan(root)
    first, second = found.table.to_pylist()
    assert (first["uri"], first["label"], first["split"]) == (
        store.join(root, "train/jump/a.mp4"),
        "jump",
        "train",
    )
    assert (second["label"], second["split"]) == ("wave", "val")
    expected: dict[str, object] = {
        "offset": 0,
        "bytes": len(small),
        "frames": 16,
        "width": 64,
        "height": 64,
    }
    expected |= {"fps": 16.0, "rotation": 0, "codec": "h264", "weight": 1.0, "cuts": []}
    assert {name: first[name] for name in expected} == expected
    assert first["duration"] == pytest.approx(1.0)
    assert (first["status"], first["reason"]) == ("ok", "")


def test_a_second_scan_probes_what_is_new_or_has_changed(
    root: str, small: bytes, tmp_path: Path
) -> None:
    for name in ("a/1.mp4", "a/2.mp4", "b/3.mp4", "b/broken.mp4"):
        data = b"<html>403</html>" if "broken" in name else small
        store.write_bytes(store.join(root, name), data)
    output = str(tmp_path / "c.parquet")
    assert rescan(root, output).probed == 4
    before = Catalogue.read(output)
    report = rescan(root, output)
    assert (report.listed, report.probed) == (4, 0)
    assert Catalogue.read(output).table.equals(before.table)
    store.write_bytes(store.join(root, "a/2.mp4"), encode(moving("red-circle-left", 1)))
    store.write_bytes(store.join(root, "a/4.mp4"), small)
    store.delete(store.join(root, "b/3.mp4"))
    report = rescan(root, output)
    assert (report.listed, report.probed) == (4, 2)
    after = Catalogue.read(output)
    assert after.table.equals(scan(root).table)
    assert after.table["frames"].to_pylist() == [16, 48, 16, None]


def test_labels_may_change_where_videos_have_not(root: str, small: bytes, tmp_path: Path) -> None:
    for name in ("a/1.mp4", "a/2.mp4"):
        store.write_bytes(store.join(root, name), small)
    output, manifest = str(tmp_path / "c.parquet"), tmp_path / "m.csv"
    rescan(root, output)
    manifest.write_text(f"uri,label,caption\n{store.join(root, 'a/2.mp4')},run,fast\ngone,x,y\n")
    labels = source(f"manifest:{manifest}", store.absolute(root))
    report = scan_to(root, output, labels=labels, previous=output)
    assert (report.probed, report.missing) == (0, ["gone"])
    first, second = Catalogue.read(output).table.to_pylist()
    assert (first["status"], first["reason"]) == ("refused", "is not named by the source of labels")
    assert (second["label"], second["caption"], second["status"]) == ("run", "fast", "ok")
    assert rescan(root, output).probed == 0
    assert Catalogue.read(output).table["status"].to_pylist() == ["ok", "ok"]


def test_an_unlisted_video_is_not_looked_at(small: bytes, tmp_path: Path) -> None:
    (tmp_path / "1.mp4").write_bytes(small)
    (tmp_path / "2.mp4").write_bytes(small)
    manifest = tmp_path / "m.jsonl"
    manifest.write_text('{"uri": "2.mp4"}\n')
    output = str(tmp_path / "c.parquet")
    labels = source(f"manifest:{manifest}", str(tmp_path))
    assert scan_to(str(tmp_path), output, labels=labels).probed == 1
    assert Catalogue.read(output).table["codec"].to_pylist() == [None, "h264"]
    assert scan_to(str(tmp_path), output, previous=output).probed == 1


def test_an_object_that_could_not_be_had_is_asked_for_again(
    small: bytes, tmp_path: Path, s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("1.mp4", "2.mp4"):
        store.write_bytes(f"{s3}/{name}", small)
    output = str(tmp_path / "c.parquet")
    with S3Proxy(os.environ["AWS_ENDPOINT_URL"]) as proxy, monkeypatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", proxy.url)
        proxy.fail("1.mp4", "archived", None)
        rescan(s3, output)
    assert Catalogue.read(output).table["status"].to_pylist() == ["refused", "ok"]
    assert rescan(s3, output).probed == 1
    assert Catalogue.read(output).table["status"].to_pylist() == ["ok", "ok"]


def test_denied_access_ends_the_scan(
    small: bytes, tmp_path: Path, s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.write_bytes(f"{s3}/1.mp4", small)
    output = tmp_path / "c.parquet"
    with S3Proxy(os.environ["AWS_ENDPOINT_URL"]) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        proxy.fail("1.mp4", "expired", None)
        with pytest.raises(StorageError, match=r"credentials .* have expired"):
            scan_to(s3, str(output))
    assert not output.exists()


def test_an_index_at_the_end_is_found_without_the_rest(
    s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise_THWC = np.random.default_rng(0).integers(0, 256, (96, 256, 256, 3), np.uint8)
    data = encode(noise_THWC, fps=4, crf=12)
    assert data.index(b"moov") > 0.99 * len(data) > 3e6
    for name in ("1.mp4", "2.mp4"):
        store.write_bytes(f"{s3}/{name}", data)
    with S3Proxy(os.environ["AWS_ENDPOINT_URL"]) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        found = scan(s3)
        sent = proxy.sent
    assert found.table["frames"].to_pylist() == [96, 96]
    assert sent < 0.25 * 2 * len(data)


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_members_of_a_shard_are_rows(root: str, small: bytes, format: int, tmp_path: Path) -> None:
    other = encode(moving("blue-square-up", 2, frames=20))
    files = {
        "x/000.mp4": small,
        "x/000.txt": b"a red circle",
        "x/000.cls": b"4",
        "x/001.json": b'{"label": "up", "caption": "a square", "split": "val"}',
        "x/001.mp4": other,
        f"x/{'long' * 20}.mp4": small,
        "x/003.mp4": b"<html>",
        "x/004.txt": b"no video",
    }
    packed = shard(files, format)
    store.write_bytes(store.join(root, "train/shard-000.tar"), packed)
    store.write_bytes(store.join(root, "z.mp4"), small)
    found = scan(root)
    rows = found.table.to_pylist()
    assert [row["status"] for row in rows] == ["ok", "ok", "ok", "refused", "ok"]
    for row, data in zip(rows, [small, other, small, b"<html>", small], strict=True):
        arguments = (row["uri"], row["offset"], row["bytes"])
        assert store.read_range(*arguments, etag=row["etag"]) == data
    assert [row["label"] for row in rows] == ["4", "up", "x", "x", "unlabelled"]
    assert [row["caption"] for row in rows] == ["a red circle", "a square", "", "", ""]
    assert [row["split"] for row in rows] == ["train", "val", "train", "train", ""]
    assert [row["frames"] for row in rows] == [16, 20, 16, None, 16]
    clip = decode.decode_all(
        open_row(rows[1]),
        fps=16,
        size=32,
        seconds=rows[1]["duration"],
    )
    assert len(clip) == 20
    output = str(tmp_path / "c.parquet")
    found.write(output)
    assert rescan(root, output).probed == 0
    assert Catalogue.read(output).table.equals(found.table)


def test_a_shard_that_is_cut_off_keeps_what_is_whole(small: bytes, tmp_path: Path) -> None:
    packed = shard({"0.mp4": small, "1.mp4": small})
    (tmp_path / "a.tar").write_bytes(packed[: len(small) + 2000])
    (tmp_path / "b.tar").write_bytes(b"<html>403 Forbidden</html>" * 99)
    (tmp_path / "c.tar").write_bytes(b"")
    found = scan(str(tmp_path))
    rows = [(Path(r["uri"]).name, r["status"], r["reason"]) for r in found.table.to_pylist()]
    assert rows[0] == ("a.tar", "ok", "")
    assert {name for name, status, _ in rows[1:]} == {"a.tar", "b.tar", "c.tar"}
    assert all(status == "refused" for _, status, _ in rows[1:])
    assert all(reason.startswith("is broken or") for _, _, reason in rows[1:])


def test_the_listing_is_every_key_once_in_order(s3: str, tmp_path: Path) -> None:
    # Names whose signs sort before and after the slash, at the edges of folders.
    names = ["a-b.mp4", "a/1.mp4", "a/b-c.mp4", "a/b/2.mp4", "a/b0.mp4", "a0.mp4", "b/c/d/e.mp4"]
    names += ["z.mp4", "ü/3.mp4", "0.mp4", *(f"many/{k:02d}/x.mp4" for k in range(30))]
    for name in names:
        store.write_bytes(f"{s3}/{name}", b"")
    listing = Listing(tmp_path, s3)
    listed = [item.uri for group in listing.groups() for item in group]
    assert listed == [item.uri for item in store.list_objects(s3)]
    assert sorted(listed) == sorted(f"{s3}/{name}" for name in names)
    assert listing.count == len(names)
    assert len(listing.files) > 16


def test_progress_counts_up_to_all(small: bytes, tmp_path: Path) -> None:
    for number in range(150):
        (tmp_path / f"{number:03d}.mp4").write_bytes(small)
    seen: list[tuple[int, int]] = []
    assert len(scan(str(tmp_path), on_probe=lambda done, of: seen.append((done, of)))) == 150
    assert seen[-1] == (150, 150)
    assert seen == sorted(set(seen))
    assert len(seen) > 1


def test_nothing_to_scan_and_nowhere_to_write(s3: str, small: bytes, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no video below .*looked for .*\.mp4"):
        scan(s3)
    (tmp_path / "1.mp4").write_bytes(small)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="cannot write"):
        scan_to(str(tmp_path), str(tmp_path / "file" / "c.parquet"))
    scan_to(str(tmp_path), f"{s3}/c.parquet")
    assert len(Catalogue.read(f"{s3}/c.parquet")) == 1
    assert scan_to(str(tmp_path), f"{s3}/c.parquet", previous=f"{s3}/c.parquet").probed == 0
    with pytest.raises(StorageError):
        scan_to(str(tmp_path), "s3://no-such-bucket-at-all/c.parquet")


def tasks(*paths: Path, offset: int = 0, size: int | None = None) -> list[Task]:
    """What a scan would ask of files that a listing leaves out too."""
    items = []
    for path in paths:
        stat = path.stat()
        etag = f"{stat.st_mtime_ns:x}-{stat.st_size:x}"
        items.append(Object(str(path), size or stat.st_size, etag))
    return [Task(item, [new_row(item.uri, item.etag, offset, item.size)], False) for item in items]


@pytest.fixture
def among_good(small: bytes, tmp_path: Path) -> list[Path]:
    """Twenty videos, and in the middle a FIFO: whoever opens it waits."""
    paths = [tmp_path / f"{number:02d}.mp4" for number in range(21)]
    for path in paths:
        path.write_bytes(small)
    paths[10].unlink()
    os.mkfifo(paths[10])
    return paths


def all_but_one(rows: list[list[Row]], frames: int = 16) -> Row:
    """The row of the FIFO; the others are as they are without it."""
    (odd,) = rows.pop(10)
    assert [(row["status"], row["frames"]) for (row,) in rows] == [("ok", frames)] * 20
    return odd


def kill_at(index: int, prober: Prober, number: int, times: int) -> threading.Thread:
    """Sends the child a signal, so often, whenever it is at that job."""

    def run() -> None:
        for _ in range(times):
            while (pid := prober.warden.pid) is None or not at():
                time.sleep(0.001)
            os.kill(pid, number)
            while prober.warden.pid == pid or at():
                time.sleep(0.001)

    def at() -> bool:
        rows = prober.warden.progress[index : index + 1]
        # Before its bytes have come nothing would be known of it.
        return bool(rows["fetched"].any() and not rows["done"].any())

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGKILL])
def test_a_video_that_kills_its_prober_twice_is_refused(
    among_good: list[Path], number: signal.Signals
) -> None:
    with closing(Prober(LimitsConfig())) as prober:
        kill_at(10, prober, number, times=2)
        rows = prober.complete(tasks(*among_good))
        assert prober.warden.restarts == 2
    odd = all_but_one(rows)
    assert (odd["status"], odd["codec"]) == ("refused", "")
    assert odd["reason"] == f"crashed the decoder ({number.name})"


def test_a_prober_is_small_and_when_killed_by_an_outsider_costs_no_video(
    small: bytes, tmp_path: Path
) -> None:
    paths = [tmp_path / f"{number:03d}.mp4" for number in range(300)]
    for path in paths:
        path.write_bytes(small)
    with closing(Prober(LimitsConfig())) as prober:
        prober.complete(tasks(paths[0]))
        assert prober.warden.pid is not None
        maps = Path(f"/proc/{prober.warden.pid}/maps").read_text()
        assert not [name for name in ("torch", "arrow", "pydantic", "_raylet") if name in maps]
        # Stopped, it cannot be through before it is killed.
        os.kill(prober.warden.pid, signal.SIGSTOP)
        threading.Timer(0.05, os.kill, (prober.warden.pid, signal.SIGKILL)).start()
        rows = prober.complete(tasks(*paths))
        assert prober.warden.restarts == 1
    assert [row["frames"] for (row,) in rows] == [16] * 300


def test_a_video_that_hangs_its_prober_is_refused(among_good: list[Path]) -> None:
    with LocalWorkers(LimitsConfig(seconds=1.5)) as workers:
        rows = workers.submit(tasks(*among_good))()
    odd = all_but_one(rows)
    assert (odd["status"], odd["codec"]) == ("refused", "")
    assert odd["reason"] == "took more than 1.5 s to decode (data.limits.seconds)"


def test_what_cannot_be_fetched_is_asked_for_again(
    among_good: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warden, "FETCH_SECONDS", 1.5)
    with closing(Prober(LimitsConfig())) as prober:
        # As a member of a shard it is read by ranges.
        ((odd,),) = prober.complete(tasks(among_good[10], offset=1, size=9))
    assert (odd["status"], odd["codec"]) == ("refused", None)
    assert odd["reason"] == "took more than 1.5 s to fetch"


@pytest.fixture(scope="module")
def bomb() -> bytes:
    """A video of few bytes and large frames."""
    return encode(np.zeros((1, 16, 16, 3), np.uint8), size=BOMB)


def test_what_asks_for_too_much_is_refused_by_the_limits(
    small: bytes, bomb: bytes, tmp_path: Path
) -> None:
    for name, data in (("1.mp4", small), ("2.mp4", bomb), ("3.mp4", small)):
        (tmp_path / name).write_bytes(data)
    for limits, reason in (
        (LimitsConfig(), ""),
        (LimitsConfig(memory_mb=64), "needs more than 64 MB to decode (data.limits.memory_mb)"),
        (
            LimitsConfig(megapixels=37),
            f"has frames of {BOMB}x{BOMB} pixels, more than data.limits.megapixels=37 allows",
        ),
    ):
        rows = scan(str(tmp_path), limits=limits).table.to_pylist()
        assert [row["reason"] for row in rows] == ["", reason, ""]


def test_a_scan_that_fails_leaves_no_prober(
    among_good: list[Path], small: bytes, s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:7")
    gone = Object(f"{s3}/1.mp4", len(small), "x")
    out_of_reach = Task(gone, [new_row(gone.uri, gone.etag, 0, gone.size)], False)
    probers: list[Prober] = []

    def fails() -> None:
        with LocalWorkers(LimitsConfig()) as workers:
            workers.submit(tasks(*among_good))  # which hangs for long, and is not waited for
            try:
                workers.submit([out_of_reach])()
            finally:
                probers.extend(workers.probers)

    with pytest.raises(AccessError, match="cannot reach S3"):
        fails()
    assert [prober.warden.pid for prober in probers] == [None, None]


@pytest.fixture(scope="module")
def _local_ray(_s3_server: str) -> Iterator[None]:
    ray.init(
        "local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR"
    )
    yield
    ray.shutdown()


@pytest.mark.usefixtures("_local_ray")
def test_rays_tasks_give_the_rows_that_children_give(s3: str, small: bytes) -> None:
    for number in range(40):
        store.write_bytes(f"{s3}/{number % 3}/{number}.mp4", small if number % 7 else b"<html>")
    store.write_bytes(f"{s3}/x.tar", shard({"0.mp4": small, "0.txt": b"hello"}))
    assert scan(s3, large=1).table.equals(scan(s3).table)


@pytest.mark.usefixtures("_local_ray")
def test_rays_tasks_refuse_what_hangs_or_ends_their_children(
    among_good: list[Path], bomb: bytes
) -> None:
    among_good[5].write_bytes(bomb)
    with RayWorkers(LimitsConfig(seconds=2.5, memory_mb=64)) as workers:
        rows = workers.submit(tasks(*among_good))()
    found = [(row["status"], row["reason"]) for (row,) in rows]
    assert found.pop(10)[1] == "took more than 2.5 s to decode (data.limits.seconds)"
    assert found.pop(5)[1] == "needs more than 64 MB to decode (data.limits.memory_mb)"
    assert found == [("ok", "")] * 19
