from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import av
import boto3
import numpy as np
import pytest

from raygen.data import s3 as s3_module
from raygen.data import store
from raygen.errors import AccessError, ObjectChanged, StorageError
from tests.s3_proxy import ANSWERS, PASSED, S3Proxy

DATA = np.random.default_rng(0).bytes(300_000)
READS: dict[str, Callable[[str], bool]] = {
    "whole": lambda uri: store.read_bytes(uri) == DATA,
    "range": lambda uri: store.read_range(uri, 1_000, 200_000) == DATA[1_000:201_000],
}


@pytest.fixture
def proxy(s3: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Proxy]:
    with S3Proxy(os.environ["AWS_ENDPOINT_URL"]) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        monkeypatch.setenv("RAYGEN_S3_TIMEOUT_S", "5")  # no busy machine is taken for silent
        yield proxy


@pytest.fixture
def clip(s3: str, proxy: S3Proxy) -> str:
    """An object that holds DATA, behind the proxy."""
    uri = store.join(s3, "clip-3.mp4")
    store.write_bytes(uri, DATA)
    proxy.heal()
    return uri


@pytest.mark.parametrize("read", READS)
@pytest.mark.parametrize(
    ("kind", "times"),
    [
        ("slowdown", 6),
        ("internal", 2),
        ("bad-gateway", 2),
        ("gateway-timeout", 2),
        ("reset", 3),
        ("torn", 2),
        ("truncate", 2),
        ("slow", 1),
    ],
)
def test_a_failure_that_passes_is_waited_out(
    clip: str, proxy: S3Proxy, kind: str, times: int, read: str
) -> None:
    proxy.fail("clip-3", kind, times)
    assert READS[read](clip)
    assert proxy.counts == {kind: times, PASSED: 1}


@pytest.mark.parametrize("kind", ["slowdown", "reset", "truncate"])
def test_listing_goes_on_where_it_was(s3: str, clip: str, proxy: S3Proxy, kind: str) -> None:
    proxy.fail("list-type=2", kind, 2)
    assert [item.uri for item in store.list_objects(s3)] == [clip]
    assert proxy.counts[kind] == 2


@pytest.mark.parametrize("kind", ["slowdown", "reset", "lost"])
def test_writing_is_tried_again(clip: str, proxy: S3Proxy, kind: str) -> None:
    proxy.fail("PUT ", kind, 2)
    assert store.write_bytes(clip, DATA[::-1])
    assert proxy.counts == {kind: 2, PASSED: 1}
    assert store.read_bytes(clip) == DATA[::-1]


@pytest.mark.parametrize(
    ("match", "kind"),
    [
        ("partNumber=2", "slowdown"),
        ("partNumber=3", "reset"),
        ("partNumber=1", "lost"),
        ("POST ", "lost"),  # the completion's, too
    ],
)
def test_what_is_large_goes_in_parts_and_each_is_tried_again(
    s3: str, proxy: S3Proxy, monkeypatch: pytest.MonkeyPatch, match: str, kind: str
) -> None:
    monkeypatch.setattr(s3_module, "PART_BYTES", 5 << 20)
    data = random.Random(0).randbytes((11 << 20) + 7)
    uri = store.join(s3, "shard")
    proxy.fail(match, kind, 1)
    assert store.write_bytes(uri, data)
    assert proxy.counts[kind] == 1
    assert store.read_bytes(uri) == data


def test_parts_of_what_cannot_be_written_are_removed(
    s3: str, proxy: S3Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_module, "PART_BYTES", 5 << 20)
    proxy.fail("partNumber=2", "denied", None)
    with pytest.raises(AccessError, match="denied"):
        store.write_bytes(store.join(s3, "shard"), bytes(11 << 20))
    bucket, prefix = s3_module.split(s3)
    listed = boto3.client("s3").list_multipart_uploads(Bucket=bucket, Prefix=prefix)
    assert "Uploads" not in listed
    assert not store.exists(store.join(s3, "shard"))


def test_a_first_writer_whose_answer_was_lost_knows_that_it_wrote(s3: str, proxy: S3Proxy) -> None:
    uri = store.join(s3, "ledger")
    proxy.fail("PUT ", "lost")
    assert store.write_bytes(uri, b"mine", only_if_absent=True)
    assert proxy.counts["lost"] == 1
    proxy.fail("PUT ", "reset")
    assert not store.write_bytes(uri, b"theirs", only_if_absent=True)
    assert store.read_bytes(uri) == b"mine"


