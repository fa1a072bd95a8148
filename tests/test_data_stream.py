"""The whole stream on a real Ray: order, exactly once, quarantine, crashes, endings."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
import pytest
import ray

from raygen.config import DataConfig
from raygen.data import scan, store, synthetic
from raygen.data.catalog import Catalogue
from raygen.data.decoder import Decoder
from raygen.data.plan import Plan
from raygen.data.receiver import Batch, Receiver
from raygen.data.stream import Feed, start_dealer
from raygen.errors import AccessError, DataError

CONFIG = DataConfig(uri="", frames=8, size=16, fps=16, decoders=1, ahead_mb=1)


@pytest.fixture(scope="module", autouse=True)
def _local_ray(_s3_server: str) -> Iterator[None]:
    # As many CPUs as two training workers take: streaming must not need one more.
    ray.init(
        "local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR"
    )
    busy = [ray.remote(num_cpus=1)(_Busy).remote() for _ in range(2)]
    ray.get([actor.ready.remote() for actor in busy])
    yield
    ray.shutdown()


class _Busy:
    def ready(self) -> None:
        """Holds a CPU, as a training worker does."""


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """45 clips of three classes."""
    folder = tmp_path_factory.mktemp("clips")
    synthetic.synthesize(str(folder), synthetic.class_names(3), 15, seed=0, size=32, frames=12)
    return folder


@pytest.fixture
def copy(clips: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(clips, tmp_path / "copy"))


@contextmanager
def feeding(feed: Feed, catalogue: Catalogue) -> Iterator[list[Receiver]]:
    """The receivers of all ranks, while a dealer serves them."""
    dealer = start_dealer(catalogue, feed)
    try:
        yield [Receiver(dealer, rank, prefetch=2) for rank in range(feed.world_size)]
    finally:
        ray.kill(dealer)


def stream(
    catalogue: Catalogue,
    count: int,
    *,
    world_size: int = 1,
    cursor: int = 0,
    refused: dict[int, str] | None = None,
) -> list[list[Batch]]:
    """`count` global batches of six clips, each as its ranks received it."""
    feed = Feed(Plan(len(catalogue), seed=3), CONFIG, 6, world_size, cursor, refused or {})
    with feeding(feed, catalogue) as receivers:
        return [[next(receiver) for receiver in receivers] for _ in range(count)]


def decode_actors() -> list[psutil.Process]:
    """Those of this process's own Ray."""
    name = "ray::MapWorker(MapBatches(_Decode))"
    ours = {p.pid for p in psutil.Process().children(recursive=True)}
    found = psutil.process_iter(["cmdline"])
    return [p for p in found if p.pid in ours and name in str(p.info["cmdline"])]


def rows(batches: list[list[Batch]]) -> list[int]:
    return [row for ranks in batches for batch in ranks for row in batch.rows.tolist()]


def test_ranks_receive_what_the_plan_says(clips: Path) -> None:
    catalogue = scan.scan(str(clips))
    plan = Plan(len(catalogue), seed=3)
    received = stream(catalogue, 9, world_size=2)
    decoder = Decoder(catalogue, CONFIG)
    expected = decoder.decode({p: plan.span(p) for p in range(9 * 6)}).columns
    decoder.close()
    assert rows(received) == expected["row"].tolist()
    clips_of = np.concatenate([b.clips.numpy() for ranks in received for b in ranks])
    np.testing.assert_array_equal(clips_of, expected["clip"])
    labels = [k for ranks in received for b in ranks for k in b.labels.tolist()]
    assert labels == expected["label"].tolist()
    assert received[-1][0].cursor == 54
    assert all(b.decode_s > 0 for ranks in received for b in ranks)


