from __future__ import annotations

from pathlib import Path

import pyarrow.fs as pafs
import pytest

from raygen.data import store
from raygen.errors import StorageError


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
    with pytest.raises(StorageError, match="no bucket 'nowhere-at-all'"):
        list(store.list_objects("s3://nowhere-at-all/clips"))
    with pytest.raises(StorageError, match="no object at s3://raygen-demo/nothing"):
        store.read_bytes("s3://raygen-demo/nothing")


def test_a_missing_folder_and_an_unwritable_one_are_named(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="no folder at"):
        list(store.list_objects(str(tmp_path / "nothing")))
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="cannot write"):
        store.check_writable(str(tmp_path / "file" / "runs"))


def test_no_credentials_says_which_to_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    # A client keeps the credentials of its endpoint: one that no other test has used.
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(StorageError, match=r"no AWS credentials .* AWS_ACCESS_KEY_ID"):
        list(store.list_objects("s3://bucket/clips"))


def test_a_server_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:7")
    with pytest.raises(StorageError, match="cannot reach S3"):
        store.read_bytes("s3://bucket/clip.mp4")
