"""The generator and the critic under DeepSpeed, and one adversarial step of theirs.

Two engines in one process share one communication group. What makes that exact at every ZeRO
stage is in `Pair.step`; tests/test_engine_parity.py holds it to a plain PyTorch loop. Names carry
shapes: B clips of this rank, C channels, T frames, H height, W width, D latent dimension.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import deepspeed
import torch
from torch import Tensor, nn

from raygen import augment, losses
from raygen.augment import Draw
from raygen.config import AdamConfig, Config
from raygen.ema import ParameterEma
from raygen.models import build_critic, build_generator, parameter_count

_DTYPE = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Draws:
    """What chance decides of one step, for this rank's share of the global batch.

    z_BD: latents of the critic's and of the generator's half step; the augmentations: what the
    critic is shown of real and fake clips in the first, and of both in the second.
    """

    critic_z_BD: Tensor
    generator_z_BD: Tensor
    real: Draw
    fake: Draw
    play: Draw

    @classmethod
    def at(cls, config: Config, step: int, rows: slice) -> Draws:
        """Drawn for the whole global batch from (seed, step), then cut to `rows`.

        So the latents and augmentations of clip i do not depend on the number of workers.
        """
        count, dim = config.train.batch_size, config.model.latent_dim

        def rng(purpose: int) -> torch.Generator:
            # torch mixes a seed poorly when few of its bits are set: spread them.
            key = ((config.seed * 1_000_003 + step) * 8 + purpose) * 0x9E3779B97F4A7C15
            return torch.Generator().manual_seed(key % 2**63)

        def z(purpose: int) -> Tensor:
            return torch.randn(count, dim, generator=rng(purpose))[rows]

        def shown(purpose: int) -> Draw:
            return augment.draw(config.augment, count, rng(purpose))[rows]

        return cls(z(0), z(1), shown(2), shown(3), shown(4))


class Pair:
    """Two DeepSpeed engines, the generator's EMA, and the schedules of both.

    Needs `deepspeed.init_distributed` to have been called. Weights are drawn from `config.seed`,
    alike on every rank. At `zero_stage` 3 the critic takes stage 2, the highest at which a double
    backward through it, and so R1 and R2, is exact. With `universal`, `load` takes what
    raygen.reshard made of a checkpoint of another world size.
    """

    def __init__(
        self,
        config: Config,
        classes: int,
        *,
        device: torch.device,
        world_size: int,
        universal: bool = False,
    ) -> None:
        logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
        self.config = config
        self.device = device
        self.dtype = _DTYPE[config.train.precision]
        self.share = config.train.batch_size // world_size
        self.universal = universal
        torch.manual_seed(config.seed)
        generator = build_generator(config.model, config.data, classes)
        critic = build_critic(config.model, config.data, classes)
        stage = config.train.zero_stage
        self.generator = self._engine(generator, config.optim.generator, stage)
        self.critic = self._engine(critic, config.optim.critic, min(stage, 2))
        self.ema = ParameterEma(self.generator.module, sharded=stage == 3)

    def step(
        self, x_BCTHW: Tensor, y_B: Tensor, draws: Draws, *, step: int, progress: float
    ) -> dict[str, Tensor]:
        """One step of the critic, then one of the generator, on real clips in [-1, 1].

        `progress` in [0, 1] sets the schedules. Returns this rank's losses and logits, detached.
        """
        config, kind = self.config, self.config.loss.kind
        self._schedule(progress)
        x_BCTHW = x_BCTHW.to(self.device, self.dtype)
        y_B = y_B.to(self.device)

        # The critic, against fakes that carry no graph.
        with torch.no_grad():
            fake_BCTHW = self.generator(self._input(draws.critic_z_BD), y_B)
        real_BCTHW = augment.apply(x_BCTHW, draws.real)
        fake_BCTHW = augment.apply(fake_BCTHW, draws.fake)
        both = torch.cat([real_BCTHW, fake_BCTHW]), torch.cat([y_B, y_B])
        if config.model.batch_statistics:
            # Apart, as the generator's half step will show it the fakes: a critic that normalises
            # by batch sees another clip in other company.
            real_logit_B, fake_logit_B = self.critic(real_BCTHW, y_B), self.critic(fake_BCTHW, y_B)
        else:
            real_logit_B, fake_logit_B = self.critic(*both).chunk(2)
        real_logit_B, fake_logit_B = real_logit_B.float(), fake_logit_B.float()
        critic_loss = losses.critic_loss(kind, real_logit_B, fake_logit_B)
        gamma = losses.cosine(
            progress, config.loss.gamma, config.loss.gamma * config.loss.gamma_decay
        )
        penalty = torch.zeros((), device=self.device)
        if gamma and step % config.loss.penalty_every == 0:
            # R1 + R2 (arXiv 2501.05441, eq. 3), lazily, so times the interval (StyleGAN2, B).
            # The double backward is right only beside the engine, through its module; one pass
            # over both halves gives the mean of R1 and R2, hence gamma and not gamma / 2.
            penalty = losses.gradient_penalty(self.critic.module, *both)
            critic_loss = critic_loss + gamma * config.loss.penalty_every * penalty
        self.critic.backward(critic_loss)
        self.critic.step()

        # The generator, against the critic's module: its engine would take these gradients for
        # its own, and unfrozen weights would carry them into the critic's next step.
        with _frozen(self.critic.module):
            fake_BCTHW = self.generator(self._input(draws.generator_z_BD), y_B)
            play_logit_B = self._judge(fake_BCTHW, y_B, draws.play)
            with torch.no_grad():
                rival_logit_B = self._judge(x_BCTHW, y_B, draws.play)
            generator_loss = losses.generator_loss(kind, rival_logit_B, play_logit_B)
            self.generator.backward(generator_loss)
        self.generator.step()

        batch = config.train.batch_size
        self.ema.update(clips=batch, seen=(step + 1) * batch, halflife=config.optim.ema_halflife)
        return {
            "loss/generator": generator_loss.detach(),
            "loss/critic": critic_loss.detach(),
            "loss/penalty": penalty.detach(),
            "logit/real": real_logit_B.detach().mean(),
            "logit/fake": fake_logit_B.detach().mean(),
        }

    def save(self, folder: str) -> None:
        """Every rank writes its shards below `folder`: generator/ and critic/."""
        self.generator.save_checkpoint(folder, tag="generator", save_latest=False)
        self.critic.save_checkpoint(folder, tag="critic", save_latest=False)

    def load(self, folder: str, ema: dict[str, Tensor]) -> None:
        """Takes up what `save` wrote, and the gathered EMA.

        At another world size: what `reshard.to_universal` made of it, into a `universal` pair.
        """
        self.generator.load_checkpoint(folder, tag="generator")
        self.critic.load_checkpoint(folder, tag="critic")
        self.ema.load(ema)

    def _judge(self, x_BCTHW: Tensor, y_B: Tensor, draw: Draw) -> Tensor:
        logit_B: Tensor = self.critic.module(augment.apply(x_BCTHW, draw), y_B)
        return logit_B.float()

    def _input(self, z_BD: Tensor) -> Tensor:
        return z_BD.to(self.device, self.dtype)

    def _schedule(self, progress: float) -> None:
        optim = self.config.optim
        for engine, adam in ((self.generator, optim.generator), (self.critic, optim.critic)):
            for group in engine.optimizer.param_groups:
                group["lr"] = losses.cosine(progress, adam.lr, adam.lr * optim.lr_decay)

    def _engine(self, module: nn.Module, adam: AdamConfig, stage: int) -> Any:
        train = self.config.train
        optimizer = torch.optim.Adam(
            module.parameters(), lr=adam.lr, betas=(adam.beta1, adam.beta2)
        )
        # DeepSpeed's buckets default to 5e8 elements each, allocated at once; it wants them even.
        bucket = (parameter_count(module) // 1024 + 1) * 1024
        settings = {
            "train_micro_batch_size_per_gpu": self.share,
            "gradient_accumulation_steps": 1,
            # Left out, DeepSpeed clips at 1.
            "gradient_clipping": self.config.optim.clip_norm,
            "bf16": {"enabled": train.precision == "bf16"},
            "zero_optimization": {
                "stage": stage,
                "reduce_bucket_size": bucket,
                "allgather_bucket_size": bucket,
                "stage3_prefetch_bucket_size": bucket,
            },
            # Our optimizer is PyTorch's own Adam; parity with it is tested at every stage.
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
            "checkpoint": {"load_universal": self.universal},
            "steps_per_print": 1 << 62,
        }
        engine, *_ = deepspeed.initialize(
            model=module, optimizer=optimizer, config=settings, dist_init_required=False
        )
        return engine


@contextmanager
def _frozen(module: nn.Module) -> Iterator[None]:
    module.requires_grad_(False)
    try:
        yield
    finally:
        module.requires_grad_(True)
