"""Model families by `model.kind`: pure torch, no Ray, no DeepSpeed.

    generator = build_generator(config.model, config.data, classes=4)
    x_BCTHW = generator(z_BD, y_B)        # [-1, 1]
    logit_B = build_critic(config.model, config.data, classes=4)(x_BCTHW, y_B)

Both draw their initial weights from torch's global generator: seed it first.
"""

from __future__ import annotations

from torch import nn

from raygen.config import (
    DataConfig,
    DcganConfig,
    MlpConfig,
    ModelConfig,
    ResidualConfig,
    TriplaneConfig,
    UpsamplingConfig,
)
from raygen.models.baselines import DcganCritic, DcganGenerator, MlpCritic, MlpGenerator
from raygen.models.blocks import Recomputing
from raygen.models.critics import StridedCritic
from raygen.models.generators import TransposedGenerator, UpsamplingGenerator
from raygen.models.residual import ResidualGenerator
from raygen.models.residual_critic import FrameCritic, JointCritic, ResidualCritic
from raygen.models.timed import Timed
from raygen.models.triplane import TriplaneGenerator

__all__ = [
    "Timed",
    "build_critic",
    "build_generator",
    "parameter_count",
    "recompute_activations",
]


def build_generator(model: ModelConfig, data: DataConfig, classes: int) -> nn.Module:
    """`forward(z_BD, y_B) -> x_BCTHW` in [-1, 1]; D is `model.latent_dim`, y_B int64 class ids.

    A `Timed` one also draws any other times: `forward(z_BD, y_B, times)`.
    """
    match model:
        case MlpConfig():
            return MlpGenerator(model, data, classes)
        case DcganConfig():
            return DcganGenerator(model, data, classes)
        case UpsamplingConfig():
            return UpsamplingGenerator(model, data, classes)
        case ResidualConfig():
            return ResidualGenerator(model, data, classes)
        case TriplaneConfig():
            return TriplaneGenerator(model, data, classes)
        case _:
            return TransposedGenerator(model, data, classes)


def build_critic(model: ModelConfig, data: DataConfig, classes: int) -> nn.Module:
    """`forward(x_BCTHW, y_B) -> logit_B`; supports double backward, for R1 and R2."""
    critic = _clip_critic(model, data, classes)
    if model.frame_critic:
        return JointCritic(critic, FrameCritic(model, data, classes))
    return critic


def _clip_critic(model: ModelConfig, data: DataConfig, classes: int) -> nn.Module:
    match model:
        case MlpConfig():
            return MlpCritic(model, data, classes)
        case DcganConfig():
            return DcganCritic(model, data, classes)
        case ResidualConfig() | TriplaneConfig():
            return ResidualCritic(model, data, classes)
        case _:
            return StridedCritic(model, data, classes)


def recompute_activations(network: nn.Module) -> None:
    """From here on its backward pass recomputes what its blocks hold: less memory, more time."""
    for part in network.modules():
        if isinstance(part, Recomputing):
            part.recompute = True


def parameter_count(module: nn.Module) -> int:
    """Trained scalars of a network."""
    return sum(p.numel() for p in module.parameters())
