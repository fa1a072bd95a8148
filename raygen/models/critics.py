"""The critic: (clip x_BCTHW in [-1, 1], conditions y_B) -> logit_B, high for real.

Often called the discriminator; here "critic" throughout, whatever the loss.
"""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

from raygen.conditions import Condition
from raygen.config import ConditionsConfig, DataConfig, ModelConfig
from raygen.models.blocks import BatchNorm, Projection, Recomputing, pyramid, strided_conv

_RGB = 3
_BLOCK = 2  # layers recomputed together: a convolution and what follows it


class StridedCritic(Recomputing):
    """Strided convolutions and leaky ReLU down to a coarse map, the condition by projection.

    Without normalisation each clip is judged alone, which R1 and R2 assume. With
    `batch_statistics` (the `conv3d` baseline) every layer but the first is batch-normalised, as
    in DCGAN (arXiv 1511.06434, section 3).
    """

    inputs = _RGB  # channels of what it is shown

    def __init__(
        self, model: ModelConfig, data: DataConfig, classes: int, conditions: ConditionsConfig
    ) -> None:
        super().__init__()
        shape = pyramid(data.frames, data.size)
        channels = [self.inputs, *reversed(shape.channels(model.critic_width))]
        layers: list[nn.Module] = []
        for (inputs, outputs), stride in zip(
            pairwise(channels), reversed(shape.strides), strict=True
        ):
            layers.append(strided_conv(inputs, outputs, stride))
            if model.batch_statistics and inputs != self.inputs:
                layers.append(BatchNorm(outputs))
            layers.append(nn.LeakyReLU(0.2))
        self.layers = nn.Sequential(*layers)
        features = channels[-1] * shape.base_volume
        self.head = Projection(features, model.class_dim, classes, conditions)

    def forward(self, x_BCTHW: Tensor, y_B: Condition | Tensor) -> Tensor:
        """Clips [B, 3, T, H, W] in [-1, 1] and conditions, or class ids (int64) -> logits [B]."""
        logit_B: Tensor = self.head(self.run_layers(self.layers, _BLOCK, x_BCTHW), y_B)
        return logit_B
