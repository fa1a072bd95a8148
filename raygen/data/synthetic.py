"""Labelled moving shapes rendered to H.264 mp4: the demo's clips, and the tests'.

    raygen data synth s3://bucket/shapes

A class is a colour, a shape and a motion: `red-circle-right`. The clips of a class differ in
place, size, speed, shade and background. The truth of every frame goes beside them, into
`truth.jsonl`, which is a manifest with captions as well (`--labels manifest:.../truth.jsonl`).
Names carry shapes: T frames, H height, W width.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from raygen import video
from raygen.data import store
from raygen.errors import ConfigError

Array = npt.NDArray[np.float64]

COLOURS = {
    "red": (225, 45, 45),
    "green": (55, 190, 75),
    "blue": (50, 105, 235),
    "yellow": (245, 205, 40),
}
SHAPES = ("circle", "square", "triangle")
MOTIONS = ("right", "left", "up", "down", "pulse", "spin")

_DIRECTIONS = {"right": (1, 0), "left": (-1, 0), "up": (0, -1), "down": (0, 1)}  # (x, y), y down
# A spinning circle looks like one at rest.
_CLASSES = tuple(
    f"{colour}-{shape}-{motion}"
    for colour, shape, motion in itertools.product(COLOURS, SHAPES, MOTIONS)
    if (shape, motion) != ("circle", "spin")
)


@dataclass(frozen=True)
class Path:
    """Where a shape is in each frame: fractions of the frame's side, x to the right, y down."""

    x_T: Array
    y_T: Array
    radius_T: Array  # of the circumscribed circle
    angle_T: Array  # radians, clockwise on the screen


def class_names(count: int) -> list[str]:
    """The first `count` classes of an order in which each differs most from those before it.

    The first three share no colour, shape or motion; the first four no colour and no motion.
    Raises ConfigError unless there are as many classes.
    """
    if not 1 <= count <= len(_CLASSES):
        raise ConfigError(f"{count} classes of moving shapes: take 1 to {len(_CLASSES)}")
    chosen: list[str] = []
    for _ in range(count):
        left = [name for name in _CLASSES if name not in chosen]
        chosen.append(max(left, key=lambda name: _novelty(name, chosen)))
    return chosen


def caption(name: str) -> str:
    """What a class shows, in words: "a red circle moves right", "a blue square spins"."""
    colour, shape, motion = name.split("-")
    doing = f"moves {motion}" if motion in _DIRECTIONS else f"{motion}s"
    return f"a {colour} {shape} {doing}"


def path(motion: str, frames: int, rng: np.random.Generator) -> Path:
    """A motion drawn from its class; straight ones cross over half the frame at one speed."""
    x, y = rng.uniform(0.42, 0.58, 2)
    rest_T = np.zeros(frames)
    time_T = np.linspace(-0.5, 0.5, frames)  # 0 in the middle of the clip
    if motion in _DIRECTIONS:
        right, down = _DIRECTIONS[motion]
        step_T = rng.uniform(0.56, 0.68) * time_T
        radius = rng.uniform(0.22, 0.27)
        return Path(x + right * step_T, y + down * step_T, rest_T + radius, rest_T)
    if motion == "spin":
        angle_T = rng.uniform(0, 2 * np.pi) + rng.uniform(0.9, 1.1) * 2 * np.pi * time_T
        return Path(rest_T + x, rest_T + y, rest_T + rng.uniform(0.28, 0.34), angle_T)
    # Pulse: two beats a clip, from any phase.
    beat_T = np.sin(4 * np.pi * time_T + rng.uniform(0, 2 * np.pi))
    return Path(rest_T + x, rest_T + y, rng.uniform(0.21, 0.25) * (1 + 0.4 * beat_T), rest_T)


