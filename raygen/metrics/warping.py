"""How well each frame follows from the one before: the error that is left after motion is undone.

The warping error of Lai et al., 2018 (arXiv 1808.00449, eq. 7), asks optical flow for the motion
and so inherits its mistakes on small, blurred or flickering clips. Here motion is found by
exhaustive block matching (Jain and Jain, 1981), which needs no network and is the same for real
and generated clips: each block of a frame is looked for in the frame before, and what the best
match leaves is the error. Grain and flicker stay in it; motion, even fast, hardly does.

Shapes: N clips, T frames, H, W, C = 3, uint8 0 to 255.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

Clips = npt.NDArray[np.uint8]

BLOCK = 4  # pixels
REACH = 1 / 16  # of the side: the farthest that a block is looked for
MOST_REACH = 4  # pixels


def warping_error(clips_NTHWC: Clips) -> float:
    """Mean absolute error of motion-compensated frames, in grey levels; 0 where nothing changes."""
    total = 0.0
    for clip_THWC in clips_NTHWC:
        total += float(_errors(torch.from_numpy(clip_THWC).permute(0, 3, 1, 2).float()).mean())
    return total / len(clips_NTHWC)


def warping_ratio(fake_NTHWC: Clips, real_NTHWC: Clips) -> float:
    """The error of the fakes over that of the real clips: 1 is right, more is flicker or grain.

    Infinite where the real clips leave no error.
    """
    real = warping_error(real_NTHWC)
    return warping_error(fake_NTHWC) / real if real else math.inf


def _errors(clip_TCHW: Tensor) -> Tensor:
    """The least mean absolute difference [T-1, H/4, W/4] of each block to the frame before."""
    H, W = clip_TCHW.shape[2:]
    reach = max(1, min(MOST_REACH, round(min(H, W) * REACH)))
    before_TCHW = F.pad(clip_TCHW[:-1], (reach,) * 4, mode="replicate")
    after_TCHW = clip_TCHW[1:]
    best = torch.full((), math.inf)
    for down in range(2 * reach + 1):
        for right in range(2 * reach + 1):
            moved_TCHW = before_TCHW[:, :, down : down + H, right : right + W]
            error_T1HW = (after_TCHW - moved_TCHW).abs_().mean(1, keepdim=True)
            best = torch.minimum(best, F.avg_pool2d(error_T1HW, BLOCK))
    return best
