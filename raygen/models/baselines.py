"""Literal baselines, kept as references: fully connected, and frame by frame (DCGAN).

Names carry shapes: B clips, C channels, T frames, H height, W width, N = B * T images.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn

from raygen.conditions import Condition, ConditionEmbedding, keep_frame, output_channels
from raygen.config import ConditionsConfig, DataConfig, DcganConfig, MlpConfig
from raygen.models.blocks import BatchNorm, Projection, Recomputing, pyramid
from raygen.models.path import moving

_RGB = 3
_PIECES = 2  # of a maxout unit


class MlpGenerator(Recomputing):
    """Two hidden layers of rectifiers, every pixel of the clip from all of their units.

    Goodfellow et al. 2014 (arXiv 1406.2661), section 5, with tanh for [-1, 1] where it has sigmoid.
    """

    def __init__(
        self, model: MlpConfig, data: DataConfig, classes: int, conditions: ConditionsConfig
    ) -> None:
        super().__init__()
        self.shape = (output_channels(conditions), data.frames, data.height, data.width)
        units = model.generator_width
        self.embedding = ConditionEmbedding(classes, model.class_dim, conditions, data.size)
        self.layers = nn.Sequential(
            *(nn.Linear(model.latent_dim + model.class_dim, units), nn.ReLU()),
            *(nn.Linear(units, units), nn.ReLU()),
            nn.Linear(units, torch.Size(self.shape).numel()),
        )

    def forward(self, z_BD: Tensor, y_B: Condition | Tensor) -> Tensor:
        """Latents and conditions, or class ids (int64) -> clips [B, 3, T, H, W] in [-1, 1]."""
        x_BN = self.run(self.layers, torch.cat([z_BD, self.embedding(y_B)], 1))
        return keep_frame(torch.tanh(x_BN).view(-1, *self.shape), y_B)


class MlpCritic(Recomputing):
    """A layer of maxout units (arXiv 1302.4389) on all pixels at once, and the head.

    Without the dropout of the article: R1, R2 and every comparison of engines would see its noise.
    """

    def __init__(
        self, model: MlpConfig, data: DataConfig, classes: int, conditions: ConditionsConfig
    ) -> None:
        super().__init__()
        pixels = _RGB * data.frames * data.height * data.width
        self.pieces = nn.Linear(pixels, _PIECES * model.critic_width)
        self.head = Projection(model.critic_width, model.class_dim, classes, conditions)

    def forward(self, x_BCTHW: Tensor, y_B: Condition | Tensor) -> Tensor:
        """Clips [B, 3, T, H, W] in [-1, 1] and conditions, or class ids (int64) -> logits [B]."""
        pieces_BN = self.run(self.pieces, x_BCTHW.flatten(1))
        logit_B: Tensor = self.head(pieces_BN.view(len(x_BCTHW), _PIECES, -1, 1).amax(1), y_B)
        return logit_B


class DcganGenerator(nn.Module):
    """DCGAN (arXiv 1511.06434, section 3) for every frame, along a latent that moves."""

    def __init__(
        self, model: DcganConfig, data: DataConfig, classes: int, conditions: ConditionsConfig
    ) -> None:
        super().__init__()
        self.frames = data.frames
        shape = pyramid(data.frames, data.size)
        self.base_HW = shape.base_THW[1:]
        channels = [*shape.channels(model.generator_width), output_channels(conditions)]
        self.embedding = ConditionEmbedding(classes, model.class_dim, conditions, data.size)
        area = math.prod(self.base_HW)
        self.project = nn.Linear(model.latent_dim + model.class_dim, channels[0] * area)
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(channels):
            layers += [BatchNorm(inputs), nn.ReLU()]
            # The norm that follows takes a bias away again.
            layers.append(nn.ConvTranspose2d(inputs, outputs, 4, 2, 1, bias=outputs == _RGB))
        self.layers = nn.Sequential(*layers)

    def forward(self, z_BD: Tensor, y_B: Condition | Tensor) -> Tensor:
        """Latents and conditions, or class ids (int64) -> clips [B, 3, T, H, W] in [-1, 1]."""
        times_T = torch.arange(self.frames, device=z_BD.device)
        z_NZ = moving(z_BD, times_T, self.frames).flatten(0, 1)
        e_NC = self.embedding(y_B).repeat_interleave(self.frames, 0)
        base_NL = self.project(torch.cat([z_NZ, e_NC], 1))
        x_NCHW = self.layers(base_NL.unflatten(1, (-1, *self.base_HW)))
        x_BCTHW = torch.tanh(x_NCHW.unflatten(0, (len(z_BD), -1)).transpose(1, 2))
        return keep_frame(x_BCTHW, y_B)


class DcganCritic(nn.Module):
    """DCGAN's critic on every frame, the mean of their logits: it sees pictures, not motion."""

    def __init__(
        self, model: DcganConfig, data: DataConfig, classes: int, conditions: ConditionsConfig
    ) -> None:
        super().__init__()
        shape = pyramid(data.frames, data.size)
        channels = [_RGB, *reversed(shape.channels(model.critic_width))]
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(channels):
            layers.append(nn.Conv2d(inputs, outputs, 4, 2, 1, bias=inputs == _RGB))
            if inputs != _RGB:
                layers.append(BatchNorm(outputs))
            layers.append(nn.LeakyReLU(0.2))
        self.layers = nn.Sequential(*layers)
        self.head = Projection(
            channels[-1] * math.prod(shape.base_THW[1:]), model.class_dim, classes, conditions
        )

    def forward(self, x_BCTHW: Tensor, y_B: Condition | Tensor) -> Tensor:
        """Clips [B, 3, T, H, W] in [-1, 1] and conditions, or class ids (int64) -> logits [B]."""
        x_NCHW = self.layers(x_BCTHW.transpose(1, 2).flatten(0, 1))
        logit_N: Tensor = self.head(x_NCHW, Condition.of(y_B).each(x_BCTHW.shape[2]))
        return logit_N.view(len(x_BCTHW), -1).mean(1)