def render(shape: str, colour: str, path: Path, size: int, rng: np.random.Generator) -> video.Clips:
    """The clip, uint8 [T, size, size, 3]: one anti-aliased shape on a still, soft background."""
    centres = (np.arange(size) + 0.5) / size
    background_HW3 = _background(centres, rng)
    shade_3 = np.array(COLOURS[colour]) * rng.uniform(0.88, 1.0)
    dx_THW = centres[None, None, :] - path.x_T[:, None, None]
    dy_THW = centres[None, :, None] - path.y_T[:, None, None]
    cos_T11, sin_T11 = (f(path.angle_T)[:, None, None] for f in (np.cos, np.sin))
    outside_THW = _distance(
        shape,
        dx_THW * cos_T11 + dy_THW * sin_T11,
        dy_THW * cos_T11 - dx_THW * sin_T11,
        path.radius_T[:, None, None],
    )
    # The edge is one pixel wide: coverage falls from 1 to 0 over it.
    cover_THW1 = np.clip(0.5 - outside_THW * size, 0, 1)[..., None]
    clip_THW3 = cover_THW1 * shade_3 + (1 - cover_THW1) * background_HW3
    return np.rint(clip_THW3).astype(np.uint8)


def synthesize(
    uri: str,
    classes: Sequence[str],
    clips_per_class: int,
    seed: int,
    size: int = 64,
    frames: int = 24,
    fps: float = 16.0,
) -> int:
    """Writes `uri/<class>/<class>-0001.mp4` and so on, then `uri/truth.jsonl`; how many clips.

    The same arguments give the same bytes, and a clip depends on `seed`, its class and its number
    alone. Raises ConfigError for an unknown class, StorageError where `uri` cannot be written.
    """
    for name in classes:
        if name not in _CLASSES:
            raise ConfigError(f"no class of moving shapes {name!r}; one is {_CLASSES[0]}")
    truth: list[str] = []
    for name, number in itertools.product(classes, range(1, clips_per_class + 1)):
        colour, shape, motion = name.split("-")
        rng = np.random.default_rng((seed, _CLASSES.index(name), number))
        way = path(motion, frames, rng)
        clip_THWC = render(shape, colour, way, size, rng)
        clip_uri = store.join(uri, name, f"{name}-{number:04d}.mp4")
        store.write_bytes(clip_uri, video.encode_mp4(clip_THWC, fps))
        labels = {"uri": clip_uri, "class": name, "colour": colour, "shape": shape}
        labels |= {"motion": motion, "caption": caption(name)}
        truth.append(json.dumps({**labels, "fps": fps, **_truth(way)}))
    store.write_bytes(store.join(uri, "truth.jsonl"), ("\n".join(truth) + "\n").encode())
    return len(truth)


def _novelty(name: str, chosen: Sequence[str]) -> tuple[int, int]:
    differing = [
        sum(a != b for a, b in zip(name.split("-"), other.split("-"), strict=True))
        for other in chosen
    ]
    return min(differing, default=0), sum(differing)


def _truth(way: Path) -> dict[str, list[float]]:
    return {
        "x": np.round(way.x_T, 4).tolist(),
        "y": np.round(way.y_T, 4).tolist(),
        "radius": np.round(way.radius_T, 4).tolist(),
        "angle": np.round(way.angle_T, 4).tolist(),
    }


def _background(centres: Array, rng: np.random.Generator) -> Array:
    # Four dim, almost grey corners, blended bilinearly: [H, W, 3].
    corners_223 = rng.uniform(30, 95, (2, 2, 1)) + rng.uniform(-10, 10, (2, 2, 3))
    weights_2N = np.stack([1 - centres, centres])
    background_HW3: Array = np.einsum("ah,bw,abc->hwc", weights_2N, weights_2N, corners_223)
    return background_HW3


def _distance(shape: str, dx: Array, dy: Array, radius: Array) -> Array:
    """How far outside the shape's edge a point is (inside: negative), fractions of the side."""
    if shape == "circle":
        return np.hypot(dx, dy) - radius * 0.9  # about the square's visual weight
    if shape == "square":
        return np.maximum(np.abs(dx), np.abs(dy)) - radius / math.sqrt(2) * 1.1
    # An equilateral triangle, tip up: inside all three edges, each radius / 2 from the centre.
    slanted = np.abs(dx) * math.sin(math.pi / 3) - dy * math.cos(math.pi / 3)
    return np.maximum(slanted, dy) - radius / 2
