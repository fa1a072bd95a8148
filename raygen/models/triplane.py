"""`triplane`: one latent to three planes of features, xy, xt and yt; frames are read from them.

After RAVEN (arXiv 2401.06035). What costs is drawn once a clip (xy), or on lines instead of
frames (xt is one row a knot, yt one column), so a frame costs what its light decoder costs. The
lines are drawn along a moving latent and see no end of the clip: longer clips and other frame
rates read them at other times. Names carry shapes: B clips, T frames, K knots, N images, C
channels, L length of a line, S style dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raygen.conditions import Condition, keep_frame, output_channels
from raygen.config import ConditionsConfig, DataConfig, TriplaneConfig
from raygen.models.blocks import pyramid
from raygen.models.grouped import Bottleneck, initialised
from raygen.models.path import constant, timeline
from raygen.models.timed import Finish, FrameLevel, Timed

_STEP = 2  # frames between knots


class TriplaneGenerator(Timed):
    """(latent, class) -> clips of any length, read from three planes at half the clip's size."""

    def __init__(
        self,
        model: TriplaneConfig,
        data: DataConfig,
        classes: int,
        conditions: ConditionsConfig,
    ) -> None:
        super().__init__(model, data, classes, conditions)
        shape = pyramid(data.frames, data.size)
        self.side = shape.base_THW[1]
        channels = shape.channels(model.generator_width)
        levels = list(pairwise(channels))
        branches = len(levels) + 1
        still_dim = constant(torch.empty(1, model.latent_dim)).shape[1] + model.class_dim
        self.still = nn.Sequential(nn.Linear(still_dim, self.style_dim), nn.LeakyReLU(0.2))
        self.picture = nn.Linear(self.style_dim, channels[0] * self.side**2)
        self.picture_levels = nn.ModuleList(
            FrameLevel(inputs, outputs, self.style_dim, branches) for inputs, outputs in levels
        )
        self.lines = nn.Linear(self.style_dim, 2 * channels[0] * self.side)
        self.line_levels = nn.ModuleList(
            LineLevel(inputs, outputs, self.style_dim, branches) for inputs, outputs in levels
        )
        self.reach = len(levels)
        self.decode = Bottleneck(channels[-1], branches, self.style_dim)
        self.finish = Finish(channels[-1], output_channels(conditions))

    def forward(
        self, z_BD: Tensor, y_B: Condition | Tensor, times: Sequence[float] | None = None
    ) -> Tensor:
        """Latents and conditions, or class ids (int64) -> clips [B, 3, T, H, W]; see `Timed`."""
        line = timeline(self.times(times), _STEP, self.reach, z_BD.device)
        e_BC = self.embedding(y_B)
        # What does not move may not know the phase of what does: it would go out of date.
        still_BS = self.still(torch.cat([constant(z_BD), e_BC], 1))
        xy_BCHW = self.picture(still_BS).unflatten(1, (-1, self.side, self.side))
        for level in self.picture_levels:
            xy_BCHW = self.run(level, xy_BCHW, still_BS)
        style_BKS = self.style_at(z_BD, e_BC, line.knots_K)
        lines_BCKL = self.lines(style_BKS).unflatten(2, (-1, self.side)).transpose(1, 2)
        for level in self.line_levels:
            lines_BCKL = self.run(level, lines_BCKL, style_BKS)
            style_BKS = style_BKS[:, 1:-1]
        xt_BTCL, yt_BTCL = line.read(lines_BCKL.transpose(1, 2)).chunk(2, 2)
        # Multiplied, so that what moves can be where xt and yt meet (K-Planes, arXiv 2301.10241,
        # section 3.1); about 1, so that the picture is there from the start.
        x_BTCHW = xy_BCHW[:, None] * (1 + xt_BTCL[..., None, :]) * (1 + yt_BTCL[..., None])
        style_NS = self.style_at(z_BD, e_BC, line.times_T).flatten(0, 1)
        x_NCHW = self.run(self.decode, x_BTCHW.flatten(0, 1), style_NS)
        rgb_NCHW = self.run(self.finish, x_NCHW)
        x_BTCHW = rgb_NCHW.view(len(z_BD), -1, *rgb_NCHW.shape[1:])
        return keep_frame(torch.tanh(x_BTCHW.transpose(1, 2)), y_B, times)


class LineLevel(nn.Module):
    """Both planes with time, apart: mix channels, double the lines, a 3x3 in time and along them.

    It uses up a knot at either end.
    """

    def __init__(self, in_channels: int, out_channels: int, style_dim: int, branches: int) -> None:
        super().__init__()
        # Channels of xt, then of yt: two groups.
        self.mix = initialised(nn.Conv2d(2 * in_channels, 2 * out_channels, 1, groups=2))
        self.style = nn.Linear(style_dim, 2 * out_channels)
        self.along = initialised(
            nn.Conv2d(2 * out_channels, 2 * out_channels, 3, padding=(0, 1), groups=2),
            branches**-0.5,
        )

    def forward(self, x_BCKL: Tensor, style_BKS: Tensor) -> Tensor:
        """[B, 2 in, K, L] -> [B, 2 out, K - 2, 2 L]."""
        x_BCKL = F.interpolate(self.mix(x_BCKL), scale_factor=(1.0, 2.0), mode="bilinear")
        h_BCKL = x_BCKL * (1 + self.style(style_BKS).transpose(1, 2)[..., None])
        branch_BCKL: Tensor = self.along(F.leaky_relu(h_BCKL, 0.2))
        return x_BCKL[:, :, 1:-1] + branch_BCKL
