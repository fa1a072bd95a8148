"""The adversarial step as anyone would write it in PyTorch: what the engines are compared with."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from raygen import augment
from raygen.config import Config
from raygen.draws import CriticDraws, Draws, noise_like
from raygen.models import build_critic, build_generator


class PlainPair:
    """Adam, autograd, one process, one device; `step` takes whole global batches."""

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

    def step(
        self, batches: Sequence[tuple[Tensor, Tensor]], draws: Draws, *, step: int, progress: float
    ) -> None:
        """Steps of the critic, one of the generator, one of the average."""
        config, critic, generator = self.config, self.critic, self.generator
        optim = config.optim
        decay = 0.5 * (1 + math.cos(math.pi * progress))
        for optimizer, adam in ((self.optim_g, optim.generator), (self.optim_d, optim.critic)):
            optimizer.param_groups[0]["lr"] = adam.lr * (
                optim.lr_decay + (1 - optim.lr_decay) * decay
            )

        low = config.loss.gamma_decay
        gamma = config.loss.gamma * (low + (1 - low) * decay)
        for number, ((x, y), drawn) in enumerate(zip(batches, draws.critic, strict=True)):
            due = (step * config.loss.critic_steps + number) % config.loss.penalty_every == 0
            self.optim_d.zero_grad()
            self._critic_loss(x, y, drawn, gamma if due else 0).backward()  # type: ignore[no-untyped-call]
            self._clip(critic)
            self.optim_d.step()

        z = draws.generator.z_BD.to(self.device)
        play = critic(augment.apply(generator(z, y), draws.generator.play), y)
        rival = critic(augment.apply(x, draws.generator.play), y)
        loss = F.softplus(rival - play).mean()
        if config.loss.kind == "bce":
            loss = F.softplus(-play).mean()
        self.optim_g.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self._clip(generator)
        self.optim_g.step()

        batch = config.train.batch_size
        halflife = min(optim.ema_halflife, 0.05 * (step + 1) * batch)
        for name, tensor in generator.state_dict().items():
            if tensor.is_floating_point():
                self.average[name] += (1 - 0.5 ** (batch / halflife)) * (
                    tensor - self.average[name]
                )

    def _clip(self, network: torch.nn.Module) -> None:
        if self.config.optim.clip_norm:
            torch.nn.utils.clip_grad_norm_(network.parameters(), self.config.optim.clip_norm)

    def _critic_loss(self, x: Tensor, y: Tensor, drawn: CriticDraws, gamma: float) -> Tensor:
        config, critic = self.config, self.critic
        with torch.no_grad():
            fake = augment.apply(self.generator(drawn.z_BD.to(self.device), y), drawn.fake)
        shown = augment.apply(x, drawn.real)
        clips = [shown, fake]
        finite = gamma > 0 and not config.exact_penalty
        if finite:
            sigma = config.loss.penalty_sigma
            clips += [
                clip + sigma * noise_like(clip, drawn.noise_B2[:, i])
                for i, clip in enumerate((shown, fake))
            ]
        # In one pass, as the engine does it: Adam without momentum makes a full step of rounding.
        if config.model.batch_statistics:
            logits = [critic(clip, y) for clip in clips]
        else:
            logits = list(critic(torch.cat(clips), torch.cat([y] * len(clips))).chunk(len(clips)))
        loss = F.softplus(logits[1] - logits[0]).mean()
        if config.loss.kind == "bce":
            loss = (F.softplus(-logits[0]) + F.softplus(logits[1])).mean()
        weight = gamma / 2 * config.loss.penalty_every
        if finite:
            for near, far in ((logits[0], logits[2]), (logits[1], logits[3])):
                loss = loss + weight * (far - near).square().mean() / sigma**2
        elif gamma:
            for clip in (shown, fake):
                leaf = clip.detach().requires_grad_(True)
                (gradient,) = torch.autograd.grad(critic(leaf, y).sum(), leaf, create_graph=True)
                loss = loss + weight * gradient.flatten(1).norm(dim=1).square().mean()
        return loss
