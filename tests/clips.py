"""Small videos of the tests' own: moving shapes and noise, encoded as asked for."""

from __future__ import annotations

import io
from fractions import Fraction

import av
import numpy as np
import numpy.typing as npt

from raygen.data import synthetic

Frames = npt.NDArray[np.uint8]


def moving(name: str, seed: int, frames: int = 48, size: int = 64) -> Frames:
    """A synthetic class, as in "red-circle-right", [T, H, W, 3]."""
    colour, shape, motion = name.split("-")
    rng = np.random.default_rng(seed)
    path = synthetic.path(motion, frames, rng)
    return synthetic.render(shape, colour, path, size, rng)


def scenery(seed: int, size: int = 64) -> Frames:
    """A still picture [H, W, 3] of smooth blotches."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (5, 5, 3)).astype(np.float32)
    at = np.linspace(0, 3.999, size)
    low, part = at.astype(int), (at % 1)[:, None]
    rows = coarse[low] * (1 - part[:, None]) + coarse[low + 1] * part[:, None]
    both = rows[:, low] * (1 - part) + rows[:, low + 1] * part
    return np.asarray(both, np.uint8)


def encode(
    clip_THWC: Frames, fps: int = 16, *, size: int | None = None, crf: int = 20, gop: int = 12
) -> bytes:
    """H.264 in mp4 with its index at the end, scaled to `size`."""
    file = io.BytesIO()
    side = size or clip_THWC.shape[1]
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": str(crf), "g": str(gop)})
        stream.width, stream.height, stream.pix_fmt = side, side, "yuv420p"
        for number, image in enumerate(clip_THWC):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            frame = frame.reformat(side, side, "yuv420p")
            frame.pts, frame.time_base = number, Fraction(1, fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return file.getvalue()