@pytest.mark.parametrize("read", READS)
@pytest.mark.parametrize(
    ("kind", "line"),
    [
        ("expired", "the AWS credentials for s3://.* have expired; renew them"),
        ("denied", r"access to s3://.* denied \(AccessDenied\); check the credentials"),
        ("skewed", "clock is wrong"),
    ],
)
def test_a_failure_that_no_other_object_escapes_is_said_at_once(
    clip: str, proxy: S3Proxy, kind: str, line: str, read: str
) -> None:
    proxy.fail("clip-3", kind, times=None)
    with pytest.raises(AccessError, match=line) as caught:
        READS[read](clip)
    assert caught.value.uri == clip
    assert "\n" not in str(caught.value)
    assert proxy.counts == {kind: 1}


def test_an_archived_object_concerns_itself_alone(clip: str, proxy: S3Proxy) -> None:
    proxy.fail("clip-3", "archived")
    with pytest.raises(StorageError, match="is archived; restore it") as caught:
        store.read_bytes(clip)
    assert not isinstance(caught.value, AccessError)


def test_credentials_that_were_renewed_are_read_again(
    clip: str, proxy: S3Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "credentials"
    file.write_text("[default]\naws_access_key_id = OLD\naws_secret_access_key = x\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with S3Proxy(proxy.url) as fresh:  # an endpoint of its own, and so a client of its own
        monkeypatch.setenv("AWS_ENDPOINT_URL", fresh.url)
        assert store.read_bytes(clip) == DATA
        fresh.fail("Credential=OLD", "expired", times=None)
        with pytest.raises(AccessError, match="expired"):
            store.read_bytes(clip)
        file.write_text(file.read_text().replace("OLD", "NEW"))
        assert store.read_bytes(clip) == DATA
        assert fresh.counts == {PASSED: 2, "expired": 2}


@pytest.mark.parametrize(
    "read",
    [
        lambda uri, etag: store.read_bytes(uri, etag=etag),
        lambda uri, etag: store.read_range(uri, 10, 5, etag=etag),
        lambda uri, etag: store.RangedFile(uri, len(DATA), etag=etag).read(100),
    ],
    ids=["whole", "range", "file"],
)
def test_an_object_replaced_on_the_way_is_not_taken_for_the_one_scanned(
    s3: str, clip: str, proxy: S3Proxy, read: Callable[[str, str], bytes]
) -> None:
    (scanned,) = store.list_objects(s3)
    assert read(clip, scanned.etag) in DATA
    proxy.heal()
    proxy.fail("clip-3", "replace")
    with pytest.raises(ObjectChanged, match="was replaced since it was scanned; run `raygen data"):
        read(clip, scanned.etag)
    assert proxy.counts == {"replace": 1}
    assert store.read_bytes(clip) != DATA


@pytest.mark.parametrize(("kind", "raised"), [("expired", AccessError), ("replace", ObjectChanged)])
def test_a_demuxer_passes_on_what_its_file_raises(
    s3: str, clip: str, proxy: S3Proxy, kind: str, raised: type[StorageError]
) -> None:
    (scanned,) = store.list_objects(s3)
    proxy.fail("GET ", kind)
    with pytest.raises(raised), av.open(store.RangedFile(clip, len(DATA), etag=scanned.etag), "r"):
        pass


def test_patience_ends(clip: str, proxy: S3Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_module, "RETRY_S", 1.0)
    proxy.fail("clip-3", "slowdown", times=None)
    with pytest.raises(StorageError, match=r"S3 kept failing on .*clip-3.* attempts .*SlowDown"):
        store.read_bytes(clip)
    assert proxy.counts["slowdown"] > 1


def test_threads_share_the_connections_and_each_meets_its_own_faults(
    s3: str, proxy: S3Proxy
) -> None:
    uris = [store.join(s3, f"clip-{k:03d}") for k in range(60)]
    with ThreadPoolExecutor(12) as threads:
        list(threads.map(lambda uri: store.write_bytes(uri, uri.encode()), uris))
        kinds = ["slowdown", "reset", "torn", "truncate", "slow"] * 4
        for kind, uri in zip(kinds, uris[::3], strict=True):
            proxy.fail(f"GET /{uri.removeprefix('s3://')}", kind)
        before = proxy.counts[PASSED]
        assert list(threads.map(store.read_bytes, uris)) == [uri.encode() for uri in uris]
    assert proxy.counts[PASSED] - before == len(uris)
    assert sum(proxy.counts[kind] for kind in proxy.counts if kind != PASSED) == 20


def test_every_answer_of_the_proxy_is_one_that_a_client_understands(
    clip: str, proxy: S3Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_module, "RETRY_S", 0.0)
    for kind in ANSWERS:
        proxy.heal()
        proxy.fail("clip-3", kind)
        with pytest.raises(StorageError):
            store.read_bytes(clip)
        assert store.read_bytes(clip) == DATA
        assert proxy.counts == {kind: 1, PASSED: 1}
