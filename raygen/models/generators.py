"""Generators: (latent z_BD ~ N(0, 1), conditions y_B) -> clip x_BCTHW in [-1, 1], C = 3."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raygen.conditions import Condition, ConditionEmbedding, keep_frame, output_channels
from raygen.config import (
    ConditionsConfig,
    Conv3dConfig,
    DataConfig,
    StridedConfig,
    UpsamplingConfig,
)
from raygen.models.blocks import (
    BatchNorm,
    Recomputing,
    UpsamplingBlock,
    group_norm,
    pixel_norm,
    pyramid,
    transposed_conv,
)

_BLOCK = 3  # layers recomputed together: norm, activation, convolution


class TransposedGenerator(Recomputing):
    """Transposed convolutions from a coarse map to the clip, the condition beside the latent.

    `strided` normalises by group; `conv3d`, the baseline of VGAN (arXiv 1609.02612, section 3.1),
    by batch.
    """

    def __init__(
        self,
        model: StridedConfig | Conv3dConfig,
        data: DataConfig,
        classes: int,
        conditions: ConditionsConfig,
    ) -> None:
        super().__init__()
        self.pyramid = pyramid(data.frames, data.size)
        channels = self.pyramid.channels(model.generator_width)
        self.embedding = ConditionEmbedding(classes, model.class_dim, conditions, data.size)
        self.project = nn.Linear(
            model.latent_dim + model.class_dim, channels[0] * self.pyramid.base_volume
        )
        layers: list[nn.Module] = []
        for (inputs, outputs), stride in zip(
            pairwise([*channels, output_channels(conditions)]), self.pyramid.strides, strict=True
        ):
            layers += [
                _norm(model, inputs),
                nn.ReLU(),
                transposed_conv(inputs, outputs, stride),
            ]
        self.layers = nn.Sequential(*layers)

    def forward(self, z_BD: Tensor, y_B: Condition | Tensor) -> Tensor:
        """Latents and conditions, or class ids (int64) -> clips [B, 3, T, H, W] in [-1, 1]."""
        base = self.project(torch.cat([z_BD, self.embedding(y_B)], 1))
        x_BCTHW = base.unflatten(1, (-1, *self.pyramid.base_THW))
        return keep_frame(torch.tanh(self.run_layers(self.layers, _BLOCK, x_BCTHW)), y_B)


class UpsamplingGenerator(Recomputing):
    """Trilinear upsampling between convolutions modulated by (latent, condition) at each level."""

    def __init__(
        self,
        model: UpsamplingConfig,
        data: DataConfig,
        classes: int,
        conditions: ConditionsConfig,
    ) -> None:
        super().__init__()
        self.pyramid = pyramid(data.frames, data.size)
        # Unlike a transposed convolution, a block has hidden channels at the clip's own
        # resolution as well: half of `width`, since they cost the most.
        coarse = self.pyramid.channels(model.generator_width)
        channels = [*coarse, model.generator_width // 2]
        style_dim = model.latent_dim + model.class_dim
        self.embedding = ConditionEmbedding(classes, model.class_dim, conditions, data.size)
        self.style = nn.Sequential(nn.Linear(style_dim, style_dim), nn.LeakyReLU(0.2))
        self.project = nn.Linear(style_dim, channels[0] * self.pyramid.base_volume)
        self.blocks = nn.ModuleList(
            UpsamplingBlock(inputs, outputs, stride, style_dim)
            for (inputs, outputs), stride in zip(
                pairwise(channels), self.pyramid.strides, strict=True
            )
        )
        self.to_rgb = nn.Conv3d(channels[-1], output_channels(conditions), 1)

    def forward(self, z_BD: Tensor, y_B: Condition | Tensor) -> Tensor:
        """Latents and conditions, or class ids (int64) -> clips [B, 3, T, H, W] in [-1, 1]."""
        style_BS = self.style(torch.cat([z_BD, self.embedding(y_B)], 1))
        base = self.project(style_BS).unflatten(1, (-1, *self.pyramid.base_THW))
        x_BCTHW = pixel_norm(F.leaky_relu(base, 0.2))
        for block in self.blocks:
            x_BCTHW = self.run(block, x_BCTHW, style_BS)
        return keep_frame(torch.tanh(self.to_rgb(x_BCTHW)), y_B)


def _norm(model: StridedConfig | Conv3dConfig, channels: int) -> nn.Module:
    if model.batch_statistics:
        return BatchNorm(channels)
    return group_norm(channels)
