from __future__ import annotations

import itertools
import os
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import av
import numpy as np
import pyarrow.fs as pafs
import pytest

from raygen.data import s3 as s3_module
from raygen.data import store
from raygen.errors import AccessError, ObjectChanged, StorageError


@pytest.fixture(params=["local", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    place: str = request.getfixturevalue("s3") if request.param == "s3" else str(tmp_path / "root")
    return place


def test_what_was_written_is_listed_read_and_deleted(root: str) -> None:
    names = ["b/two.bin", "a/one.bin", "three.bin"]
    for name in names:
        store.write_bytes(store.join(root, name), name.encode())
    found = list(store.list_objects(root))
    assert [item.uri for item in found] == [store.join(root, name) for name in sorted(names)]
    assert [item.size for item in found] == [len(name) for name in sorted(names)]
    assert store.read_bytes(store.join(root, "a", "one.bin")) == b"a/one.bin"
    store.delete(store.join(root, "a/one.bin"))
    assert not store.exists(store.join(root, "a/one.bin"))
    assert store.exists(store.join(root, "three.bin"))


def test_another_content_is_another_etag(root: str) -> None:
    uri = store.join(root, "x")
    store.write_bytes(uri, b"before")
    (before,) = store.list_objects(root)
    store.write_bytes(uri, b"after!")
    (after,) = store.list_objects(root)
    assert before.etag != after.etag


def test_a_range_of_an_object_ends_where_the_object_does(root: str) -> None:
    uri = store.join(root, "x")
    store.write_bytes(uri, b"0123456789")
    assert store.read_range(uri, 0, 10) == b"0123456789"
    assert store.read_range(uri, 3, 4) == b"3456"
    assert store.read_range(uri, 3, 0) == b""
    assert store.read_range(uri, 8, 100) == b"89"
    assert store.read_range(uri, 10, 1) == store.read_range(uri, 99, 5) == b""


def test_only_what_was_listed_is_read_under_its_etag(root: str) -> None:
    uri = store.join(root, "x")
    store.write_bytes(uri, b"before")
    (before,) = store.list_objects(root)
    assert store.read_bytes(uri, etag=before.etag) == b"before"
    assert store.read_range(uri, 2, 3, etag=before.etag) == b"for"
    store.write_bytes(uri, b"and after")
    for read in (
        lambda: store.read_bytes(uri, etag=before.etag),
        lambda: store.read_range(uri, 2, 3, etag=before.etag),
        lambda: store.read_range(uri, 99, 3, etag=before.etag),
    ):
        with pytest.raises(ObjectChanged, match="was replaced since it was scanned") as caught:
            read()
        assert caught.value.uri == uri


@pytest.mark.parametrize("page_keys", [2, 1000])
def test_listing_begins_after_an_object_and_may_stay_in_its_folder(
    root: str, page_keys: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_module, "PAGE_KEYS", page_keys)
    # In S3's order "a.mp4" comes before "a/": the whole key counts, and "." is less than "/".
    names = ["a-0/x", "a.mp4", "a/c/deep", "a/x", "b/x", "z.mp4"]
    for name in names:
        store.write_bytes(store.join(root, name), b"")
    uris = [store.join(root, name) for name in names]
    assert [item.uri for item in store.list_objects(root)] == uris
    for k, uri in enumerate(uris):
        assert [item.uri for item in store.list_objects(root, start_after=uri)] == uris[k + 1 :]
    assert store.prefixes(root) == [store.join(root, name) for name in ("a-0", "a", "b")]
    here = store.list_objects(root, recursive=False)
    parts = [here, *(store.list_objects(folder) for folder in store.prefixes(root))]
    assert sorted(item.uri for item in itertools.chain(*parts)) == sorted(uris)


def test_of_many_who_write_only_if_absent_one_writes(root: str) -> None:
    uri = store.join(root, "ledger")
    with ThreadPoolExecutor(8) as threads:
        writers = [f"writer {k}".encode() for k in range(8)]
        wrote = list(threads.map(lambda w: store.write_bytes(uri, w, only_if_absent=True), writers))
    assert sum(wrote) == 1
    assert store.read_bytes(uri) == writers[wrote.index(True)]
    assert store.write_bytes(uri, b"whoever")
    assert store.read_bytes(uri) == b"whoever"
    assert [item.uri for item in store.list_objects(root)] == [uri]


def test_a_listing_beside_writers_shows_whole_objects_only(root: str) -> None:
    data = bytes(50_000)
    store.write_bytes(store.join(root, "first"), data)
    uris = [store.join(root, f"{k:02}") for k in range(24)]
    with ThreadPoolExecutor(4) as threads:
        writing = [threads.submit(store.write_bytes, uri, data) for uri in uris * 4]
        while not all(future.done() for future in writing):
            for item in store.list_objects(root):
                assert item.size == len(data)
                assert item.uri in uris or item.uri.endswith("/first")
        assert all(future.result() for future in writing)


def test_a_ranged_file_is_the_file(root: str) -> None:
    data = random.Random(0).randbytes(100_000)
    uri = store.join(root, "shard.tar")
    store.write_bytes(uri, data)
    member = data[5_000:95_000]
    file = store.RangedFile(uri, len(member), offset=5_000, block=1_000)
    assert (file.seek(0, os.SEEK_END), file.read(1)) == (len(member), b"")
    draw = random.Random(1)
    for _ in range(100):
        start, length = draw.randrange(len(member) + 10), draw.randrange(12_000)
        assert file.seek(start) == file.tell() == start
        assert file.read(length) == member[start : start + length]
    assert file.seek(0) == 0
    assert file.read() == member
    with pytest.raises(ValueError, match="before the start"):
        file.seek(-1)


def test_reading_on_takes_ever_larger_pieces_and_going_back_takes_none(root: str) -> None:
    data = random.Random(0).randbytes(40_000)
    uri = store.join(root, "x")
    store.write_bytes(uri, data)
    file = store.RangedFile(uri, len(data), block=1_000)
    assert b"".join(iter(lambda: file.read(500), b"")) == data
    assert file.bytes_read == len(data)
    assert file.requests == 8  # 1 + 2 + 4 + 8 + 8 + 8 + 8 + 1 blocks
    file.seek(30_000)
    assert file.read(5_000) == data[30_000:35_000]
    assert file.requests == 8


def test_probing_an_mp4_with_its_index_at_the_end_reads_little_of_it(
    root: str, tmp_path: Path
) -> None:
    made = tmp_path / "noise.mp4"
    noise = np.random.default_rng(0)
    with av.open(str(made), "w") as container:
        stream = container.add_stream("mpeg4", rate=25, options={"qmax": "2"})
        stream.width, stream.height, stream.bit_rate = 320, 240, 20_000_000
        for _ in range(100):
            image_HWC = noise.integers(0, 256, (240, 320, 3), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image_HWC, "rgb24")))
        container.mux(stream.encode())
    data = made.read_bytes()
    assert len(data) > 4_000_000
    assert data.index(b"moov") > data.index(b"mdat")
    uri = store.join(root, "noise.mp4")
    store.write_bytes(uri, data)
    file = store.RangedFile(uri, len(data))
    with av.open(file, "r") as probed:
        video = probed.streams.video[0]
        assert (video.frames, video.width, video.height) == (100, 320, 240)
        first = next(probed.decode(video)).to_ndarray()
    with av.open(str(made)) as whole:
        assert (next(whole.decode(video=0)).to_ndarray() == first).all()
    assert file.bytes_read < len(data) / 10
    assert file.requests <= 4


