"""The residual critic in space and time, and a critic of single frames that can sit beside it.

Both judge each clip alone (no normalisation) and have the second derivative that R1 and R2 need.
Names carry shapes: B clips, C channels, T frames, H height, W width, N = B * T images.
"""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F

from raygen.conditions import Condition
from raygen.config import ConditionsConfig, DataConfig, ModelConfig, ResidualConfig, TriplaneConfig
from raygen.models.blocks import Projection, Recomputing, Size3, pyramid, strided_conv
from raygen.models.grouped import (
    Bottleneck,
    TemporalAttention,
    TemporalMix,
    conv,
    downsample,
    initialised,
)

_RGB = 3
_ATTENTION_SIDE = 16  # pixels, and below


class ResidualCritic(Recomputing):
    """One strided convolution from the pixels, then residual blocks in space and in time.

    At the clip's own size a block of 32 channels costs more than all the rest (R3GAN has them
    there): the 4x4x4 convolution reads every pixel once and leaves a quarter of the positions.
    """

    def __init__(
        self,
        model: ResidualConfig | TriplaneConfig,
        data: DataConfig,
        classes: int,
        conditions: ConditionsConfig,
    ) -> None:
        super().__init__()
        shape = pyramid(data.frames, data.size)
        channels = list(reversed(shape.channels(model.critic_width)))
        first, *strides = reversed(shape.strides)
        self.stem = strided_conv(_RGB, channels[0], first)
        branches = 2 * len(channels)
        frames, height, width = data.frames // first[0], data.height // 2, data.width // 2
        levels: list[nn.Module] = []
        for (inputs, outputs), stride in zip(
            pairwise([*channels, channels[-1]]), [*strides, (1, 1, 1)], strict=True
        ):
            attends = model.attention and height * width <= _ATTENTION_SIDE**2
            levels.append(CriticLevel(inputs, outputs, stride, branches, frames if attends else 0))
            frames, height, width = frames // stride[0], height // stride[1], width // stride[2]
        self.levels = nn.ModuleList(levels)
        self.head = Projection(
            channels[-1] * shape.base_volume, model.class_dim, classes, conditions
        )

    def forward(self, x_BCTHW: Tensor, y_B: Condition | Tensor) -> Tensor:
        """Clips [B, 3, T, H, W] in [-1, 1] and conditions, or class ids (int64) -> logits [B]."""
        x_BTCHW = F.leaky_relu(self.run(self.stem, x_BCTHW), 0.2).transpose(1, 2)
        for level in self.levels:
            x_BTCHW = self.run(level, x_BTCHW)
        logit_B: Tensor = self.head(F.leaky_relu(x_BTCHW, 0.2).transpose(1, 2), y_B)
        return logit_B


class CriticLevel(nn.Module):
    """A block in space, one in time, attention where it is wanted; then half of what is halved."""

    def __init__(
        self, in_channels: int, out_channels: int, stride: Size3, branches: int, attention: int
    ) -> None:
        super().__init__()
        self.stride = stride
        self.block = Bottleneck(in_channels, branches)
        self.time = TemporalMix(in_channels, branches, valid=False)
        self.attention = (
            TemporalAttention(in_channels, branches, frames=attention) if attention else None
        )
        self.mix = conv(in_channels, out_channels, 1) if in_channels != out_channels else None

    def forward(self, x_BTCHW: Tensor) -> Tensor:
        """[B, T, in, H, W] -> [B, T', out, H', W'], T' = T over the stride, and so on."""
        x_BTCHW = self.time(self.block(x_BTCHW.flatten(0, 1)).view(x_BTCHW.shape))
        if self.attention is not None:
            x_BTCHW = self.attention(x_BTCHW)
        if self.stride[0] == 2:
            x_BTCHW = (x_BTCHW[:, ::2] + x_BTCHW[:, 1::2]) / 2
        x_NCHW = x_BTCHW.flatten(0, 1)
        if self.stride[1] == 2:
            x_NCHW = downsample(x_NCHW)
        if self.mix is not None:
            x_NCHW = self.mix(x_NCHW)
        return x_NCHW.view(*x_BTCHW.shape[:2], *x_NCHW.shape[1:])


class FrameCritic(Recomputing):
    """Judges some frames as pictures, evenly spaced over the clip: the mean of their logits.

    MoCoGAN's image discriminator (arXiv 1707.04993, section 3.2), on fixed frames: what a critic
    says of a clip must not depend on chance.
    """

    def __init__(
        self, model: ModelConfig, data: DataConfig, classes: int, conditions: ConditionsConfig
    ) -> None:
        super().__init__()
        channels = [_RGB, *reversed(pyramid(data.frames, data.size).channels(model.critic_width))]
        count = min(model.frame_critic, data.frames)
        self.frames = [(2 * i + 1) * data.frames // (2 * count) for i in range(count)]
        self.layers = nn.Sequential()
        for inputs, outputs in pairwise(channels):
            self.layers.append(initialised(nn.Conv2d(inputs, outputs, 4, 2, 1)))
            self.layers.append(nn.LeakyReLU(0.2))
        halvings = len(channels) - 1
        area = (data.height >> halvings) * (data.width >> halvings)
        self.head = Projection(channels[-1] * area, model.class_dim, classes, conditions)

    def forward(self, x_BCTHW: Tensor, y_B: Condition | Tensor) -> Tensor:
        """Clips [B, 3, T, H, W] in [-1, 1] and conditions, or class ids (int64) -> logits [B]."""
        x_NCHW = x_BCTHW[:, :, self.frames].transpose(1, 2).flatten(0, 1)
        x_NCHW = self.run_layers(self.layers, 2, x_NCHW)
        y_N = Condition.of(y_B)._replace(low_BCTHW=None).each(len(self.frames))
        logit_N: Tensor = self.head(x_NCHW, y_N)
        return logit_N.view(len(x_BCTHW), -1).mean(1)


class JointCritic(nn.Module):
    """Two critics of the same clips as one: the sum of their logits."""

    def __init__(self, clip: nn.Module, frame: nn.Module) -> None:
        super().__init__()
        self.clip, self.frame = clip, frame

    @property
    def head(self) -> nn.Module:
        """The head of the one that sees whole clips."""
        head: nn.Module = self.clip.head  # type: ignore[assignment]
        return head

    def forward(self, x_BCTHW: Tensor, y_B: Condition | Tensor) -> Tensor:
        """Clips [B, 3, T, H, W] in [-1, 1] and conditions, or class ids (int64) -> logits [B]."""
        logit_B: Tensor = self.clip(x_BCTHW, y_B) + self.frame(x_BCTHW, y_B)
        return logit_B
