"""What a clip's frames say of its motion, without optical flow: statistics, a few a clip.

    roughness(x_BCTHW)        # [B, 3]: how much it jitters, at three scales
    unexplained(x_BCTHW)      # [B, 1]: what of each frame the frame before it does not explain

Logarithms, so that a factor too much weighs as much as one too little. The generator's are
compared with the real clips' on average (`losses.mean_gap`), never pixel by pixel: a clip may move
as it likes. Differentiable, and judged clip by clip. Names carry shapes: B clips, C channels,
T frames, H height, W width, K statistics.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

SCALES = (1, 2, 4)
FLOOR = 2 / 255  # one grey level: what jitters less stands still
SIDE = 32  # frames are compared at this many pixels, and up to twice as many
PATCH = 3  # pixels of that size
REACH = 2  # how many of them a patch may have moved between two frames
SHARPNESS = 50.0  # of the matching: what is 1 / SHARPNESS worse counts exp(-1) as much


def roughness(x_BCTHW: Tensor) -> Tensor:
    """Log of the mean absolute second difference in time, [B, 3], at full size, half and quarter.

    The finest sees grain that flickers from pixel to pixel, the coarsest whole limbs that jerk. Of
    clips in [-1, 1]; T is at least 3, H and W are divisible by 4.
    """
    jerk_BCTHW = x_BCTHW[:, :, 2:] - 2 * x_BCTHW[:, :, 1:-1] + x_BCTHW[:, :, :-2]
    statistics = []
    for scale in SCALES:
        pooled_BCTHW = F.avg_pool3d(jerk_BCTHW, (1, scale, scale)) if scale > 1 else jerk_BCTHW
        statistics.append((pooled_BCTHW.abs().mean((1, 2, 3, 4)) + FLOOR).log())
    return torch.stack(statistics, 1)


def unexplained(x_BCTHW: Tensor) -> Tensor:
    """Log of how badly patches of frame t + 1 match the best of those nearby in frame t, [B, 1].

    Each patch is matched softly with those up to REACH pixels away, by weights of
    exp(-SHARPNESS d), d the mean squared difference; the statistic is the expected d. It is small
    where things move and large where they boil. Large frames are first averaged down to
    about SIDE pixels.
    """
    count, _, _, height, width = x_BCTHW.shape
    factor = max(1, height // SIDE)
    frames_NCHW = F.avg_pool3d(x_BCTHW, (1, factor, factor)).transpose(1, 2)
    before_NCHW, after_NCHW = frames_NCHW[:, :-1].flatten(0, 1), frames_NCHW[:, 1:].flatten(0, 1)
    height, width = after_NCHW.shape[2:]
    padded_NCHW = F.pad(before_NCHW, (REACH,) * 4, mode="replicate")
    shifts = [(dy, dx) for dy in range(2 * REACH + 1) for dx in range(2 * REACH + 1)]
    distances = [
        F.avg_pool2d(
            (after_NCHW - padded_NCHW[:, :, dy : dy + height, dx : dx + width]).square().mean(1),
            PATCH,
        )
        for dy, dx in shifts
    ]
    distance_SNHW = torch.stack(distances)
    weight_SNHW = torch.softmax(-SHARPNESS * distance_SNHW, 0)
    expected_NHW = (weight_SNHW * distance_SNHW).sum(0)
    expected_B = expected_NHW.view(count, -1).mean(1)
    return (expected_B + FLOOR**2).log()[:, None]
