"""Real clips spoilt on purpose: what a distance says of them is what it can and cannot notice.

A distance that gives frozen clips the figure of moving ones says nothing about motion, whatever it
says of generated clips (Ge et al., CVPR 2024, "On the Content Bias in Fréchet Video Distance").
Shapes: N clips, T frames, H, W, C = 3, uint8 0 to 255.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F

Clips = npt.NDArray[np.uint8]

BLUR = 1 / 16  # of the side: the Gaussian's standard deviation


def frozen(clips_NTHWC: Clips) -> Clips:
    """The middle frame of each clip, held."""
    T = clips_NTHWC.shape[1]
    return np.repeat(clips_NTHWC[:, T // 2 : T // 2 + 1], T, axis=1)


def shuffled(clips_NTHWC: Clips) -> Clips:
    """The frames of each clip in an order of its own, the same at every call."""
    rng = np.random.default_rng(0)
    return np.stack([rng.permutation(clip_THWC) for clip_THWC in clips_NTHWC])


def backwards(clips_NTHWC: Clips) -> Clips:
    """Time reversed."""
    return np.ascontiguousarray(clips_NTHWC[:, ::-1])


def mirrored(clips_NTHWC: Clips) -> Clips:
    """Left and right exchanged."""
    return np.ascontiguousarray(clips_NTHWC[:, :, :, ::-1])


def blurred(clips_NTHWC: Clips) -> Clips:
    """Each frame under a Gaussian of BLUR of its side."""
    sigma = BLUR * min(clips_NTHWC.shape[2:4])
    radius = round(2 * sigma)
    taps_K = torch.exp(-0.5 * (torch.arange(-radius, radius + 1) / sigma).square())
    taps_K = taps_K / taps_K.sum()
    blurred = []
    for clip_THWC in clips_NTHWC:
        T, H, W, C = clip_THWC.shape
        planes_P1HW = torch.from_numpy(clip_THWC).permute(0, 3, 1, 2).reshape(T * C, 1, H, W)
        planes_P1HW = F.pad(planes_P1HW.float(), (radius,) * 4, mode="replicate")
        planes_P1HW = F.conv2d(planes_P1HW, taps_K.view(1, 1, -1, 1))
        planes_P1HW = F.conv2d(planes_P1HW, taps_K.view(1, 1, 1, -1))
        levels_TCHW = planes_P1HW.round().to(torch.uint8).view(T, C, H, W)
        blurred.append(levels_TCHW.permute(0, 2, 3, 1).numpy())
    return np.stack(blurred)


TREATMENTS: dict[str, Callable[[Clips], Clips]] = {
    "shuffled in time": shuffled,
    "frozen": frozen,
    "backwards": backwards,
    "mirrored": mirrored,
    "blurred": blurred,
}
HALF_MISSING = "half the classes missing"
