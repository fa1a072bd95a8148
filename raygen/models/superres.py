"""`superres`: the last stage of a cascade, which enlarges what another generator has drawn.

    small clip and its noise, latent, condition -> grouped residual blocks at the low resolution
        -> twice as high and wide, once or more -> detail, on the small clip enlarged

Cascades with noise on what is passed on (arXiv 2106.15282, section 4.2): in training the small clip
is a real one, and noise of a strength that the network is told hides what tells it from a drawn
one. A frame is enlarged by itself, under one style a clip: what moves was settled in the small
clip, the critic sees space and time, memory grows by the frame, and clips of any length have no
seam. Names carry shapes: B clips, T frames, N images, C channels, D latent dimension, E and S of
embedding and style.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raygen.conditions import RGB, Condition, ConditionEmbedding
from raygen.config import ConditionsConfig, DataConfig, SuperresConfig
from raygen.models.blocks import Recomputing
from raygen.models.critics import StridedCritic
from raygen.models.grouped import Bottleneck, conv
from raygen.models.timed import Finish, FrameLevel


class SuperresGenerator(Recomputing):
    """(latent, condition with a small clip) -> the clip `model.factor` times as high and wide."""

    def __init__(
        self,
        model: SuperresConfig,
        data: DataConfig,
        classes: int,
        conditions: ConditionsConfig,
    ) -> None:
        super().__init__()
        self.most_noise = model.noise
        doublings = model.factor.bit_length() - 1
        # The last doubling is `finish`, from half the clip's size.
        channels = [model.generator_width << level for level in reversed(range(doublings))]
        style_dim = model.latent_dim + model.class_dim
        branches = model.blocks + doublings - 1
        self.embedding = ConditionEmbedding(classes, model.class_dim, conditions)
        self.style = nn.Sequential(nn.Linear(style_dim + 1, style_dim), nn.LeakyReLU(0.2))
        self.stem = conv(RGB, channels[0], 3)
        self.trunk = nn.ModuleList(
            Bottleneck(channels[0], branches, style_dim) for _ in range(model.blocks)
        )
        self.levels = nn.ModuleList(
            FrameLevel(inputs, outputs, style_dim, branches)
            for inputs, outputs in pairwise(channels)
        )
        self.finish = Finish(channels[-1], RGB)
        # It begins as bilinear interpolation.
        for layer in (self.finish.picture, self.finish.detail):
            nn.init.zeros_(layer.weight)

    def forward(self, z_BD: Tensor, y_B: Condition) -> Tensor:
        """Latents and conditions -> clips [B, 3, T, H, W], in [-1, 1] unless it is training.

        Clamped there, a pixel that is out of range would learn nothing.
        """
        low_BCTHW, noise_B = y_B.low_BCTHW, y_B.noise_B
        assert low_BCTHW is not None
        assert noise_B is not None
        told_B1 = noise_B[:, None].to(z_BD.dtype) / self.most_noise
        style_BS = self.style(torch.cat([z_BD, self.embedding(y_B), told_B1], 1))
        frames = low_BCTHW.shape[2]
        style_NS = style_BS.repeat_interleave(frames, 0)
        low_NCHW = low_BCTHW.transpose(1, 2).flatten(0, 1)
        x_NCHW = self.stem(low_NCHW)
        for block in [*self.trunk, *self.levels]:
            x_NCHW = self.run(block, x_NCHW, style_NS)
        detail_NCHW = self.run(self.finish, x_NCHW)
        x_NCHW = bilinear(low_NCHW, detail_NCHW.shape[2:]) + detail_NCHW
        x_BCTHW = x_NCHW.view(len(z_BD), frames, *x_NCHW.shape[1:]).transpose(1, 2)
        return x_BCTHW if self.training else x_BCTHW.clamp(-1, 1)


class SuperresCritic(StridedCritic):
    """Strided convolutions over a clip and the small one, enlarged, that it was made from."""

    inputs = 2 * RGB

    def forward(self, x_BCTHW: Tensor, y_B: Condition | Tensor) -> Tensor:
        """Clips [B, 3, T, H, W] in [-1, 1] and conditions with a small clip -> logits [B]."""
        low_BCTHW = Condition.of(y_B).low_BCTHW
        assert low_BCTHW is not None
        both_BCTHW = torch.cat([x_BCTHW, enlarged(low_BCTHW, x_BCTHW.shape[3:])], 1)
        return super().forward(both_BCTHW, y_B)


class Cascade(nn.Module):
    """A generator and the stage that enlarges its clips, as one: base first, then the stage.

    `z_BD` is the base's latent and then the stage's. The noise on the base's clips is one still
    pattern, so that a clip depends on its own latent and condition alone.
    """

    pattern_1C1HW: Tensor

    def __init__(
        self,
        base: nn.Module,
        base_dim: int,
        stage: SuperresGenerator,
        low: Sequence[int],
        noise: float,
    ) -> None:
        """`low`: height and width of the base's clips, pixels; `noise`: its deviation."""
        super().__init__()
        self.base, self.stage = base, stage
        self.base_dim, self.noise = base_dim, noise
        self.embedding = _Both(base, stage)
        rng = torch.Generator().manual_seed(0)
        pattern = torch.randn(1, RGB, 1, *low, generator=rng)
        self.register_buffer("pattern_1C1HW", pattern, persistent=False)

    def forward(
        self, z_BD: Tensor, y_B: Condition | Tensor, times: Sequence[float] | None = None
    ) -> Tensor:
        """Latents and conditions, or class ids (int64) -> clips [B, 3, T, H, W] in [-1, 1].

        `times` where the base is a raygen.models.Timed.
        """
        y = Condition.of(y_B)
        base_BE, stage_BE = torch.split(self.embedding(y), self.embedding.dims, 1)
        given = y._replace(embedded_BE=base_BE)
        latent_BD = z_BD[:, : self.base_dim]
        low_BCTHW = (
            self.base(latent_BD, given) if times is None else self.base(latent_BD, given, times)
        )
        noisy = y._replace(
            embedded_BE=stage_BE,
            low_BCTHW=low_BCTHW + self.noise * self.pattern_1C1HW,
            noise_B=torch.full((len(z_BD),), self.noise, device=z_BD.device),
        )
        clip_BCTHW: Tensor = self.stage(z_BD[:, self.base_dim :], noisy)
        return clip_BCTHW


class _Both:
    """Both networks' embeddings side by side, [B, E + E]: what interpolation mixes."""

    def __init__(self, base: Any, stage: Any) -> None:
        self._parts = base.embedding, stage.embedding
        self.dims = [part.dim for part in self._parts]
        self.dim = sum(self.dims)

    def __call__(self, y_B: Condition | Tensor) -> Tensor:
        y = Condition.of(y_B)
        if y.embedded_BE is not None:
            return y.embedded_BE
        return torch.cat([part(y) for part in self._parts], 1)


def enlarged(low_BCTHW: Tensor, shape_HW: Sequence[int]) -> Tensor:
    """Clips at another height and width [B, C, T, H, W], bilinearly; as they are where they fit."""
    if tuple(low_BCTHW.shape[3:]) == tuple(shape_HW):
        return low_BCTHW
    images = bilinear(low_BCTHW.flatten(1, 2), shape_HW)
    return images.view(*low_BCTHW.shape[:3], *images.shape[2:])


def bilinear(x_NCHW: Tensor, shape_HW: Sequence[int]) -> Tensor:
    """Images at that height and width."""
    return F.interpolate(x_NCHW, list(shape_HW), mode="bilinear", align_corners=False)
