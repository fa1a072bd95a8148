"""Residual blocks on images: 1x1, grouped 3x3, 1x1, no normalisation, anti-aliased resampling.

After R3GAN (arXiv 2501.05441, section 3). Frames are images here, [B, T, C, H, W] or
[B * T, C, H, W]: on a CPU, 2D convolutions are several times as fast as 3D ones. Names carry
shapes: B clips, T frames or knots, N images, C channels, S style dimension.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_EXPANSION = 2
_GROUP = 16  # channels; on a CPU narrower groups cost more than they save
_SLOPE = 0.2


def conv(in_channels: int, out_channels: int, kernel: int, *, scale: float = 1.0) -> nn.Conv2d:
    """A convolution that keeps the size, with He's initialisation times `scale`, bias 0."""
    layer = nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2)
    return initialised(layer, scale)


def initialised(layer: nn.Conv2d, scale: float = 1.0) -> nn.Conv2d:
    """He et al. 2015 (arXiv 1502.01852), eq. 15 for leaky ReLU, times `scale`; bias 0."""
    nn.init.kaiming_normal_(layer.weight, a=_SLOPE)
    with torch.no_grad():
        layer.weight.mul_(scale)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def upsample(x_NCHW: Tensor) -> Tensor:
    """Twice the height and width, through the binomial filter 1 3 3 1.

    That is what bilinear interpolation by 2 is: StyleGAN2's filter (arXiv 1912.04958, B).
    """
    return F.interpolate(x_NCHW, scale_factor=2.0, mode="bilinear")


def downsample(x_NCHW: Tensor) -> Tensor:
    """Half the height and width, through the same filter: what would alias is taken away first."""
    k_4 = x_NCHW.new_tensor((1 / 8, 3 / 8, 3 / 8, 1 / 8))
    kernel_C144 = (k_4[:, None] * k_4).expand(x_NCHW.shape[1], 1, 4, 4)
    return F.conv2d(x_NCHW, kernel_C144, stride=2, padding=1, groups=x_NCHW.shape[1])


def neighbours(x_BTCHW: Tensor) -> Tensor:
    """Each inner frame's channels beside those of the frames before and after: T - 2, 3 C."""
    return torch.cat([x_BTCHW[:, :-2], x_BTCHW[:, 1:-1], x_BTCHW[:, 2:]], 2)


class Bottleneck(nn.Module):
    """x + narrow(space(widen(x))), under a style where there is one.

    `branches` are the residual branches of the whole network: each begins at 1 / sqrt(branches),
    so that their sum keeps the scale. Fixup (arXiv 1901.09321) begins them at 0, which gives all
    but the last layer nothing to learn from at first.
    """

    def __init__(self, channels: int, branches: int, style_dim: int = 0) -> None:
        super().__init__()
        hidden = _EXPANSION * channels
        most = max(hidden // _GROUP, 1)
        groups = next(g for g in range(most, 0, -1) if hidden % g == 0)
        self.widen = conv(channels, hidden, 1)
        self.space = initialised(nn.Conv2d(hidden, hidden, 3, padding=1, groups=groups))
        self.narrow = conv(hidden, channels, 1, scale=branches**-0.5)
        self.style = nn.Linear(style_dim, hidden) if style_dim else None

    def forward(self, x_NCHW: Tensor, style_NS: Tensor | None = None) -> Tensor:
        """[N, C, H, W] -> [N, C, H, W]."""
        h_NCHW = F.leaky_relu(self.widen(x_NCHW), _SLOPE)
        h_NCHW = self.space(h_NCHW)
        if self.style is not None:
            # Modulated as StyleGAN2's weights are (arXiv 1912.04958, eq. 1), on the activations.
            h_NCHW = h_NCHW * (1 + self.style(style_NS))[:, :, None, None]
        branch_NCHW: Tensor = self.narrow(F.leaky_relu(h_NCHW, _SLOPE))
        return x_NCHW + branch_NCHW


class TemporalMix(nn.Module):
    """A 3x1x1 residual branch: [B, T, C, H, W] -> the same, T - 2 frames where `valid`.

    Not valid, the end frames have themselves as the neighbour that is missing.
    """

    def __init__(self, channels: int, branches: int, *, valid: bool) -> None:
        super().__init__()
        self.valid = valid
        # A 1x1 on three frames' channels side by side is a 3x1x1.
        self.mix = conv(3 * channels, channels, 1)
        self.narrow = conv(channels, channels, 1, scale=branches**-0.5)

    def forward(self, x_BTCHW: Tensor) -> Tensor:
        """Mixed with what is before and after."""
        if self.valid:
            kept_BTCHW, seen_BTCHW = x_BTCHW[:, 1:-1], x_BTCHW
        else:
            kept_BTCHW = x_BTCHW
            seen_BTCHW = torch.cat([x_BTCHW[:, :1], x_BTCHW, x_BTCHW[:, -1:]], 1)
        mixed_NCHW = F.leaky_relu(self.mix(neighbours(seen_BTCHW).flatten(0, 1)), _SLOPE)
        branch_NCHW: Tensor = self.narrow(mixed_NCHW)
        return kept_BTCHW + branch_NCHW.view(kept_BTCHW.shape)


class TemporalAttention(nn.Module):
    """Each position looks at itself `reach` frames around, or at all frames with `reach` 0.

    A residual branch, [B, T, C, H, W] -> the same, less `reach` frames at either end. Written out,
    for the fused kernels have no second derivative, and R1 and R2 need one.
    """

    def __init__(self, channels: int, branches: int, *, reach: int = 0, frames: int = 0) -> None:
        super().__init__()
        self.reach = reach
        most = max(channels // 32, 1)
        self.heads = next(h for h in range(most, 0, -1) if channels % h == 0)
        # No bias: a key's cancels in the softmax, where Adam would make full steps of rounding.
        self.qkv = initialised(nn.Conv2d(channels, 3 * channels, 1, bias=False))
        self.narrow = conv(channels, channels, 1, scale=branches**-0.5)
        # What a distance in time is worth: by offset, or by pair of frames.
        places = (2 * reach + 1,) if reach else (frames, frames)
        self.place = nn.Parameter(torch.zeros(self.heads, *places))

    def forward(self, x_BTCHW: Tensor) -> Tensor:
        """Mixed with what is seen at other times at the same place."""
        B, T, C, H, W = x_BTCHW.shape
        qkv_NCHW = self.qkv(x_BTCHW.flatten(0, 1))
        # [3, B, place in space, head, T, channel]
        qkv = qkv_NCHW.view(B, T, 3, self.heads, C // self.heads, H * W).permute(2, 0, 5, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        offsets_TT = torch.arange(T, device=k.device) - torch.arange(T, device=k.device)[:, None]
        if self.reach:
            near_HTT = self.place[:, (offsets_TT + self.reach).clamp(0, 2 * self.reach)]
            place_HTT = near_HTT.masked_fill(offsets_TT.abs() > self.reach, -math.inf)
        else:
            place_HTT = self.place
        weight = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5 + place_HTT).softmax(-1)
        seen_BTCHW = (weight @ v).permute(0, 3, 2, 4, 1).reshape(x_BTCHW.shape)
        branch_NCHW: Tensor = self.narrow(seen_BTCHW.flatten(0, 1))
        return (x_BTCHW + branch_NCHW.view(x_BTCHW.shape))[:, self.reach : T - self.reach]
