"""How clips move, measured on their pixels: no network, no labels.

Shapes: N clips, T frames, H, W, C = 3, uint8 0 to 255. Run it on decoded or generated arrays, never
on an encoded file: a codec smooths exactly what is measured here.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
from torchmetrics.functional.image import structural_similarity_index_measure

Clips = npt.NDArray[np.uint8]


def motion(clips_NTHWC: Clips, order: int = 1) -> float:
    """Mean absolute difference of neighbouring frames, in grey levels.

    `order` 2 takes the difference of differences: what jitters rather than moves.
    """
    total = 0.0
    for clip_THWC in clips_NTHWC:  # one clip at a time: the differences need 16 bits a sample
        total += float(np.abs(np.diff(clip_THWC.astype(np.int16), order, axis=0)).mean())
    return total / len(clips_NTHWC)


def motion_ratio(fake_NTHWC: Clips, real_NTHWC: Clips, order: int = 1) -> float:
    """`motion` of the fakes over that of the real clips: 1 is right, 0 frozen, more is grain.

    Infinite where the real clips do not move at all.
    """
    real = motion(real_NTHWC, order)
    return motion(fake_NTHWC, order) / real if real else math.inf


def neighbour_ssim(clips_NTHWC: Clips) -> float:
    """Structural similarity of neighbouring frames, averaged: 1 where all frames are equal.

    Gaussian window of 11 pixels, sigma 1.5 (Wang et al., 2004).
    """
    total = 0.0
    for clip_THWC in clips_NTHWC:
        clip_TCHW = torch.from_numpy(clip_THWC).permute(0, 3, 1, 2).float() / 255
        ssim = structural_similarity_index_measure(clip_TCHW[1:], clip_TCHW[:-1], data_range=1.0)
        total += float(ssim)
    return total / len(clips_NTHWC)
