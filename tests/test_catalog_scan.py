"""Listing and probing, from disk and from S3: what is read, known again, and refused."""

from __future__ import annotations

import io
import os
import tarfile
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import pytest
import ray

from raygen.data import decode, store
from raygen.data.catalog import Catalogue
from raygen.data.labels import source
from raygen.data.listing import Listing
from raygen.data.probing import RayWorkers, Task, new_row, open_row
from raygen.data.scan import Report, scan, scan_to
from raygen.data.store import Object
from raygen.errors import DataError, StorageError
from tests.clips import encode, moving
from tests.s3_proxy import S3Proxy


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


@pytest.fixture
def _local_ray() -> Iterator[None]:
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


@pytest.mark.usefixtures("_local_ray")
def test_rays_tasks_give_the_rows_that_threads_give(
    s3: str, small: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(40):
        store.write_bytes(f"{s3}/{number % 3}/{number}.mp4", small if number % 7 else b"<html>")
    store.write_bytes(f"{s3}/x.tar", shard({"0.mp4": small, "0.txt": b"hello"}))
    assert scan(s3, large=1).table.equals(scan(s3).table)


@pytest.mark.usefixtures("_local_ray")
def test_what_kills_the_process_that_probes_it_is_refused_alone(
    small: bytes, tmp_path: Path
) -> None:
    (tmp_path / "1.mp4").write_bytes(small)
    (tmp_path / "3.mp4").write_bytes(small)
    os.mkfifo(tmp_path / "2.mp4")  # whoever opens it waits, and is killed
    ((_, etag), (_, other)) = ((item.uri, item.etag) for item in store.list_objects(str(tmp_path)))
    items = [
        Object(str(tmp_path / f"{number}.mp4"), len(small), tag)
        for number, tag in ((1, etag), (2, "x"), (3, other))
    ]
    tasks = [Task(item, [new_row(item.uri, item.etag, 0, item.size)], False) for item in items]
    ended = threading.Event()

    def kill() -> None:
        while not ended.wait(3):
            for process in psutil.process_iter(["name", "cmdline"]):
                if (process.info["cmdline"] or [])[:1] == ["ray::complete"] and _ours(process):
                    process.kill()

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        with RayWorkers() as workers:
            rows = [row for found in workers.submit(tasks)() for row in found]
    finally:
        ended.set()
        killer.join()
    assert [row["status"] for row in rows] == ["ok", "refused", "ok"]
    assert rows[1]["reason"] == "crashed the process that probed it"
    assert rows[0]["frames"] == 16


def _ours(process: psutil.Process) -> bool:
    """Whether this test's own Ray started the process."""
    with suppress(psutil.Error):
        return os.getpid() in (parent.pid for parent in process.parents())
    return False
