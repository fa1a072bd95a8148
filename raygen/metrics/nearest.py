"""The training clip that each generated clip is nearest to, and whether that is a copy.

Pixels are compared over time shifts and mirror images, features with those of mirror images. Any
clip is nearest to something, and blurred or dim ones are near to everything: what tells a copy is
that one video is much nearer than the next ones. That ratio is the test of Carlini et al., 2023
(arXiv 2301.13188, section 4.2); its threshold comes from real clips, each held out with all of
its video, as data-copying is told by Meehan et al., 2020 (arXiv 2004.05675).

Shapes: N real clips of V videos, M generated ones, T frames, H, W, C = 3, uint8 0 to 255.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

Clips = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]

SIDE = 16  # pixels to which frames are averaged before they are compared
FRAMES = 16  # of a clip that are compared
FARTHEST = 1 / 2  # of a clip: the largest time shift
OTHERS = 5  # videos beyond the nearest that it is held against
FENCE = 3.0  # interquartile ranges below the lower quartile: Tukey's "far out"
TWIN = 0.2  # of the usual distance to the next video: nearer ones show the same


@dataclass(frozen=True)
class Nearest:
    """Of each of M clips: the nearest of N real ones, how far it is, and what it tells.

    `distance_M` is in grey levels (root mean square) or in units of the features. `ratio_M` is the
    distance to the nearest video over the mean of that to the next OTHERS: 0 is a perfect copy.
    """

    index_M: Labels
    distance_M: npt.NDArray[np.float64]
    ratio_M: npt.NDArray[np.float64]


def nearest(distances_MN: Tensor, videos_N: Labels, own_M: Labels | None = None) -> Nearest:
    """What distances [M,N] to real clips say; `own_M` is the video that each must not look at.

    Where fewer than two videos can be looked at the ratio is 1.
    """
    distances_MN = distances_MN.double()
    if own_M is not None:
        own_MN = torch.from_numpy(own_M[:, None] == videos_N[None])
        distances_MN = distances_MN.masked_fill(own_MN, math.inf)
    videos_V, video_N = np.unique(videos_N, return_inverse=True)
    of_video_MN = torch.from_numpy(video_N).expand(len(distances_MN), -1)
    by_video_MV = torch.full((len(distances_MN), len(videos_V)), math.inf, dtype=torch.float64)
    by_video_MV = by_video_MV.scatter_reduce(1, of_video_MN, distances_MN, "amin")
    ascending_MV = by_video_MV.sort(1).values
    others = len(videos_V) - 1 - (own_M is not None)
    ratio_M = torch.ones(len(distances_MN), dtype=torch.float64)
    if others > 0:
        ratio_M = ascending_MV[:, 0] / ascending_MV[:, 1 : 1 + min(OTHERS, others)].mean(1)
    return Nearest(distances_MN.argmin(1).numpy(), ascending_MV[:, 0].numpy(), ratio_M.numpy())


def copied(fake: Nearest, real: Nearest) -> npt.NDArray[np.bool_]:
    """Which of M generated clips are copies: nearer to one video than held-out clips ever are.

    The ratio lies below the real clips' lower quartile by more than FENCE interquartile ranges, on
    a logarithmic scale: by chance that happens to two clips in a million where it is normal.
    """
    low, high = np.quantile(np.log(real.ratio_M.clip(min=1e-6)), [0.25, 0.75])
    return np.asarray(np.log(fake.ratio_M.clip(min=1e-6)) < low - FENCE * (high - low))


def pixel_distances(a_MTHWC: Clips, b_NTHWC: Clips) -> Tensor:
    """Root mean square difference [M,N] in grey levels, the least over shifts and mirror images.

    A clip is laid over another up to FARTHEST of its frames earlier or later, and compared where
    the two overlap; averaged to FRAMES frames and SIDE pixels before.
    """
    a_MTD, b_NTD = reduced(a_MTHWC), reduced(b_NTHWC)
    mirrored_NTD = reduced(b_NTHWC[:, :, :, ::-1])
    T = a_MTD.shape[1]
    least_MN = torch.full((len(a_MTD), len(b_NTD)), math.inf)
    for shift in range(-int(T * FARTHEST), int(T * FARTHEST) + 1):
        a_MD = a_MTD[:, max(0, shift) : T + min(0, shift)].flatten(1)
        for other_NTD in (b_NTD, mirrored_NTD):
            b_ND = other_NTD[:, max(0, -shift) : T - max(0, shift)].flatten(1)
            squares_MN = a_MD.square().sum(1)[:, None] + b_ND.square().sum(1) - 2 * a_MD @ b_ND.T
            least_MN = torch.minimum(least_MN, squares_MN / a_MD.shape[1])
    return 255 * least_MN.clamp(min=0).sqrt()


def reduced(clips_NTHWC: Clips) -> Tensor:
    """Clips in 0 to 1 as [N,T,D], of at most FRAMES frames and SIDE pixels a side."""
    T, H, W = clips_NTHWC.shape[1:4]
    if T > FRAMES:
        clips_NTHWC = clips_NTHWC[:, np.linspace(0, T - 1, FRAMES).round().astype(int)]
    size = (min(SIDE, H), min(SIDE, W))
    reduced = []
    for clip_THWC in clips_NTHWC:
        clip_TCHW = torch.from_numpy(np.ascontiguousarray(clip_THWC)).permute(0, 3, 1, 2).float()
        reduced.append(F.interpolate(clip_TCHW / 255, size, mode="area").flatten(1))
    return torch.stack(reduced)


def same_videos(clips_NTHWC: Clips, videos_N: Labels) -> Labels:
    """`videos_N` with one number for videos that show the same, as a take and its mirror image.

    Two do where their first clips are nearer than TWIN of the usual distance from a video to the
    next. A judge that is examined on the mirror image of what it was trained on would know it.
    """
    videos_V, video_N = np.unique(videos_N, return_inverse=True)
    if len(videos_V) < 3:
        return videos_N
    first_V = np.unique(video_N, return_index=True)[1]
    apart_VV = pixel_distances(clips_NTHWC[first_V], clips_NTHWC[first_V]).numpy()
    np.fill_diagonal(apart_VV, math.inf)
    # The second nearest: the nearest may be the twin.
    usual = np.median(np.sort(apart_VV, 1)[:, 1])
    group_V = np.arange(len(videos_V))
    for a, b in np.argwhere(apart_VV < TWIN * usual):
        group_V[group_V == group_V[a]] = group_V[b]
    return np.asarray(group_V[video_N], np.int64)
