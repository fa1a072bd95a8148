"""What generators and critics are made of: the pyramid of resolutions, and its layers.

Names carry shapes: B clips, C channels, T frames, H height, W width, D latent dimension,
S style dimension.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from raygen.conditions import Condition, ConditionEmbedding
from raygen.config import ConditionsConfig
from raygen.sides import Size, sides

Size3 = tuple[int, int, int]


class Pyramid(NamedTuple):
    """The resolutions between the coarsest feature map and the clip."""

    base_THW: Size3
    strides: tuple[Size3, ...]  # coarse to fine; each is (2, 2, 2) or (1, 2, 2)

    @property
    def base_volume(self) -> int:
        """Positions of the coarsest map."""
        t, h, w = self.base_THW
        return t * h * w

    def channels(self, width: int) -> list[int]:
        """Channels at each resolution, coarse to fine: `width` at the finest, at most 8 times it.

        One fewer than the resolutions there are: the finest is the clip, which has three.
        """
        return [width * min(2**k, 8) for k in reversed(range(len(self.strides)))]


def pyramid(frames: int, size: Size) -> Pyramid:
    """Halves `size` (pixels) down to 4 to 7, and `frames` beside it down to 2 or an odd number.

    Of a size that is no square, until the shorter side is 4 to 7 or one of them is odd.

    Time is halved at the coarse end, so the generator settles the motion first and the finest
    layers work frame by frame where the clip has more halvings in space than in time.
    """
    levels, (height, width) = 0, sides(size)
    while height % 2 == width % 2 == 0 and min(height, width) >= 8:
        levels, height, width = levels + 1, height // 2, width // 2
    temporal, length = 0, frames
    while temporal < levels and length % 2 == 0 and length >= 4:
        temporal, length = temporal + 1, length // 2
    strides: tuple[Size3, ...] = ((2, 2, 2),) * temporal + ((1, 2, 2),) * (levels - temporal)
    return Pyramid((length, height, width), strides)


def strided_conv(in_channels: int, out_channels: int, stride: Size3) -> nn.Conv3d:
    """Kernel 4 where the stride is 2, kernel 1 where it is 1: divides the resolution exactly."""
    kernel, padding = _kernel_and_padding(stride)
    conv = nn.Conv3d(in_channels, out_channels, kernel, stride, padding)
    # He et al. 2015 (arXiv 1502.01852), eq. 15 for leaky ReLU: nothing else keeps the scale in a
    # critic without normalisation.
    nn.init.kaiming_normal_(conv.weight, a=0.2)
    return conv


def transposed_conv(in_channels: int, out_channels: int, stride: Size3) -> nn.ConvTranspose3d:
    """The transpose of `strided_conv`: multiplies the resolution exactly."""
    kernel, padding = _kernel_and_padding(stride)
    return nn.ConvTranspose3d(in_channels, out_channels, kernel, stride, padding)


def _kernel_and_padding(stride: Size3) -> tuple[Size3, Size3]:
    kernel = tuple(4 if s == 2 else 1 for s in stride)
    padding = tuple(1 if s == 2 else 0 for s in stride)
    return kernel, padding  # type: ignore[return-value]


def pixel_norm(x_BCTHW: Tensor) -> Tensor:
    """Unit mean square over the channels of each position (Karras et al. 2018, section 4.2)."""
    return x_BCTHW * (x_BCTHW.square().mean(1, keepdim=True) + 1e-6).rsqrt()


def group_norm(channels: int) -> nn.GroupNorm:
    """Eight groups; a layer narrower than that, or not divisible, takes what divides it."""
    return nn.GroupNorm(next(g for g in (8, 4, 2, 1) if channels % g == 0), channels)


class BatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch norm of pictures or clips [B, C, ...]; float32 whatever the weights are kept in.

    In bfloat16 DeepSpeed keeps weights, and leaves running statistics as they are.
    """

    def forward(self, x: Tensor) -> Tensor:
        """As nn.BatchNorm3d, of the type of `x`."""
        y = F.batch_norm(
            x.float(),
            self.running_mean,
            self.running_var,
            self.weight.float(),
            self.bias.float(),
            self.training,
            self.momentum or 0.0,
            self.eps,
        )
        return y.to(x.dtype)


