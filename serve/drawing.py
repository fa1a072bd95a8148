"""How clips are computed: precision, memory layout, batch and threads, by a short measurement.

    drawer = choose(load_generator(export), "auto")
    str(drawer.drawing)                      # "bfloat16 channels_last batch=1,2,4,8 threads=1"
    choose(generator, str(drawer.drawing))   # the same elsewhere, unmeasured

Only what leaves every clip as it is in any company is considered: clips are computed several at
once where each comes out the same, to the bit, at every place, in every size that is used and
beside whatever others. "plain" is what `Generator.generate` does. On one thread the measurement
counts CPU time, so that a busy machine chooses as an idle one does; a GPU draws plainly.
"""

from __future__ import annotations

import copy
import itertools
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from raygen import heap, sampling
from raygen.conditions import Condition
from raygen.errors import ConfigError
from raygen.export import Generator
from raygen.video import Clips

SIZES = (1, 2, 4, 8)
MAX_BATCH = SIZES[-1]
GAIN = 1.1  # what is less simple must be so many times as fast
CLOSE_DB = 40.0  # PSNR of bfloat16's clips against float32's, at the least
REPEATS = 3  # of a measurement; the fastest counts
SLOWEST_S = 2.0  # CPU seconds a clip beyond which measuring takes too long
_WRITTEN = re.compile(
    r"(float32|bfloat16)( channels_last)? batch=(\d(?:,\d)*) threads=(\d+)", re.ASCII
)


@dataclass(frozen=True)
class Drawing:
    """How clips are computed; `sizes`: how many at once, () for what `Generator.generate` does."""

    precision: torch.dtype = torch.float32
    channels_last: bool = False
    sizes: tuple[int, ...] = ()
    threads: int = 1

    def __str__(self) -> str:
        if not self.sizes:
            return "plain"
        precision = str(self.precision).removeprefix("torch.")
        layout = " channels_last" if self.channels_last else ""
        sizes = ",".join(map(str, self.sizes))
        return f"{precision}{layout} batch={sizes} threads={self.threads}"


def parse(text: str) -> Drawing:
    """A drawing as `str` writes it. Raises ConfigError."""
    if text == "plain":
        return Drawing()
    written = _WRITTEN.fullmatch(text)
    sizes = tuple(map(int, written[3].split(","))) if written else ()
    if written is None or not set(sizes) <= set(SIZES) or sizes != tuple(sorted(set(sizes))):
        raise ConfigError(
            f"unknown drawing {text!r}; say auto, plain, or what /v1/models shows, such as "
            "'bfloat16 channels_last batch=1,2,4,8 threads=1'",
            "drawing",
        )
    return Drawing(getattr(torch, written[1]), bool(written[2]), sizes, int(written[4]))


class Point(NamedTuple):
    """One clip to draw: a latent [1, D], its condition, and when its frames are (see `times`)."""

    z_1D: Tensor
    y_1: Condition
    times: tuple[float, ...] | None = None


class Drawer:
    """Draws points as `drawing` says. One thread at a time, always the same one."""

    def __init__(self, generator: Generator, drawing: Drawing) -> None:
        self.generator = generator
        self.drawing = drawing
        self.clips_per_s: float | None = None  # where it was measured
        self._module = generator.module
        if drawing.sizes:
            self._module = copy.deepcopy(generator.module).to(drawing.precision)
        if drawing.channels_last:
            _lay_out(self._module)

    def __call__(self, points: Sequence[Point]) -> Iterator[tuple[list[int], Clips]]:
        """Clips [N,T,H,W,3] as they are made, and which of the points they are."""
        if self.drawing.sizes:
            torch.set_num_threads(self.drawing.threads)  # of this thread
        for rows, size in self._plan(points):
            z_ND = torch.cat([points[row].z_1D for row in rows])
            y_N = _together([points[row].y_1 for row in rows])
            times = points[rows[0]].times
            yield rows, self._draw(z_ND, y_N, times, size)

    def _draw(
        self, z_ND: Tensor, y_N: Condition, times: Sequence[float] | None, size: int | None
    ) -> Clips:
        return sampling.generate(self._module, z_ND, y_N, self.generator.device, times, size)

    def _plan(self, points: Sequence[Point]) -> Iterator[tuple[list[int], int | None]]:
        """Which points go through the network together, and at which size."""
        # Sizes were found alike at the trained length alone; another is drawn by itself.
        timed = [row for row, point in enumerate(points) if point.times is not None]
        sizes = self.drawing.sizes
        yield from (([row], 1 if sizes else None) for row in timed)
        sizes = sizes or (sampling.at_once(self.generator.device),)
        for embedded in (False, True):
            rows = [
                row
                for row, point in enumerate(points)
                if point.times is None and (point.y_1.embedded_BE is not None) is embedded
            ]
            while rows:
                size = max((s for s in sizes if s <= len(rows)), default=sizes[0])
                yield rows[:size], size
                rows = rows[size:]


