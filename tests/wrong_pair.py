"""Two DeepSpeed engines driven by hand, with one of the mistakes that raygen.network rules out.

`MISTAKES` says what each is. Without any it is right, so what a mistake changes is the mistake's.
"""

from __future__ import annotations

from typing import Any

import deepspeed
import torch
from torch import Tensor

from raygen import augment, losses
from raygen.config import Config
from raygen.draws import Draws
from raygen.models import build_critic, build_generator, parameter_count
from raygen.network import settings

MISTAKES = {
    "none": "nothing wrong",
    "engine": "the critic's engine, not its module, judges in the generator's half step",
    "unfrozen": "the critic's weights take gradients in the generator's half step",
    "penalty": "the forward of R1 and R2 goes through the critic's engine",
    "clipping": "gradient_clipping left at DeepSpeed's default",
}


class WrongPair:
    """One rank, both networks at one stage, no EMA."""

    def __init__(self, config: Config, classes: int, stage: int, mistake: str) -> None:
        self.config, self.mistake = config, mistake
        torch.manual_seed(config.seed)
        self.generator, self.critic = (
            self._engine(build(config.model, config.data, classes), adam, stage)
            for build, adam in (
                (build_generator, config.optim.generator),
                (build_critic, config.optim.critic),
            )
        )

    def _engine(self, module: torch.nn.Module, adam: Any, stage: int) -> Any:
        made = settings(
            self.config,
            parameter_count(module),
            stage=stage,
            micro_batch=self.config.train.batch_size,
            batches=1,
            universal=False,
        )
        if self.mistake == "clipping":
            del made["gradient_clipping"]
        optimizer = torch.optim.Adam(
            module.parameters(), lr=adam.lr, betas=(adam.beta1, adam.beta2)
        )
        engine, *_ = deepspeed.initialize(
            model=module, optimizer=optimizer, config=made, dist_init_required=False
        )
        return engine

    def step(self, x: Tensor, y: Tensor, draws: Draws, *, step: int, progress: float) -> None:
        """A step of each, with the mistake."""
        config, critic, optim = self.config, self.critic, self.config.optim
        for engine, adam in ((self.generator, optim.generator), (critic, optim.critic)):
            for group in engine.optimizer.param_groups:
                group["lr"] = losses.cosine(progress, adam.lr, adam.lr * optim.lr_decay)
        drawn, last = draws.critic[0], draws.generator
        share = config.augment.probability

        with torch.no_grad():
            fake = augment.apply(self.generator(drawn.z_BD, y), drawn.fake, share)
        both = torch.cat([augment.apply(x, drawn.real, share), fake]), torch.cat([y, y])
        loss = losses.critic_loss(config.loss.kind, *critic(*both).chunk(2))
        gamma = losses.cosine(
            progress, config.loss.gamma, config.loss.gamma * config.loss.gamma_decay
        )
        if gamma and step % config.loss.penalty_every == 0:
            through = critic if self.mistake == "penalty" else critic.module
            loss = loss + gamma * config.loss.penalty_every * losses.gradient_penalty(
                through, *both
            )
        critic.backward(loss)
        critic.step()

        judge = critic if self.mistake == "engine" else critic.module
        critic.module.requires_grad_(self.mistake in ("engine", "unfrozen"))
        play = judge(augment.apply(self.generator(last.z_BD, y), last.play, share), y)
        with torch.no_grad():
            rival = critic.module(augment.apply(x, last.play, share), y)
        self.generator.backward(losses.generator_loss(config.loss.kind, rival, play))
        critic.module.requires_grad_(True)
        self.generator.step()
