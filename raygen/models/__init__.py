"""Model families by `model.kind`: pure torch, no Ray, no DeepSpeed.

    generator = build_generator(config.model, config.data, 4, config.conditions)
    x_BCTHW = generator(z_BD, y_B)        # [-1, 1]
    logit_B = build_critic(config.model, config.data, 4, config.conditions)(x_BCTHW, y_B)

y_B is a raygen.conditions.Condition, or int64 class ids where a class is all that is given; a
generator's `embedding` is its raygen.conditions.ConditionEmbedding, and what it returns has been
through `keep_frame`. Both draw their initial weights from torch's global generator: seed it first.
"""

from __future__ import annotations

from torch import nn

from raygen.config import (
    ConditionsConfig,
    DataConfig,
    DcganConfig,
    MlpConfig,
    ModelConfig,
    ResidualConfig,
    SuperresConfig,
    TriplaneConfig,
    TwoStreamConfig,
    UpsamplingConfig,
)
from raygen.models.baselines import DcganCritic, DcganGenerator, MlpCritic, MlpGenerator
from raygen.models.blocks import Recomputing
from raygen.models.critics import StridedCritic
from raygen.models.generators import TransposedGenerator, UpsamplingGenerator
from raygen.models.residual import ResidualGenerator
from raygen.models.residual_critic import FrameCritic, JointCritic, ResidualCritic
from raygen.models.superres import Cascade, SuperresCritic, SuperresGenerator, enlarged
from raygen.models.timed import Timed
from raygen.models.triplane import TriplaneGenerator
from raygen.models.twostream import TwoStreamGenerator

__all__ = [
    "Cascade",
    "SuperresGenerator",
    "Timed",
    "any_length",
    "build_critic",
    "build_generator",
    "enlarged",
    "parameter_count",
    "recompute_activations",
]

CLASSES_ALONE = ConditionsConfig()


def build_generator(
    model: ModelConfig, data: DataConfig, classes: int, conditions: ConditionsConfig = CLASSES_ALONE
) -> nn.Module:
    """`forward(z_BD, y_B) -> x_BCTHW` in [-1, 1]; D is `model.latent_dim`.

    A `Timed` one also draws any other times: `forward(z_BD, y_B, times)`. That of `superres` takes
    conditions with a small clip, which in a `Cascade` its base has drawn.
    """
    match model:
        case MlpConfig():
            return MlpGenerator(model, data, classes, conditions)
        case DcganConfig():
            return DcganGenerator(model, data, classes, conditions)
        case TwoStreamConfig():
            return TwoStreamGenerator(model, data, classes, conditions)
        case UpsamplingConfig():
            return UpsamplingGenerator(model, data, classes, conditions)
        case ResidualConfig():
            return ResidualGenerator(model, data, classes, conditions)
        case TriplaneConfig():
            return TriplaneGenerator(model, data, classes, conditions)
        case SuperresConfig():
            return SuperresGenerator(model, data, classes, conditions)
        case _:
            return TransposedGenerator(model, data, classes, conditions)


def build_critic(
    model: ModelConfig, data: DataConfig, classes: int, conditions: ConditionsConfig = CLASSES_ALONE
) -> nn.Module:
    """`forward(x_BCTHW, y_B) -> logit_B`; supports double backward, for R1 and R2."""
    critic = _clip_critic(model, data, classes, conditions)
    if model.frame_critic:
        return JointCritic(critic, FrameCritic(model, data, classes, conditions))
    return critic


def _clip_critic(
    model: ModelConfig, data: DataConfig, classes: int, conditions: ConditionsConfig
) -> nn.Module:
    match model:
        case MlpConfig():
            return MlpCritic(model, data, classes, conditions)
        case DcganConfig():
            return DcganCritic(model, data, classes, conditions)
        case ResidualConfig() | TriplaneConfig():
            return ResidualCritic(model, data, classes, conditions)
        case SuperresConfig():
            return SuperresCritic(model, data, classes, conditions)
        case _:
            return StridedCritic(model, data, classes, conditions)


def any_length(generator: nn.Module) -> bool:
    """Whether it draws clips of any length at any frame rate."""
    if isinstance(generator, Cascade):
        return any_length(generator.base)
    return isinstance(generator, Timed)


def recompute_activations(network: nn.Module) -> None:
    """From here on its backward pass recomputes what its blocks hold: less memory, more time."""
    for part in network.modules():
        if isinstance(part, Recomputing):
            part.recompute = True


def parameter_count(module: nn.Module) -> int:
    """Trained scalars of a network."""
    return sum(p.numel() for p in module.parameters())
