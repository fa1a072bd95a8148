"""However a replica draws, a clip is the same in any company; and what waits is bounded."""

import asyncio
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from raygen import video
from raygen.errors import ConfigError
from raygen.export import Generator, generator_of
from serve.batcher import Batcher
from serve.drawing import CLOSE_DB, Drawer, Point, choose, parse
from serve.generator import Ask, ClipSource, Overloaded
from tests.small_runs import CLASSES, make_run

FAMILIES = ["strided", "twostream", "triplane"]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """As in a replica of one CPU."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def generator(folder: Path, kind: str = "strided", **conditions: object) -> Generator:
    return generator_of(make_run(str(folder), kind, conditions=conditions))


def points(generator: Generator, seeds: Sequence[int]) -> list[Point]:
    made = (generator.points([seed], [seed % len(CLASSES)]) for seed in seeds)
    return [Point(z_1D, y_1) for z_1D, y_1 in made]


def drawn(drawer: Drawer, points: Sequence[Point]) -> list[video.Clips]:
    clips: dict[int, video.Clips] = {}
    for rows, clips_NTHWC in drawer(points):
        clips |= dict(zip(rows, clips_NTHWC, strict=True))
    return [clips[row] for row in range(len(points))]


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_chosen_drawing_gives_each_clip_the_same_bits_in_any_company(
    tmp_path: Path, kind: str
) -> None:
    made = generator(tmp_path, kind)
    drawer = choose(made)
    asked = points(made, range(19))
    alone = [drawn(drawer, [point])[0] for point in asked]
    random = np.random.default_rng(0)
    for _ in range(12):
        rows = random.permutation(19)[: random.integers(1, 20)]
        for row, clip_THWC in zip(rows, drawn(drawer, [asked[r] for r in rows]), strict=True):
            assert np.array_equal(clip_THWC, alone[row])
    plain = np.stack(drawn(Drawer(made, parse("plain")), asked)).astype(float)
    assert 10 * np.log10(255**2 / max(np.mean((np.stack(alone) - plain) ** 2), 1e-9)) > CLOSE_DB - 3


def test_plain_is_the_generators_own(tmp_path: Path) -> None:
    made = generator(tmp_path)
    plain = choose(made, "plain")
    expected_NTHWC = made.generate([4, 5], [1, 2])
    assert np.array_equal(np.stack(drawn(plain, points(made, [4, 5]))), expected_NTHWC)


@pytest.mark.parametrize("layout", ["", " channels_last"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_what_is_pinned_is_drawn_so(tmp_path: Path, precision: str, layout: str) -> None:
    text = f"{precision}{layout} batch=4,8 threads=1"
    drawer = choose(generator(tmp_path), text)
    assert str(drawer.drawing) == text
    weights = {t.dtype for t in drawer._module.parameters()}
    assert weights == {getattr(torch, precision)}
    # Three are filled up to four.
    assert len(drawn(drawer, points(drawer.generator, range(3)))) == 3


@pytest.mark.parametrize("text", ["fast", "float16 batch=8 threads=1", "float32 batch=3 threads=1"])
def test_an_unknown_drawing_is_one_clear_line(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match="say auto, plain, or what"):
        parse(text)


def test_a_first_frame_is_never_drawn_in_bfloat16(tmp_path: Path) -> None:
    made = generator(tmp_path, kinds=["class", "image"], drop=0.1)
    drawer = choose(made)
    assert drawer.drawing.precision == torch.float32
    frame_HWC = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    z_1D, y_1 = made.points([1], [0], image=[frame_HWC])
    assert np.array_equal(drawn(drawer, [Point(z_1D, y_1)])[0][0], frame_HWC)


def test_long_and_interpolated_clips_share_a_batch_with_others(tmp_path: Path) -> None:
    made = generator(tmp_path, "residual")
    drawer = choose(made)
    z_ND, y_N = made.path(2, (1, 2), (0, 1))
    path = [Point(z_ND[row : row + 1], y_N.rows(slice(row, row + 1))) for row in range(2)]
    plain, timed = points(made, [1, 3]), points(made, [1])[0]._replace(times=(0.0, 0.5, 1.0))
    mixed = [plain[0], timed, path[0], plain[1], path[1]]
    alone = [drawn(drawer, [point])[0] for point in mixed]
    together = drawn(drawer, mixed)
    assert [clip_THWC.shape[0] for clip_THWC in together] == [8, 3, 8, 8, 8]
    for one_THWC, other_THWC in zip(alone, together, strict=True):
        assert np.array_equal(one_THWC, other_THWC)


def test_a_batch_is_what_came_while_the_model_was_busy() -> None:
    batches = []

    def run(items: Sequence[int]) -> Iterator[tuple[int, int]]:
        batches.append(list(items))
        for position in reversed(range(len(items))):
            if items[position] < 0:
                raise ValueError(items[position])
            yield position, 2 * items[position]

    async def main() -> list[int | BaseException]:
        batcher = Batcher(run, 4)
        return await asyncio.gather(*map(batcher, [1, 2, 3, -4, 5, 6]), return_exceptions=True)

    results = asyncio.run(main())
    # Everything that waits when the first is taken; an error is that of the batch's own.
    assert batches == [[1, 2, 3, -4], [5, 6]]
    assert all(isinstance(result, ValueError) for result in results[:4])
    assert results[4:] == [10, 12]


def test_who_gives_up_before_its_turn_is_not_drawn() -> None:
    batches = []
    begun, go = threading.Event(), threading.Event()

    def run(items: Sequence[int]) -> Iterator[tuple[int, int]]:
        batches.append(list(items))
        begun.set()
        assert go.wait(60)
        yield from enumerate(items)

    async def main() -> None:
        batcher = Batcher(run, 4)
        first = asyncio.create_task(batcher(0))
        await asyncio.to_thread(begun.wait, 60)
        others = [asyncio.create_task(batcher(item)) for item in (1, 2, 3)]
        await asyncio.sleep(0)
        others[1].cancel()
        go.set()
        await asyncio.gather(first, others[0], others[2])

    asyncio.run(main())
    assert batches == [[0], [1, 3]]


def test_more_than_can_be_drawn_soon_is_refused(tmp_path: Path) -> None:
    source = ClipSource(generator(tmp_path), "auto", queue_s=1e-3)

    async def main() -> Overloaded:
        source.admit(1000)  # nothing waits: whatever is asked for is drawn
        asked = [asyncio.create_task(source.draw(Ask(seed, 0))) for seed in range(200)]
        await asyncio.sleep(0)
        with pytest.raises(Overloaded) as refused:
            source.admit(1)
        await asyncio.gather(*asked)
        source.admit(1)
        return refused.value

    assert asyncio.run(main()).retry_after_s >= 1


def test_what_a_clip_takes_is_known_after_the_first(tmp_path: Path) -> None:
    slow = generator(tmp_path)
    slow.module.register_forward_hook(lambda *_: time.sleep(0.2))
    source = ClipSource(slow, "plain", queue_s=0.3)

    async def main() -> None:
        await source.draw(Ask(0, 0))
        await source.draw(Ask(0, 0))  # which begins once the first is over and done with
        asked = [asyncio.create_task(source.draw(Ask(seed, 0))) for seed in range(4)]
        await asyncio.sleep(0)
        with pytest.raises(Overloaded):
            source.admit(1)
        await asyncio.gather(*asked)

    asyncio.run(main())


def test_files_that_wait_to_be_encoded_count_as_well(tmp_path: Path) -> None:
    source = ClipSource(generator(tmp_path), "plain", queue_s=1e-3)

    async def main() -> None:
        clip_THWC = (await source.draw(Ask(0, 0))).clip_THWC
        asked = [
            asyncio.create_task(source.encode([clip_THWC], "gif", 12.5, scale=8)) for _ in range(16)
        ]
        await asked[0]
        with pytest.raises(Overloaded):
            source.admit(1)
        await asyncio.gather(*asked)
        source.admit(1)

    asyncio.run(main())


def test_a_gpu_has_a_batch_at_once(tmp_path: Path) -> None:
    made = generator(tmp_path)
    asked = points(made, range(11))
    asked[4] = asked[4]._replace(times=(0.0, 1.0))
    there = Drawer(replace(made, device=torch.device("cuda")), parse("plain"))
    assert list(there._plan(asked)) == [
        ([4], None),
        ([0, 1, 2, 3, 5, 6, 7, 8], 8),
        ([9, 10], 8),
    ]
