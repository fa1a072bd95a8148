"""Two thousand clips, and everything goes wrong: each good one is seen once, the rest is named."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import ray

from raygen.config import DataConfig
from raygen.data import quarantine, scan, store, synthetic
from raygen.data.plan import Plan
from raygen.data.receiver import Receiver
from raygen.data.stream import Feed, start_dealer
from tests.clips import encode, moving
from tests.s3_proxy import S3Proxy
from tests.test_data_stream import decode_actors

CLIPS = 2000
PASSING = ("slowdown", "internal", "bad-gateway", "reset", "truncate", "torn", "slow")
CONFIG = DataConfig.model_validate(
    {
        "frames": 8,
        "size": 16,
        "fps": 16,
        "decoders": 2,
        "cache_mb": 0,
        "limits": {"seconds": 20, "memory_mb": 64, "megapixels": 100},
    }
)


@pytest.fixture
def proxy(_s3_server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Proxy]:
    """Faults between S3 and every process of a Ray that is started with it."""
    with S3Proxy(os.environ["AWS_ENDPOINT_URL"]) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        monkeypatch.setenv("RAYGEN_S3_TIMEOUT_S", "2")
        ray.init(
            "local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR"
        )
        yield proxy
        ray.shutdown()


def upload(folder: Path, uri: str) -> None:
    def put(path: Path) -> None:
        store.write_bytes(store.join(uri, str(path.relative_to(folder))), path.read_bytes())

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(put, folder.rglob("*.mp4")))


@pytest.mark.slow
def test_an_epoch_through_every_fault_sees_each_good_clip_once(
    tmp_path: Path, s3: str, proxy: S3Proxy
) -> None:
    names = synthetic.class_names(8)
    synthetic.synthesize(str(tmp_path), names, CLIPS // 8, seed=0, size=32, frames=12)
    paths = sorted(tmp_path.rglob("*.mp4"))
    chance = random.Random(0)
    chosen = chance.sample(paths, 100)
    # One in a hundred is broken, in a way that its header does not tell.
    cut, lost, bomb, replaced = chosen[:10], chosen[10:20], chosen[20], chosen[21:26]
    for path in cut:
        path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
    # 38 million pixels a frame: more than its decoder may hold.
    bomb.write_bytes(encode(moving(names[0], 0, frames=4), fps=8, size=6144))
    upload(tmp_path, s3)
    catalogue = scan.scan(s3).usable(CONFIG.frames / CONFIG.fps)
    uris = {path: store.join(s3, str(path.relative_to(tmp_path))) for path in paths}
    rows = {uri: row for row, uri in enumerate(catalogue.table["uri"].to_pylist())}
    row = {path: rows[uri] for path, uri in uris.items() if uri in rows}
    for path in lost:
        store.delete(uris[path])
    faults = [(path, "replace") for path in replaced]
    faults += zip(chosen[26:], PASSING * 20, strict=False)
    for path, kind in faults:
        request = uris[path].replace("s3://", "GET /")
        proxy.fail(request, kind, times=5 if kind == "slowdown" else 1)

    # What the scan saw through is in the catalogue no more.
    expected_bad = {row[path] for path in (*cut, *lost, bomb, *replaced) if path in row}
    assert len(expected_bad) > len(lost) + len(replaced)
    good = sorted(set(range(len(catalogue))) - expected_bad)
    feed = Feed(Plan(len(catalogue), seed=1), CONFIG, 20, 2, 0, {})
    dealer = start_dealer(catalogue, feed)
    receivers = [Receiver(dealer, rank, prefetch=2) for rank in range(2)]
    consumed: list[int] = []
    refused: dict[int, str] = {}
    while len(consumed) < len(good):
        for receiver in receivers:
            batch = next(receiver)
            consumed += batch.rows.tolist()
            refused |= batch.refused
        if len(consumed) == 400:
            os.kill(decode_actors()[0].pid, signal.SIGKILL)
    ray.kill(dealer)

    assert sorted(consumed[: len(good)]) == good
    assert refused.keys() == expected_bad
    assert "memory" in refused[row[bomb]]
    assert all("replaced" in refused[row[path]] for path in replaced)
    assert all("no object" in refused[row[path]] for path in lost)
    assert {kind for kind, count in proxy.counts.items() if count} >= {*PASSING, "replace"}
    quarantine.add(str(tmp_path / "run"), catalogue, refused)
    assert quarantine.rows(str(tmp_path / "run"), catalogue) == refused
