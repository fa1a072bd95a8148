"""`residual`: a moving latent, motion settled at low resolution, then frame after frame in detail.

    latent -> knots every second frame, 4x4 up to 16x16: blocks in space, 3x1x1 in time
           -> read at the frames' times -> frame by frame: blocks up to half the clip's size
           -> smooth picture and sub-pixel detail

Whatever mixes time does so at the knots, where it costs little, and sees no end of the clip.
Names carry shapes: B clips, T frames, K knots, N images, C channels, S style dimension.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from raygen.conditions import Condition, keep_frame, output_channels
from raygen.config import ConditionsConfig, DataConfig, ResidualConfig
from raygen.models.blocks import pyramid
from raygen.models.grouped import Bottleneck, TemporalAttention, TemporalMix, conv, upsample
from raygen.models.path import timeline
from raygen.models.timed import Finish, FrameLevel, Timed

_STEP = 2  # frames between knots
_TRUNK_SIDE = 16  # pixels, of the shorter side: above this, frame by frame
_WINDOW = 2  # knots to either side that attention looks at


class ResidualGenerator(Timed):
    """(latent, class) -> clips of any length, through grouped residual blocks."""

    def __init__(
        self,
        model: ResidualConfig,
        data: DataConfig,
        classes: int,
        conditions: ConditionsConfig,
    ) -> None:
        super().__init__(model, data, classes, conditions)
        shape = pyramid(data.frames, data.size)
        self.base_HW = shape.base_THW[1:]
        channels = shape.channels(model.generator_width)
        # The last level before the pixels is the frames' own: detail is not tied to the knots.
        sides = [min(self.base_HW) << level for level in range(len(channels))]
        most = min(_TRUNK_SIDE, data.height // 4, data.width // 4)
        trunk = max(sum(side <= most for side in sides), 1)
        branches = 2 * trunk + len(channels)
        self.project = nn.Linear(self.style_dim, channels[0] * math.prod(self.base_HW))
        self.trunk = nn.ModuleList(
            KnotLevel(inputs, outputs, self.style_dim, branches, doubles=level > 0)
            for level, (inputs, outputs) in enumerate(pairwise([channels[0], *channels[:trunk]]))
        )
        self.attention = (
            TemporalAttention(channels[trunk - 1], branches, reach=_WINDOW)
            if model.attention
            else None
        )
        self.reach = trunk + (_WINDOW if model.attention else 0)
        self.levels = nn.ModuleList(
            FrameLevel(inputs, outputs, self.style_dim, branches)
            for inputs, outputs in pairwise(channels[trunk - 1 :])
        )
        self.finish = Finish(channels[-1], output_channels(conditions))

    def forward(
        self, z_BD: Tensor, y_B: Condition | Tensor, times: Sequence[float] | None = None
    ) -> Tensor:
        """Latents and conditions, or class ids (int64) -> clips [B, 3, T, H, W]; see `Timed`."""
        line = timeline(self.times(times), _STEP, self.reach, z_BD.device)
        e_BC = self.embedding(y_B)
        style_BKS = self.style_at(z_BD, e_BC, line.knots_K)
        base_BKN = self.project(style_BKS)
        x_BKCHW = base_BKN.unflatten(2, (-1, *self.base_HW))
        for level in self.trunk:
            x_BKCHW = self.run(level, x_BKCHW, style_BKS)
            style_BKS = style_BKS[:, 1:-1]
        if self.attention is not None:
            x_BKCHW = self.run(self.attention, x_BKCHW)
        x_NCHW = line.read(x_BKCHW).flatten(0, 1)
        style_NS = self.style_at(z_BD, e_BC, line.times_T).flatten(0, 1)
        for level in self.levels:
            x_NCHW = self.run(level, x_NCHW, style_NS)
        rgb_NCHW = self.run(self.finish, x_NCHW)
        x_BTCHW = rgb_NCHW.view(len(z_BD), -1, *rgb_NCHW.shape[1:])
        return keep_frame(torch.tanh(x_BTCHW.transpose(1, 2)), y_B, times)


class KnotLevel(nn.Module):
    """One resolution at the knots: mix channels, (upsample,) a block in space, one in time.

    The one in time uses up a knot at either end.
    """

    def __init__(
        self, in_channels: int, out_channels: int, style_dim: int, branches: int, *, doubles: bool
    ) -> None:
        super().__init__()
        self.doubles = doubles
        self.mix = conv(in_channels, out_channels, 1)
        self.block = Bottleneck(out_channels, branches, style_dim)
        self.time = TemporalMix(out_channels, branches, valid=True)

    def forward(self, x_BKCHW: Tensor, style_BKS: Tensor) -> Tensor:
        """[B, K, in, H, W] -> [B, K - 2, out, H', W'], H' = 2 H where it doubles."""
        x_NCHW = self.mix(x_BKCHW.flatten(0, 1))
        if self.doubles:
            x_NCHW = upsample(x_NCHW)
        x_NCHW = self.block(x_NCHW, style_BKS.flatten(0, 1))
        mixed_BKCHW: Tensor = self.time(x_NCHW.view(*style_BKS.shape[:2], *x_NCHW.shape[1:]))
        return mixed_BKCHW
