"""The adversarial step as anyone would write it in PyTorch: what the engines are compared with."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from raygen import augment
from raygen.config import Config
from raygen.models import build_critic, build_generator

if TYPE_CHECKING:
    from raygen.engine import Draws  # loads DeepSpeed


class PlainPair:
    """Adam, autograd, one process, one device; `step` takes the whole global batch."""

    def __init__(self, config: Config, classes: int, device: torch.device) -> None:
        self.config, self.device = config, device
        torch.manual_seed(config.seed)
        self.generator = build_generator(config.model, config.data, classes).to(device)
        self.critic = build_critic(config.model, config.data, classes).to(device)
        self.optim_g, self.optim_d = (
            torch.optim.Adam(net.parameters(), lr=adam.lr, betas=(adam.beta1, adam.beta2))
            for net, adam in (
                (self.generator, config.optim.generator),
                (self.critic, config.optim.critic),
            )
        )
        self.average = {k: v.clone() for k, v in self.generator.state_dict().items()}

    def step(self, x: Tensor, y: Tensor, draws: Draws, *, step: int, progress: float) -> None:
        """One step of the critic, one of the generator, one of the average."""
        config, critic, generator = self.config, self.critic, self.generator
        optim = config.optim
        decay = 0.5 * (1 + math.cos(math.pi * progress))
        for optimizer, adam in ((self.optim_g, optim.generator), (self.optim_d, optim.critic)):
            optimizer.param_groups[0]["lr"] = adam.lr * (
                optim.lr_decay + (1 - optim.lr_decay) * decay
            )

        with torch.no_grad():
            fake = augment.apply(generator(draws.critic_z_BD.to(self.device), y), draws.fake)
        shown = augment.apply(x, draws.real)
        # In one pass, as the engine does it: Adam without momentum makes a full step of rounding.
        if config.model.kind == "conv3d":
            shown_logit, fake_logit = critic(shown, y), critic(fake, y)
        else:
            shown_logit, fake_logit = critic(torch.cat([shown, fake]), torch.cat([y, y])).chunk(2)
        loss = F.softplus(fake_logit - shown_logit).mean()
        if config.loss.kind == "bce":
            loss = (F.softplus(-shown_logit) + F.softplus(fake_logit)).mean()
        if config.loss.gamma and step % config.loss.penalty_every == 0:
            low = config.loss.gamma_decay
            gamma = config.loss.gamma * (low + (1 - low) * decay)
            for clips in (shown, fake):
                leaf = clips.detach().requires_grad_(True)
                (gradient,) = torch.autograd.grad(critic(leaf, y).sum(), leaf, create_graph=True)
                square = gradient.flatten(1).norm(dim=1).square().mean()
                loss = loss + gamma / 2 * config.loss.penalty_every * square
        self.optim_d.zero_grad()
        loss.backward()
        self.optim_d.step()

        z = draws.generator_z_BD.to(self.device)
        play = critic(augment.apply(generator(z, y), draws.play), y)
        rival = critic(augment.apply(x, draws.play), y)
        loss = F.softplus(rival - play).mean()
        if config.loss.kind == "bce":
            loss = F.softplus(-play).mean()
        self.optim_g.zero_grad()
        loss.backward()
        self.optim_g.step()

        batch = config.train.batch_size
        halflife = min(optim.ema_halflife, 0.05 * (step + 1) * batch)
        for name, tensor in generator.state_dict().items():
            if tensor.is_floating_point():
                self.average[name] += (1 - 0.5 ** (batch / halflife)) * (
                    tensor - self.average[name]
                )
