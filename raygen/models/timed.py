"""What generators that draw clips of any length at any frame rate have in common.

    if isinstance(generator, Timed):
        x_BCTHW = generator(z_BD, y_B, [frame / 2 for frame in range(32)])   # twice the frame rate

Names carry shapes: B clips, T frames, N images, C channels, D latent dimension, S style dimension.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raygen.conditions import ConditionEmbedding
from raygen.config import ConditionsConfig, DataConfig, ResidualConfig, TriplaneConfig
from raygen.models.blocks import Recomputing
from raygen.models.grouped import Bottleneck, conv, upsample
from raygen.models.path import moving


class Timed(Recomputing):
    """A generator whose frames are functions of their time, in frames of the trained rate.

    `forward(z_BD, y_B, times)`: without `times` the trained clip, 0 to frames - 1. A frame depends
    on its own time alone, not on which others are asked for: a clip of 8 times the length begins
    with the trained one, and may be drawn in pieces.
    """

    def __init__(
        self,
        model: ResidualConfig | TriplaneConfig,
        data: DataConfig,
        classes: int,
        conditions: ConditionsConfig,
    ) -> None:
        super().__init__()
        self.frames = data.frames
        self.style_dim = model.latent_dim + model.class_dim
        self.embedding = ConditionEmbedding(classes, model.class_dim, conditions, data.size)
        self.style = nn.Sequential(nn.Linear(self.style_dim, self.style_dim), nn.LeakyReLU(0.2))

    def style_at(self, z_BD: Tensor, e_BC: Tensor, times_T: Tensor) -> Tensor:
        """What modulates at each of the times: [B, T, S]."""
        z_BTD = moving(z_BD, times_T, self.frames)
        e_BTC = e_BC[:, None].expand(-1, len(times_T), -1)
        style_BTS: Tensor = self.style(torch.cat([z_BTD, e_BTC], 2))
        return style_BTS

    def times(self, times: Sequence[float] | None) -> Sequence[float]:
        """Those asked for, or the trained clip's."""
        return range(self.frames) if times is None else times


class FrameLevel(nn.Module):
    """Channels mixed at the low resolution, twice the resolution, a block under the style."""

    def __init__(self, in_channels: int, out_channels: int, style_dim: int, branches: int) -> None:
        super().__init__()
        self.mix = conv(in_channels, out_channels, 1)
        self.block = Bottleneck(out_channels, branches, style_dim)

    def forward(self, x_NCHW: Tensor, style_NS: Tensor) -> Tensor:
        """[N, in, H, W] -> [N, out, 2 H, 2 W]."""
        up_NCHW: Tensor = self.block(upsample(self.mix(x_NCHW)), style_NS)
        return up_NCHW


class Finish(nn.Module):
    """From half the clip's size to its pixels: a smooth picture, and sub-pixel detail on it.

    The detail is a 3x3 whose outputs are the four pixels of each position (sub-pixel convolution,
    arXiv 1609.05158): all that a transposed convolution draws, at the cost of the low resolution.
    It begins with four times the same pixel, so without a checkerboard (ICNR, arXiv 1707.02937).
    """

    def __init__(self, channels: int, outputs: int) -> None:
        super().__init__()
        self.picture = conv(channels, outputs, 1, scale=0.3)
        self.detail = conv(channels, 4 * outputs, 3, scale=0.3)
        with torch.no_grad():
            self.detail.weight.copy_(self.detail.weight[::4].repeat_interleave(4, 0))

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, outputs, 2 H, 2 W], not bounded."""
        x_NCHW = F.leaky_relu(x_NCHW, 0.2)
        return upsample(self.picture(x_NCHW)) + F.pixel_shuffle(self.detail(x_NCHW), 2)