def test_broken_clips_leave_an_epoch_of_the_others_once_each(copy: Path) -> None:
    catalogue = scan.scan(str(copy))
    uris = catalogue.table["uri"].to_pylist()
    bad = {4: "cut", 11: "gone", 12: "html", 29: "empty", 44: "gone"}
    for row, fault in bad.items():
        path = Path(uris[row])
        match fault:
            case "cut":
                path.write_bytes(path.read_bytes()[:700])
            case "gone":
                path.unlink()
            case "html":
                path.write_text("<html>503 Service Unavailable</html>")
            case "empty":
                path.write_bytes(b"")
    good = sorted(set(range(45)) - set(bad))
    received = stream(catalogue, 20, world_size=2)  # three epochs of 40
    consumed = rows(received)
    for epoch in range(3):
        assert sorted(consumed[epoch * 40 : epoch * 40 + 40]) == good
    refused = {row: why for ranks in received for row, why in ranks[0].refused.items()}
    assert refused.keys() == bad.keys()
    assert "no object" in refused[11] or "cannot" in refused[11]
    # Resumed by another number of workers, knowing what was refused: the same batches go on.
    cursor = received[6][0].cursor
    resumed = stream(catalogue, 13, world_size=3, cursor=cursor, refused=refused)
    assert rows(resumed) == rows(received[7:])
    assert not any(batch.refused for ranks in resumed for batch in ranks)


def test_a_killed_decode_actor_costs_no_clip(copy: Path) -> None:
    catalogue = scan.scan(str(copy))
    # Five clips a task: most of them are still to come when the actor dies.
    config = CONFIG.model_copy(update={"frames": 64, "fps": 90, "size": 128, "cache_mb": 0})
    with feeding(Feed(Plan(45, 3), config, 5, 1, 0, {}), catalogue) as [receiver]:
        consumed = [row for _ in range(3) for row in next(receiver).rows.tolist()]
        # Those of the tests before may not have ended yet.
        actor = max(decode_actors(), key=psutil.Process.create_time).pid
        os.kill(actor, signal.SIGKILL)
        consumed += [row for _ in range(24) for row in next(receiver).rows.tolist()]
        assert actor not in {p.pid for p in decode_actors()}
    for epoch in range(3):
        assert sorted(consumed[epoch * 45 : epoch * 45 + 45]) == list(range(45))


def test_nothing_that_decodes_ends_the_stream_in_one_line(copy: Path) -> None:
    catalogue = scan.scan(str(copy))
    shutil.rmtree(copy)
    with pytest.raises(DataError, match="clips in a row cannot be decoded, the first: /") as caught:
        stream(catalogue, 1)
    assert "\n" not in str(caught.value)


def test_a_bucket_that_is_gone_ends_the_stream_in_one_line(clips: Path, s3: str) -> None:
    for item in store.list_objects(str(clips)):
        store.write_bytes(
            store.join(s3, item.uri.removeprefix(str(clips))), store.read_bytes(item.uri)
        )
    catalogue = scan.scan(s3)
    gone = [uri.replace("s3://", "s3://no-such-") for uri in catalogue.table["uri"].to_pylist()]
    lost = Catalogue(catalogue.table.set_column(0, "uri", [gone]))
    with pytest.raises(AccessError, match="bucket") as caught:
        stream(lost, 1)
    assert "\n" not in str(caught.value)


def test_what_waits_for_a_slow_trainer_is_bounded(clips: Path) -> None:
    catalogue = scan.scan(str(clips))
    feed = Feed(Plan(45, seed=3), CONFIG, 6, 1, 0, {})
    with feeding(feed, catalogue) as [receiver]:
        held = []
        for _ in range(6):
            next(receiver)
            time.sleep(0.5)
            held.append(ray.get(receiver.dealer.held.remote()))
    # Ahead of the trainer, but no further than it may be: Ray would have gone on for ever.
    assert held[-1] > 10 * feed.batch_size
    assert max(held) <= feed.ahead + feed.each


def test_feeds_are_sized_by_bytes() -> None:
    feed = Feed(Plan(9, 0), DataConfig(frames=16, size=64), 16, 2, 0, {})
    assert feed.each == 85
    assert feed.ahead == 16 + 2 * 85 * 2
    large = Feed(Plan(9, 0), DataConfig(frames=64, size=512), 16, 2, 0, {})
    assert (large.each, large.ahead) == (1, 16 + 2 * 2)


def test_no_process_is_left_behind(clips: Path) -> None:
    stream(scan.scan(str(clips)), 2)
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        left = [
            p.pid
            for p in psutil.process_iter(["cmdline", "ppid"])
            if "raygen.data.sandbox_child" in (p.info["cmdline"] or ())
            and p.ppid() in (1, os.getpid())
        ]
        if not left:
            return
        time.sleep(0.2)
    pytest.fail(f"decoder processes without a parent: {left}")
