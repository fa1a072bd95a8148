"""What a clip of a moving shape shows, read from its pixels by rules: no network, no training.

    judged = read(clip_THWC)          # Shown(colour="red", shape="circle", motion="right")

Shapes are saturated and their backgrounds nearly grey, so that saturation is the mask. Names carry
shapes: T frames, H height, W width, A angles.
"""

from __future__ import annotations

import colorsys
import functools
import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from raygen import video
from raygen.data import synthetic

Array = npt.NDArray[np.float64]

SATURATED = 75.0  # largest minus smallest channel, grey levels: about half of any shape's
LEAST = 0.015  # of the frame that a shape covers
FAR = 0.22  # of the side that a moving shape's centre goes, at least
BEATS = 0.2  # standard deviation over mean of a pulsing shape's area, at least
TURNS = 0.8  # mean resultant length of a spinning shape's angles, at most
STEP = 10  # degrees between the angles that are tried
_PERIOD = {"circle": STEP, "square": 90, "triangle": 120}  # degrees


class Shown(NamedTuple):
    """Each "" where it is none of those that are rendered."""

    colour: str = ""
    shape: str = ""
    motion: str = ""


def read(clip_THWC: video.Clips) -> Shown:
    """The one shape in the clip, and what it does."""
    clip = clip_THWC.astype(np.float64)
    mask_THW = clip.max(-1) - clip.min(-1) > SATURATED
    area_T = mask_THW.mean((1, 2))
    if area_T.min() < LEAST / 3 or area_T.mean() < LEAST:
        return Shown()
    colour = _colour(clip[mask_THW].mean(0))
    whole_T = ~_at_the_edge(mask_THW)
    motion = _straight(mask_THW)
    pulses = area_T.std() / area_T.mean() > BEATS
    if not motion and pulses:
        motion = "pulse"
    seen_THW = mask_THW[whole_T] if whole_T.any() else mask_THW
    upright = bool(motion)
    fits = {shape: _fit(seen_THW, shape, upright=upright) for shape in synthetic.SHAPES}
    shape = max(fits, key=lambda name: fits[name][0])
    if not motion and _turns(fits[shape][1], _PERIOD[shape]) and shape != "circle":
        motion = "spin"
    return Shown(colour, shape, motion)


def colour_and_shape(frame_HWC: video.Clips) -> tuple[str, str]:
    """Of one frame, at any angle."""
    shown = frame_HWC.astype(np.float64)
    mask_HW = shown.max(-1) - shown.min(-1) > SATURATED
    if mask_HW.mean() < LEAST / 3:
        return "", ""
    fits = {shape: _fit(mask_HW[None], shape, upright=False)[0] for shape in synthetic.SHAPES}
    return _colour(shown[mask_HW].mean(0)), max(fits, key=lambda name: fits[name])


def _colour(rgb_3: Array) -> str:
    def hue(rgb: npt.ArrayLike) -> float:
        r, g, b = np.asarray(rgb, np.float64) / 255
        return colorsys.rgb_to_hsv(r, g, b)[0]

    def apart(name: str) -> float:
        difference = abs(hue(rgb_3) - hue(synthetic.COLOURS[name]))
        return min(difference, 1 - difference)

    return min(synthetic.COLOURS, key=apart)


def _at_the_edge(mask_THW: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    edges = (mask_THW[:, 0], mask_THW[:, -1], mask_THW[:, :, 0], mask_THW[:, :, -1])
    return np.asarray(np.stack([edge.any(1) for edge in edges]).any(0))


def _centres(mask_THW: npt.NDArray[np.bool_]) -> tuple[Array, Array]:
    size = mask_THW.shape[1]
    at = (np.arange(size) + 0.5) / size
    count_T = mask_THW.sum((1, 2))
    return (mask_THW.sum(1) * at).sum(1) / count_T, (mask_THW.sum(2) * at).sum(1) / count_T


def _straight(mask_THW: npt.NDArray[np.bool_]) -> str:
    """right, left, up or down, for centres that go one way, about evenly; or ""."""
    x_T, y_T = _centres(mask_THW)
    dx, dy = x_T[-1] - x_T[0], y_T[-1] - y_T[0]
    if max(abs(dx), abs(dy)) < FAR or min(abs(dx), abs(dy)) > 0.5 * max(abs(dx), abs(dy)):
        return ""
    along_T, way = (x_T, dx) if abs(dx) > abs(dy) else (y_T, dy)
    # No leap, and no way back.
    steps = np.diff(along_T) * np.sign(way)
    if steps.max() > 0.6 * abs(way) or steps.min() < -0.1 * abs(way):
        return ""
    horizontal, vertical = ("right", "left"), ("down", "up")
    return (horizontal if abs(dx) > abs(dy) else vertical)[int(way < 0)]


def _fit(
    mask_THW: npt.NDArray[np.bool_], shape: str, *, upright: bool
) -> tuple[float, list[float]]:
    """How well the shape covers the mask (mean over time of intersection over union), and the
    angle in degrees at which it does best in each frame.
    """
    angles = [0] if upright else range(0, _PERIOD[shape], STEP)
    best, turned = [], []
    for mask_HW, x, y in zip(mask_THW, *_centres(mask_THW), strict=True):
        drawn_AHW = np.stack(
            [_template(shape, mask_HW, x, y, math.radians(angle)) for angle in angles]
        )
        both_A = (drawn_AHW & mask_HW).sum((1, 2))
        either_A = (drawn_AHW | mask_HW).sum((1, 2))
        overlap_A = both_A / np.maximum(either_A, 1)
        best.append(float(overlap_A.max()))
        turned.append(float(angles[int(overlap_A.argmax())]))
    return float(np.mean(best)), turned


def _template(
    shape: str, mask_HW: npt.NDArray[np.bool_], x: float, y: float, angle: float
) -> npt.NDArray[np.bool_]:
    size = len(mask_HW)
    radius = math.sqrt(float(mask_HW.mean()) / _unit_area(shape))
    at = (np.arange(size) + 0.5) / size
    dx, dy = at[None, :] - x, at[:, None] - y
    cos, sin = math.cos(angle), math.sin(angle)
    turned = (dx * cos + dy * sin, dy * cos - dx * sin)
    return np.asarray(synthetic._distance(shape, *turned, np.float64(radius)) < 0)  # type: ignore[arg-type]


@functools.cache
def _unit_area(shape: str) -> float:
    """Area of the shape of radius 1, as it is rendered."""
    at = np.linspace(-1.5, 1.5, 1201)
    inside = synthetic._distance(shape, at[None, :], at[:, None], np.float64(1)) < 0  # type: ignore[arg-type]
    return float(inside.mean() * 9)


def _turns(angles: list[float], period: int) -> bool:
    phases = np.exp(2j * np.pi * np.array(angles) / period)
    return bool(abs(phases.mean()) < TURNS)