class Recomputing(nn.Module):
    """A network that can recompute what its blocks hold, where the backward pass needs it.

    With `recompute` only what passes from block to block is remembered (arXiv 1604.06174).
    """

    recompute = False

    def run(self, block: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        """`block(*inputs)`, remembered or not."""
        if not (self.recompute and torch.is_grad_enabled()):
            return block(*inputs)
        # The reentrant form supports no double backward; nothing here is random.
        x_BCTHW: Tensor = checkpoint(block, *inputs, use_reentrant=False, preserve_rng_state=False)
        return x_BCTHW

    def run_layers(self, layers: nn.Sequential, length: int, x_BCTHW: Tensor) -> Tensor:
        """`layers` in blocks of `length`."""
        for first in range(0, len(layers), length):
            x_BCTHW = self.run(layers[first : first + length], x_BCTHW)
        return x_BCTHW


class UpsamplingBlock(nn.Module):
    """Mix at the low resolution under the style, upsample, refine over time.

    A 3x3x3 convolution costs 8 times less before the upsampling than after it, and trilinear
    interpolation has no checkerboard to unlearn, which transposed convolutions have.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: Size3, style_dim: int) -> None:
        super().__init__()
        self.scale = tuple(float(s) for s in stride)
        self.mix = nn.Conv3d(in_channels, out_channels, 3, padding=1)
        self.style = nn.Linear(style_dim, out_channels)
        # 3x1x1 over [T, H * W] seen as an image: on a CPU, 3 times the speed of the Conv3d.
        self.refine = nn.Conv2d(out_channels, out_channels, (3, 1), padding=(1, 0))

    def forward(self, x_BCTHW: Tensor, style_BS: Tensor) -> Tensor:
        """[B, in, T, H, W] -> [B, out, T', H', W'], T' = T times the stride, and so on."""
        x_BCTHW = pixel_norm(F.leaky_relu(self.mix(x_BCTHW), 0.2))
        # StyleGAN2 (arXiv 1912.04958), eq. 1, on the activations that `refine` reads instead of
        # its weights; the pixel norm after it stands in for the demodulation. A factor a channel
        # commutes with upsampling and is cheaper before it.
        scale_BC111 = (1 + self.style(style_BS))[:, :, None, None, None]
        x_BCTHW = F.interpolate(x_BCTHW * scale_BC111, scale_factor=self.scale, mode="trilinear")
        refined_BCTL = self.refine(x_BCTHW.flatten(3))
        return pixel_norm(F.leaky_relu(refined_BCTL, 0.2).view(x_BCTHW.shape))


class Projection(nn.Module):
    """A critic's head: logit = v . h + e(y) . h (Miyato & Koyama 2018, arXiv 1802.05637).

    A first frame is no part of e: real and generated clips alike begin with it.
    """

    def __init__(self, features: int, dim: int, classes: int, conditions: ConditionsConfig) -> None:
        super().__init__()
        self.hidden = nn.Linear(features, dim)
        # No bias: it cancels in a relativistic loss, where Adam would make full steps of rounding.
        self.unconditional = nn.Linear(dim, 1, bias=False)
        self.embedding = ConditionEmbedding(classes, dim, conditions)
        self.embedding.reset(dim**-0.5)

    def forward(self, x_BCTHW: Tensor, y_B: Condition | Tensor) -> Tensor:
        """[B, C, T, H, W] with C*T*H*W = `features`, and conditions -> logits [B]."""
        h_BD = self._features(x_BCTHW)
        projected_B: Tensor = (h_BD * self.embedding(y_B)).sum(1)
        return torch.squeeze(self.unconditional(h_BD), 1) + projected_B

    def cosines(
        self, x_BCTHW: Tensor, y_B: Condition, others_K: Condition
    ) -> tuple[Tensor, Tensor]:
        """Cosines of features with embedded conditions: own [B], others' [B, K].

        `x_BCTHW` as in `forward`; of a critic that judges frame by frame, a row a frame.
        """
        h_ND = self._features(x_BCTHW)
        h_BD = h_ND.view(len(y_B.labels_B), -1, h_ND.shape[1]).mean(1)
        h_BD, own_BD, other_KD = (
            F.normalize(x.float(), dim=1)
            for x in (h_BD, self.embedding(y_B), self.embedding(others_K))
        )
        return (h_BD * own_BD).sum(1), h_BD @ other_KD.T

    def _features(self, x_BCTHW: Tensor) -> Tensor:
        h_BD: Tensor = F.leaky_relu(self.hidden(x_BCTHW.flatten(1)), 0.2)
        return h_BD
