"""`twostream`: what moves before what stands still, without the pattern of the upsampling.

    latent, condition -> 2x4x4 up to the clip: modulated transposed convolutions -> f, mask m
                      -> 1x4x4 up to one picture, likewise                       -> b
    clip = m f + (1 - m) b

VGAN's two streams (arXiv 1609.02612, eq. 2): most of a clip does not move, and a picture cannot
flicker. Names carry shapes: B clips, C channels, T frames, H height, W width, S style dimension.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from raygen.conditions import RGB, Condition, ConditionEmbedding, keep_frame, output_channels
from raygen.config import ConditionsConfig, DataConfig, TwoStreamConfig
from raygen.models.blocks import Recomputing, Size3, group_norm, pyramid, transposed_conv

# At first a quarter of each pixel is foreground: what stands still is learnt as such.
_MASK = -1.0
# 1 - sin^6(w / 2): nothing at the Nyquist frequency, seven eighths at half of it, all at zero.
_LOW_PASS = (1 / 64, -6 / 64, 15 / 64, 44 / 64, 15 / 64, -6 / 64, 1 / 64)


class TwoStreamGenerator(Recomputing):
    """A masked foreground over a still background, both modulated by (latent, condition)."""

    def __init__(
        self,
        model: TwoStreamConfig,
        data: DataConfig,
        classes: int,
        conditions: ConditionsConfig,
    ) -> None:
        super().__init__()
        shape = pyramid(data.frames, data.size)
        channels = shape.channels(model.generator_width)
        style_dim = model.latent_dim + model.class_dim
        self.embedding = ConditionEmbedding(classes, model.class_dim, conditions, data.size)
        made = [*channels, output_channels(conditions) + 1]
        self.foreground = Stream(made, shape.base_THW, shape.strides, style_dim)
        still: Size3 = (1, *shape.base_THW[1:])
        in_space: list[Size3] = [(1, high, wide) for _, high, wide in shape.strides]
        self.background = Stream([*channels, RGB], still, in_space, style_dim)

    def forward(self, z_BD: Tensor, y_B: Condition | Tensor) -> Tensor:
        """Latents and conditions, or class ids (int64) -> clips [B, 3, T, H, W] in [-1, 1]."""
        style_BS = torch.cat([z_BD, self.embedding(y_B)], 1)
        x_BCTHW = low_pass(self.foreground(style_BS))
        mask_B1THW = torch.sigmoid(x_BCTHW[:, -1:] + _MASK)
        x_BCTHW = torch.tanh(x_BCTHW[:, :-1])
        behind_BC1HW = torch.tanh(low_pass(self.background(style_BS)))
        clip_BCTHW = torch.lerp(behind_BC1HW, x_BCTHW[:, :RGB], mask_B1THW)
        return keep_frame(torch.cat([clip_BCTHW, x_BCTHW[:, RGB:]], 1), y_B)


class Stream(Recomputing):
    """A style [B, S] to a map of `channels[-1]` channels, `base` times all `strides` in size."""

    def __init__(
        self, channels: Sequence[int], base: Size3, strides: Sequence[Size3], style_dim: int
    ) -> None:
        super().__init__()
        self.base = base
        self.project = nn.Linear(style_dim, channels[0] * math.prod(base))
        self.levels = nn.ModuleList(
            Level(inputs, outputs, stride, style_dim)
            for (inputs, outputs), stride in zip(pairwise(channels), strides, strict=True)
        )

    def forward(self, style_BS: Tensor) -> Tensor:
        """[B, S] -> [B, C, T, H, W], unbounded."""
        x_BCTHW: Tensor = self.project(style_BS).unflatten(1, (-1, *self.base))
        for level in self.levels:
            x_BCTHW = self.run(level, x_BCTHW, style_BS)
        return x_BCTHW


class Level(nn.Module):
    """Group norm, modulation by the style, ReLU, and a transposed convolution.

    The style enters at every level (FiLM, arXiv 1709.07871, eq. 1): told to the coarsest map alone,
    the latent is easily lost in the normalisations after it.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: Size3, style_dim: int) -> None:
        super().__init__()
        self.norm = group_norm(in_channels)
        self.modulate = nn.Linear(style_dim, 2 * in_channels)
        self.up = transposed_conv(in_channels, out_channels, stride)

    def forward(self, x_BCTHW: Tensor, style_BS: Tensor) -> Tensor:
        """[B, in, T, H, W] -> [B, out, T', H', W'], T' = T times the stride, and so on."""
        scale_BC111, shift_BC111 = self.modulate(style_BS)[:, :, None, None, None].chunk(2, 1)
        x_BCTHW = torch.addcmul(shift_BC111, self.norm(x_BCTHW), 1 + scale_BC111)
        up_BCTHW: Tensor = self.up(torch.relu(x_BCTHW))
        return up_BCTHW


def low_pass(x_BCTHW: Tensor) -> Tensor:
    """Without what alternates from one pixel, or frame, to the next: [B, C, T, H, W], as before.

    A transposed convolution of stride 2 treats even and odd positions differently: a checkerboard
    in space, a flicker in time (Odena et al. 2016, "Deconvolution and Checkerboard Artifacts").
    Edges are mirrored. Matrix products, which are far cheaper on a CPU than sums of shifted maps.
    """
    frames, height, width = x_BCTHW.shape[2:]
    x_BCTHW = _filter(height, x_BCTHW) @ (x_BCTHW @ _filter(width, x_BCTHW).T)
    return (_filter(frames, x_BCTHW) @ x_BCTHW.flatten(3)).view(x_BCTHW.shape)


def _filter(length: int, like: Tensor) -> Tensor:
    """[length, length], of `like`'s dtype and device: row i weighs the positions around i."""
    unit = torch.eye(length, dtype=like.dtype, device=like.device)
    period = max(2 * (length - 1), 1)
    rows = torch.zeros_like(unit)
    for step, weight in enumerate(_LOW_PASS, -(len(_LOW_PASS) // 2)):
        at = (torch.arange(length, device=like.device) + step) % period
        rows = rows + weight * unit[torch.minimum(at, period - at)]
    return rows
