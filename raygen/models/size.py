"""What a config's networks come to, told without memory or time: `raygen presets` prints it.

size = size_of(Config.load("base"))
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from raygen.conditions import Condition
from raygen.config import Config, SuperresConfig
from raygen.models import build_critic, build_generator, parameter_count


class Size(NamedTuple):
    """Trained scalars, and operations of a forward pass for one clip (a multiply-add is two)."""

    generator_parameters: int
    critic_parameters: int
    generator_flops: int
    critic_flops: int


def size_of(config: Config, classes: int = 4) -> Size:
    """The size of a config's networks; convolutions and matrix products count, nothing else."""
    data = config.data
    with torch.device("meta"):
        shape = (config.model, data, classes, config.conditions)
        generator, critic = build_generator(*shape).eval(), build_critic(*shape).eval()
        z_BD = torch.empty(1, config.model.latent_dim)
        y_B = Condition.of(torch.zeros(1, dtype=torch.int64))
        if isinstance(config.model, SuperresConfig):
            sides = (data.height // config.model.factor, data.width // config.model.factor)
            low_BCTHW = torch.empty(1, 3, data.frames, *sides)
            y_B = y_B._replace(low_BCTHW=low_BCTHW, noise_B=torch.zeros(1))
        with FlopCounterMode(display=False) as drawing, torch.no_grad():
            x_BCTHW = generator(z_BD, y_B)
        with FlopCounterMode(display=False) as judging, torch.no_grad():
            critic(x_BCTHW, y_B)
    return Size(
        parameter_count(generator),
        parameter_count(critic),
        drawing.get_total_flops(),
        judging.get_total_flops(),
    )
