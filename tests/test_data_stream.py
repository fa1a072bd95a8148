from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import ray

from raygen.config import DataConfig
from raygen.data import catalog, store
from raygen.data.cache import ClipCache
from raygen.data.catalog import Catalogue
from raygen.data.decode import Clip
from raygen.data.decoder import Decoder
from raygen.data.plan import Plan, positions
from raygen.data.stream import Batch, batches
from raygen.errors import DataError

CONFIG = DataConfig(uri="", frames=8, size=16, fps=16, decoders=1)
NAMES = {"uri", "duration", "frames", "fps", "width", "height", "codec", "status", "reason"}


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    # As many CPUs as two training workers take: streaming must not need one more.
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def catalogue(shapes: Path) -> Catalogue:
    return catalog.scan(str(shapes))


def stream(catalogue: Catalogue, steps: range, rank: int, world_size: int) -> list[Batch]:
    plan = Plan(len(catalogue), seed=3)
    return list(
        batches(
            catalogue,
            plan,
            CONFIG,
            steps=steps,
            rank=rank,
            world_size=world_size,
            batch_size=4,
        )
    )


def test_scan_labels_probes_and_digests(catalogue: Catalogue, shapes: Path) -> None:
    assert len(catalogue) == 12
    assert set(catalogue.table.column_names) >= NAMES
    assert catalogue.classes == sorted(p.name for p in shapes.iterdir() if p.is_dir())
    first = catalogue.table.to_pylist()[0]
    assert (first["frames"], first["width"], first["codec"]) == (24, 64, "h264")
    assert first["duration"] == pytest.approx(1.5)
    assert catalogue.digest == catalog.scan(str(shapes)).digest


def test_a_catalogue_on_s3_of_clips_on_s3(shapes: Path, s3: str) -> None:
    for item in store.list_objects(str(shapes)):
        key = item.uri.removeprefix(str(shapes))
        store.write_bytes(store.join(s3, "clips", key), store.read_bytes(item.uri))
    store.write_bytes(store.join(s3, "clips/broken/cut.mp4"), b"not a video at all")
    found = catalog.scan(f"{s3}/clips")
    found.write(f"{s3}/catalogue.parquet")
    again = Catalogue.read(f"{s3}/catalogue.parquet")
    assert again.table.equals(found.table)
    assert (len(again), len(again.usable(0.5))) == (13, 12)
    assert sum(again.refused.values()) == 1
    assert len(again.usable(2.0)) == 0


def test_what_is_no_catalogue_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_bytes(b"PAR1 but not really")
    with pytest.raises(DataError, match="is not a catalogue"):
        Catalogue.read(str(tmp_path / "x.parquet"))


def test_an_empty_prefix_is_refused(s3: str) -> None:
    with pytest.raises(DataError, match="no video below"):
        catalog.scan(s3)


@pytest.mark.usefixtures("local_ray")
def test_two_ranks_stream_what_the_plan_says(catalogue: Catalogue) -> None:
    steps = range(2, 9)
    by_rank = ray.get(
        [ray.remote(num_cpus=1)(stream).remote(catalogue, steps, rank, 2) for rank in range(2)],
        timeout=120,
    )
    decoder = Decoder(catalogue, Plan(len(catalogue), seed=3), CONFIG)
    for rank, received in enumerate(by_rank):
        assert len(received) == len(steps)
        for step, batch in zip(steps, received, strict=True):
            rows = [decoder.row(p) for p in positions(step, rank, 2, 4)]
            np.testing.assert_array_equal(batch.clips.numpy(), np.stack([row[0] for row in rows]))
            assert batch.labels.tolist() == [row[1] for row in rows]
            assert not batch.refused


@pytest.mark.usefixtures("local_ray")
def test_a_clip_that_broke_since_the_scan_is_refused_and_replaced(
    shapes: Path, tmp_path: Path
) -> None:
    for item in store.list_objects(str(shapes)):
        key = item.uri.removeprefix(str(shapes))
        store.write_bytes(str(tmp_path / key.lstrip("/")), store.read_bytes(item.uri))
    found = catalog.scan(str(tmp_path))
    broken, gone = (found.table["uri"][row].as_py() for row in (1, 5))
    Path(broken).write_bytes(Path(broken).read_bytes()[:700])
    Path(gone).unlink()
    received = ray.get(ray.remote(num_cpus=1)(stream).remote(found, range(3), 0, 1), timeout=120)
    refused: dict[int, str] = {}
    for batch in received:
        assert batch.clips.shape == (4, 8, 16, 16, 3)
        refused |= batch.refused
    assert set(refused) == {1, 5}
    assert "cannot read" in refused[5]


def test_nothing_that_decodes_is_an_error(shapes: Path, tmp_path: Path) -> None:
    found = catalog.scan(str(shapes))
    table = found.table
    uris = [str(tmp_path / "gone" / Path(u).name) for u in table["uri"].to_pylist()]
    lost = Catalogue(table.set_column(0, "uri", [uris]))
    decoder = Decoder(lost, Plan(len(lost), 0), CONFIG)
    with pytest.raises(DataError, match="clips in a row cannot be decoded"):
        decoder.row(0)


def test_without_a_cache_a_clip_is_the_same(catalogue: Catalogue) -> None:
    plan = Plan(len(catalogue), 0)
    cached = Decoder(catalogue, plan, CONFIG)
    seeking = Decoder(catalogue, plan, CONFIG.model_copy(update={"cache_mb": 0}))
    for row, start in ((0, 0.0), (3, 0.5), (7, 0.99)):
        np.testing.assert_array_equal(cached.clip(row, start), seeking.clip(row, start))


def test_the_cache_keeps_its_limit_and_the_newest() -> None:
    made: list[str] = []

    def maker(key: str) -> Callable[[], Clip]:
        def make() -> Clip:
            made.append(key)
            return np.zeros((1, 10, 10, 3), np.uint8)

        return make

    cache = ClipCache(limit=700)
    for key in "abacb":
        cache.get(key, maker(key))
    assert cache.held == 600
    assert made == ["a", "b", "c", "b"]
