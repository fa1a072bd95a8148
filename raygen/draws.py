"""What chance decides of a step: drawn for the global batch, so that no worker count changes it.

    draws = Draws.at(config, step, slice(rank * share, (rank + 1) * share))

Everything is drawn on the CPU from (seed, step), then cut to the clips that a rank has: what clip
i gets depends neither on how many ranks there are nor on how they split their share. Names carry
shapes: B clips of this rank, C channels, T frames, H height, W width, D latent dimension, K kinds
of conditions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from raygen import augment
from raygen.augment import Draw
from raygen.conditions import Condition
from raygen.config import KINDS, Config, SuperresConfig
from raygen.matching import REMEMBERED, Crossing

_LOW = 1 << 5  # turns from there on draw what a stage of super-resolution is given, and crossings


@dataclass(frozen=True)
class Degradation:
    """How clips are made small for a stage of super-resolution to enlarge: see `of`.

    noise_B: the standard deviation of each clip's noise; seed_B: of the noise itself.
    """

    noise_B: Tensor
    seed_B: Tensor

    def __getitem__(self, rows: slice) -> Degradation:
        return Degradation(self.noise_B[rows], self.seed_B[rows])

    def of(self, x_BCTHW: Tensor, y_B: Condition, factor: int) -> Condition:
        """The conditions, and with them the clips at a `factor`-th of their height and width.

        Pixels are averaged. One still pattern of noise a clip, as augmentation is drawn: another
        in every frame would be a flicker to take away (arXiv 2106.15282, section 4.2, of images).
        """
        low = torch.nn.functional.avg_pool2d(x_BCTHW.flatten(1, 2), factor)
        low_BCTHW = low.view(*x_BCTHW.shape[:3], *low.shape[2:])
        noise_B = self.noise_B.to(x_BCTHW)
        pattern_BC1HW = noise_like(low_BCTHW[:, :, :1], self.seed_B)
        low_BCTHW = low_BCTHW + noise_B[:, None, None, None, None] * pattern_BC1HW
        return y_B._replace(low_BCTHW=low_BCTHW, noise_B=noise_B)


@dataclass(frozen=True)
class CriticDraws:
    """For one step of the critic: the fakes' latents, and what it is shown of real and fake.

    noise_B2: a seed for each clip, real and fake, of the finite-difference penalty's noise; the
    noise itself is as large as the clips and is drawn where they are. dropped_BK: bool, kinds of
    conditions (as in config.KINDS) that are left out; None where none ever is. low: of a stage of
    super-resolution alone.
    """

    z_BD: Tensor
    real: Draw
    fake: Draw
    noise_B2: Tensor
    dropped_BK: Tensor | None
    low: Degradation | None

    def __getitem__(self, rows: slice) -> CriticDraws:
        return CriticDraws(
            *(self.z_BD[rows], self.real[rows], self.fake[rows], self.noise_B2[rows]),
            dropped_BK=None if self.dropped_BK is None else self.dropped_BK[rows],
            low=self.low and self.low[rows],
        )


@dataclass(frozen=True)
class GeneratorDraws:
    """For one step of the generator: latents, and what the critic is shown of either side.

    dropped_BK and low as of the critic. crossing: of texts, where any are crossed.
    """

    z_BD: Tensor
    play: Draw
    dropped_BK: Tensor | None
    low: Degradation | None
    crossing: Crossing | None

    def __getitem__(self, rows: slice) -> GeneratorDraws:
        return GeneratorDraws(
            *(self.z_BD[rows], self.play[rows]),
            dropped_BK=None if self.dropped_BK is None else self.dropped_BK[rows],
            low=self.low and self.low[rows],
            crossing=self.crossing and self.crossing[rows],
        )


@dataclass(frozen=True)
class Draws:
    """For one whole step: `loss.critic_steps` steps of the critic, then one of the generator.

    heard: how texts are crossed that clips are told from, alike on every rank; None for not at all.
    """

    critic: tuple[CriticDraws, ...]
    generator: GeneratorDraws
    heard: Crossing | None

    @classmethod
    def at(cls, config: Config, step: int, rows: slice) -> Draws:
        """The draws of the clips `rows` of the global batch at `step`."""
        count, dim = config.train.batch_size, config.model.latent_dim

        def rng(purpose: int, turn: int = 0) -> torch.Generator:
            # torch mixes a seed poorly when few of its bits are set: spread them. On a CPU it
            # takes the low 32, so all that tells two draws apart must reach those.
            key = (config.seed * 1_000_003 + step + (turn << 25)) * 8 + purpose
            return torch.Generator().manual_seed(key * 0x9E3779B97F4A7C15 % 2**63)

        def z(rng: torch.Generator) -> Tensor:
            return torch.randn(count, dim, generator=rng)

        def shown(rng: torch.Generator) -> Draw:
            return augment.draw(config.augment, count, rng)

        def seeds(rng: torch.Generator) -> Tensor:
            return torch.randint(2**63 - 1, (count, 2), generator=rng)

        def dropped(rng: torch.Generator) -> Tensor | None:
            share = config.conditions.drop_share
            return torch.rand(count, len(KINDS), generator=rng) < share if share else None

        def low(rng: torch.Generator) -> Degradation | None:
            if not isinstance(config.model, SuperresConfig):
                return None
            noise_B = config.model.noise * torch.rand(count, generator=rng)
            return Degradation(noise_B, torch.randint(2**63 - 1, (count,), generator=rng))

        def crossing(rng: torch.Generator, count: int = count) -> Crossing | None:
            share = config.conditions.crossed
            return Crossing.draw(share, count, rng) if share else None

        critic = tuple(
            CriticDraws(
                z(rng(0, turn)),
                shown(rng(2, turn)),
                shown(rng(3, turn)),
                seeds(rng(5, turn)),
                dropped(rng(6, turn)),
                low(rng(0, _LOW + turn)),
            )[rows]
            for turn in range(config.loss.critic_steps)
        )
        generator = GeneratorDraws(
            *(z(rng(1)), shown(rng(4)), dropped(rng(7)), low(rng(1, _LOW))),
            crossing=crossing(rng(3, _LOW)),
        )
        return cls(critic, generator[rows], crossing(rng(4, _LOW), REMEMBERED))


def noise_like(x_BCTHW: Tensor, seed_B: Tensor) -> Tensor:
    """Standard normal noise in the shape of `x_BCTHW`, each clip's from its own seed.

    The same on every device of one kind: a GPU draws other numbers from a seed than a CPU.
    """
    rng = torch.Generator(x_BCTHW.device)
    return torch.stack(
        [
            torch.randn(clip.shape, generator=rng.manual_seed(seed), device=clip.device)
            for clip, seed in zip(x_BCTHW, seed_B.tolist(), strict=True)
        ]
    ).to(x_BCTHW.dtype)
