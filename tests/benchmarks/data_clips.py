"""Clips that cost what ordinary ones do: a camera that pans over a grainy texture, in long GOPs.

The flat shapes of `raygen data synth` compress to next to nothing and decode in a fifth of the time
that a film takes, even a small one: figures of those would say little of data sets.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt

WIDTH, HEIGHT = 640, 360  # pixels
FRAMES, FPS = 125, 25
GRAIN = 5.0  # grey levels, standard deviation
GRAIN_ROOM = 64  # pixels by which a frame's grain may be moved against the next one's
BLOTCHES = ((64, 60.0), (16, 35.0), (4, 18.0))  # pixels, and grey levels of standard deviation

Frame = npt.NDArray[np.uint8]


def render(folder: Path, name: str, count: int, seed: int) -> None:
    """Writes `folder/name/0001.mp4` and so on; the same arguments give the same pictures."""
    (folder / name).mkdir(parents=True)
    for number in range(1, count + 1):
        rng = np.random.default_rng((seed, *name.encode(), number))
        (folder / name / f"{number:04d}.mp4").write_bytes(_encoded(rng))


def _encoded(rng: np.random.Generator) -> bytes:
    """H.264 as x264 makes it unless told otherwise, but for its speed: a key frame in 250."""
    sink = io.BytesIO()
    with av.open(sink, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.codec_context.thread_count = 1
        for number, image_HWC in enumerate(_pan(rng)):
            frame = av.VideoFrame.from_ndarray(image_HWC, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, FPS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return sink.getvalue()


def _pan(rng: np.random.Generator) -> Iterator[Frame]:
    """The frames: a window on a wave's way over the texture, each with grain of its own."""
    texture_HWC = _texture(rng, HEIGHT * 3 // 2, WIDTH * 3 // 2)
    grain_HW1 = rng.normal(0, GRAIN, (HEIGHT + GRAIN_ROOM, WIDTH + GRAIN_ROOM, 1)).astype(np.int16)
    phase_y, phase_x = rng.uniform(0, 2 * np.pi, 2)
    period_y, period_x = rng.uniform(4, 8, 2) * FPS / (2 * np.pi)  # of the wave, in frames
    for t in range(FRAMES):
        y = int(HEIGHT / 4 * (1 + np.sin(t / period_y + phase_y)))
        x = int(WIDTH / 4 * (1 + np.sin(t / period_x + phase_x)))
        at_y, at_x = rng.integers(0, GRAIN_ROOM, 2)
        grain = grain_HW1[at_y : at_y + HEIGHT, at_x : at_x + WIDTH]
        seen = texture_HWC[y : y + HEIGHT, x : x + WIDTH] + grain
        yield np.clip(seen, 0, 255).astype(np.uint8)


def _texture(rng: np.random.Generator, height: int, width: int) -> Frame:
    """Blotches upon blotches of colour, [height, width, 3]."""
    texture_HWC = np.full((height, width, 3), 128, np.float32)
    for size, levels in BLOTCHES:
        coarse = rng.normal(0, levels, (-(-height // size), -(-width // size), 3))
        texture_HWC += coarse.repeat(size, 0).repeat(size, 1)[:height, :width]
    return np.clip(texture_HWC, 0, 255).astype(np.uint8)