def test_arrow_sees_the_same_files(root: str) -> None:
    store.write_bytes(store.join(root, "x"), b"12345")
    filesystem, path = store.open_storage(root)
    assert filesystem.get_file_info(f"{path}/x").size == 5
    assert filesystem.get_file_info(f"{path}/y").type == pafs.FileType.NotFound


def test_a_writable_place_is_left_as_it_was(root: str) -> None:
    store.write_bytes(store.join(root, "x"), b"")
    store.check_writable(root)
    assert [item.uri for item in store.list_objects(root)] == [store.join(root, "x")]


@pytest.mark.usefixtures("s3")
def test_a_missing_bucket_and_a_missing_object_are_named() -> None:
    with pytest.raises(AccessError, match="no bucket 'nowhere-at-all'"):
        list(store.list_objects("s3://nowhere-at-all/clips"))
    with pytest.raises(StorageError, match="no object at s3://raygen-demo/nothing") as caught:
        store.read_bytes("s3://raygen-demo/nothing")
    assert not isinstance(caught.value, AccessError)


def test_a_missing_folder_and_an_unwritable_one_are_named(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="no folder at"):
        list(store.list_objects(str(tmp_path / "nothing")))
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="cannot write"):
        store.check_writable(str(tmp_path / "file" / "runs"))
    with pytest.raises(StorageError, match=r"cannot read .*: No such file"):
        store.read_range(str(tmp_path / "nothing"), 0, 1)


def test_no_credentials_says_which_to_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    # A client keeps the credentials of its endpoint: one that no other test has used.
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(AccessError, match=r"no AWS credentials .* AWS_ACCESS_KEY_ID"):
        list(store.list_objects("s3://bucket/clips"))


def test_a_server_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:7")
    with pytest.raises(AccessError, match="cannot reach S3"):
        store.read_bytes("s3://bucket/clip.mp4")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "127.0.0.1:7")
    with pytest.raises(AccessError, match="AWS_ENDPOINT_URL must be a URL"):
        store.read_bytes("s3://bucket/clip.mp4")


def test_a_profile_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:11")
    with pytest.raises(AccessError, match=r"no AWS credentials .*nobody"):
        store.exists("s3://bucket/clip.mp4")