def choose(generator: Generator, drawing: str = "auto") -> Drawer:
    """The drawer that `drawing` names, or with "auto" the fastest here. Raises ConfigError.

    Threads: as many as torch has in this process, or one, whichever draws faster.
    """
    if generator.device.type == "cpu":
        heap.keep()
    if drawing != "auto":
        return Drawer(generator, parse(drawing))
    plain = Drawer(generator, Drawing())
    if generator.device.type != "cpu":
        return plain
    points = _probes(generator)
    _, best_s = _timed(partial(_all, plain, points[:2]), 2)
    plain.clips_per_s = 1 / best_s
    if best_s > SLOWEST_S:
        return plain
    # A first frame is kept to the bit, and bfloat16 has no room for its pixels.
    exact = "image" in generator.conditions.kinds
    precisions = [torch.float32] if exact else [torch.float32, torch.bfloat16]
    reference_NTHWC, threads = _all(plain, points), torch.get_num_threads()
    found = []
    for precision, channels_last in itertools.product(precisions, (False, True)):
        tried = Drawer(generator, Drawing(precision, channels_last, (MAX_BATCH,), threads))
        clips_NTHWC, seconds = _timed(partial(_all, tried, points), len(points))
        if seconds * GAIN < best_s and _psnr(clips_NTHWC, reference_NTHWC) >= CLOSE_DB:
            found.append((seconds, tried))
    best = plain
    for seconds, tried in sorted(found, key=lambda pair: pair[0]):
        sizes = _alike(tried, points)
        if MAX_BATCH in sizes:
            best, best_s = Drawer(generator, replace(tried.drawing, sizes=sizes)), seconds
            break
    if threads > 1 and best is not plain:
        best, best_s = _on_one_thread(best, points, best_s)
    best.clips_per_s = 1 / best_s
    return best


def _on_one_thread(best: Drawer, points: list[Point], best_s: float) -> tuple[Drawer, float]:
    """`best`, or the same on one thread where that is no slower."""
    threads = torch.get_num_threads()
    one = Drawer(best.generator, replace(best.drawing, threads=1))
    torch.set_num_threads(1)
    try:
        _, seconds = _timed(partial(_all, one, points), len(points))
    finally:
        torch.set_num_threads(threads)
    return (one, seconds) if seconds <= best_s else (best, best_s)


def _timed(draw: Callable[[], Clips], clips: int) -> tuple[Clips, float]:
    """What was drawn, and the seconds a clip: of CPU where one thread draws."""
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    least = float("inf")
    for _ in range(REPEATS):
        start = clock()
        clips_NTHWC = draw()
        least = min(least, clock() - start)
    return clips_NTHWC, least / clips


def _all(drawer: Drawer, points: Sequence[Point]) -> Clips:
    return np.concatenate([clips_NTHWC for _, clips_NTHWC in drawer(points)])


def _alike(drawer: Drawer, points: list[Point]) -> tuple[int, ...]:
    """The sizes at which every clip is what it is at the largest one, wherever and beside whom.

    Compared before rounding to pixels, which hides most differences.
    """
    generator, module = drawer.generator, drawer._module
    z_ND = torch.cat([p.z_1D for p in points]).to(generator.device, drawer.drawing.precision)
    y_N = _together([p.y_1 for p in points]).to(generator.device, drawer.drawing.precision)

    @torch.inference_mode()
    def draw(rows_B: Tensor) -> Tensor:
        clips_BCTHW: Tensor = module(z_ND[rows_B], y_N.rows(rows_B))
        return clips_BCTHW

    rows_N = torch.arange(len(points))
    expected_NCTHW = draw(rows_N)
    # Other neighbours and other places, and copies of one clip.
    orders = (rows_N.roll(3), rows_N.flip(0), torch.ones_like(rows_N))
    return tuple(
        size
        for size in SIZES
        if all(
            torch.equal(draw(rows_B), expected_NCTHW[rows_B])
            for order in orders
            for rows_B in torch.split(order, size)
        )
    )


def _probes(generator: Generator) -> list[Point]:
    """As many clips as the largest batch, given everything that the model takes."""
    kinds, random = generator.conditions.kinds, np.random.default_rng(0)
    data = generator.data
    points = []
    for seed in range(MAX_BATCH):
        pixels_HWC = random.integers(0, 256, (data.height, data.width, 3), np.uint8)
        z_1D, y_1 = generator.points(
            [seed],
            [seed % len(generator.classes)] if "class" in kinds else None,
            text=[f"{seed} moves to the right"] if "text" in kinds else None,
            image=[pixels_HWC] if "image" in kinds else None,
            vector=[random.normal(size=generator.conditions.vector_dim).tolist()]
            if "vector" in kinds
            else None,
        )
        points.append(Point(z_1D, y_1))
    return points


def _psnr(clips_NTHWC: Clips, reference_NTHWC: Clips) -> float:
    difference = clips_NTHWC.astype(np.float32) - reference_NTHWC
    return float(10 * np.log10(255**2 / max(float(np.mean(difference**2)), 1e-9)))


def _together(conditions: Sequence[Condition]) -> Condition:
    return Condition(*(None if p[0] is None else torch.cat(p) for p in zip(*conditions)))  # type: ignore[arg-type] # noqa: B905


def _lay_out(module: nn.Module) -> None:
    """Weights of convolutions with channels last; what passes between them then follows."""
    for part in module.modules():
        if isinstance(part, nn.Conv3d | nn.ConvTranspose3d):
            layout = torch.channels_last_3d
        elif isinstance(part, nn.Conv2d | nn.ConvTranspose2d):
            layout = torch.channels_last
        else:
            continue
        part.weight.data = part.weight.data.contiguous(memory_format=layout)
