"""Clips held against the very clips that they should be: SSIM and PSNR, one figure a pair.

For reconstructions, predicted frames and copies; generated clips have no such partner. Shapes: N
pairs, T frames, H, W, C = 3, uint8 0 to 255.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torchmetrics.functional.image import (
    peak_signal_noise_ratio,
    structural_similarity_index_measure,
)

Clips = npt.NDArray[np.uint8]
Figures = npt.NDArray[np.float64]

LEAST_SIDE = 11  # pixels: the Gaussian window's


def ssim(a_NTHWC: Clips, b_NTHWC: Clips) -> Figures:
    """Structural similarity [N], the mean over frames and colours; 1 where the clips are equal.

    Wang et al., 2004, eq. 13: Gaussian window of 11 pixels, sigma 1.5, K1 = 0.01, K2 = 0.03. As
    there and in scikit-image, only windows that lie wholly within the frame count: frames are at
    least LEAST_SIDE pixels wide and high.
    """
    edge = LEAST_SIDE // 2
    figures = []
    for a_THWC, b_THWC in zip(a_NTHWC, b_NTHWC, strict=True):
        _, map_TCHW = structural_similarity_index_measure(
            _frames(a_THWC), _frames(b_THWC), data_range=1.0, return_full_image=True
        )
        figures.append(float(map_TCHW[:, :, edge:-edge, edge:-edge].mean()))
    return np.array(figures)


def psnr(a_NTHWC: Clips, b_NTHWC: Clips) -> Figures:
    """Peak signal-to-noise ratio [N] in dB over the whole clip; infinite where they are equal."""
    return np.array(
        [
            float(peak_signal_noise_ratio(_frames(a), _frames(b), data_range=1.0))
            for a, b in zip(a_NTHWC, b_NTHWC, strict=True)
        ]
    )


def _frames(clip_THWC: Clips) -> Tensor:
    return torch.from_numpy(clip_THWC).permute(0, 3, 1, 2).float() / 255
