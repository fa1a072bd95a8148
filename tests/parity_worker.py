"""One rank of the parity test: trains the DeepSpeed pair and saves what it ends with.

    RANK=0 WORLD_SIZE=2 MASTER_ADDR=127.0.0.1 MASTER_PORT=29511 \
        python -m tests.parity_worker STAGE OUT.pt [key=value ...]

`plain` trains the same in a plain PyTorch loop, over the whole global batch in one process;
RESUME_AT=3 saves the engines before that step and goes on with new ones that load them.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed
from torch.nn import functional as F

from raygen import augment
from raygen.config import Config
from raygen.models import build_critic, build_generator

STEPS = 5
CLASSES = 3
BASE = {
    "data.frames": 4,
    "data.size": 16,
    "model.latent_dim": 8,
    "model.class_dim": 8,
    # Wider than its eight groups: a bias before a group of one channel has no gradient but
    # rounding, and Adam without momentum makes full steps of that.
    "model.generator_width": 16,
    "model.critic_width": 8,
    "train.batch_size": 8,
    "loss.penalty_every": 2,
    # Adam turns a gradient's relative error into a share of the learning rate, and where terms
    # cancel that error is large: the order in which ranks add up must stay below the tolerance.
    "optim.generator.lr": 5e-5,
    "optim.critic.lr": 5e-5,
    "optim.ema_halflife": 20,
}


def real(config: Config, step: int) -> tuple[Tensor, Tensor]:
    """A global batch of noise clips, the same in every process."""
    rng = torch.Generator().manual_seed(100 + step)
    data, count = config.data, config.train.batch_size
    shape = (count, 3, data.frames, data.size, data.size)
    return torch.rand(shape, generator=rng) * 2 - 1, torch.randint(CLASSES, (count,), generator=rng)


def train_pair(config: Config, resume_at: int | None) -> dict[str, Any]:
    """The engines under test; the state of both networks after STEPS steps.

    At step `resume_at` they are saved, thrown away, and loaded into new ones.
    """
    import deepspeed

    from raygen.engine import Draws, Pair

    deepspeed.init_distributed("gloo")
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    pair = Pair(config, CLASSES, device=torch.device("cpu"), world_size=world_size)
    share = config.train.batch_size // world_size
    rows = slice(rank * share, (rank + 1) * share)
    for step in range(STEPS):
        if step == resume_at:
            pair = restarted(pair, config, world_size)
        x_BCTHW, y_B = real(config, step)
        draws = Draws.at(config, step, rows)
        pair.step(x_BCTHW[rows], y_B[rows], draws, step=step, progress=step / STEPS)
    ema = pair.ema.gather()
    with deepspeed.zero.GatheredParameters(list(pair.generator.module.parameters())):
        generator = {k: v.clone() for k, v in pair.generator.module.state_dict().items()}
    return {"generator": generator, "critic": pair.critic.module.state_dict(), "ema": ema}


def restarted(pair: Any, config: Config, world_size: int) -> Any:
    """A new pair, of other initial weights, that takes up a checkpoint of this one."""
    from raygen.engine import Pair

    average = pair.ema.gather()
    folder = [tempfile.mkdtemp()]
    distributed.broadcast_object_list(folder)
    pair.save(folder[0])
    distributed.barrier()
    other = Config.parse(config.dump(), {"seed": config.seed + 1})
    new = Pair(other, CLASSES, device=torch.device("cpu"), world_size=world_size)
    new.load(folder[0], average)
    distributed.barrier()
    shutil.rmtree(folder[0], ignore_errors=True)
    return new


def train_plain(config: Config) -> dict[str, Any]:
    """The same training as anyone would write it: Adam, autograd, one process."""
    from raygen.engine import Draws

    torch.manual_seed(config.seed)
    generator = build_generator(config.model, config.data, CLASSES)
    critic = build_critic(config.model, config.data, CLASSES)
    optim_g, optim_d = (
        torch.optim.Adam(net.parameters(), lr=adam.lr, betas=(adam.beta1, adam.beta2))
        for net, adam in ((generator, config.optim.generator), (critic, config.optim.critic))
    )
    average = {k: v.clone() for k, v in generator.state_dict().items()}
    batch = config.train.batch_size
    for step in range(STEPS):
        decay = 0.5 * (1 + torch.cos(torch.tensor(step / STEPS * torch.pi, dtype=torch.float64)))
        floor = config.optim.lr_decay
        for optimizer, adam in ((optim_g, config.optim.generator), (optim_d, config.optim.critic)):
            optimizer.param_groups[0]["lr"] = adam.lr * (floor + (1 - floor) * float(decay))
        x, y = real(config, step)
        draws = Draws.at(config, step, slice(0, batch))

        with torch.no_grad():
            fake = augment.apply(generator(draws.critic_z_BD, y), draws.fake)
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
            gamma = config.loss.gamma * (low + (1 - low) * float(decay))
            for clips in (shown, fake):
                leaf = clips.detach().requires_grad_(True)
                (gradient,) = torch.autograd.grad(critic(leaf, y).sum(), leaf, create_graph=True)
                square = gradient.flatten(1).norm(dim=1).square().mean()
                loss = loss + gamma / 2 * config.loss.penalty_every * square
        optim_d.zero_grad()
        loss.backward()
        optim_d.step()

        play = critic(augment.apply(generator(draws.generator_z_BD, y), draws.play), y)
        rival = critic(augment.apply(x, draws.play), y)
        loss = F.softplus(rival - play).mean()
        if config.loss.kind == "bce":
            loss = F.softplus(-play).mean()
        optim_g.zero_grad()
        loss.backward()
        optim_g.step()

        halflife = min(config.optim.ema_halflife, 0.05 * (step + 1) * batch)
        for name, tensor in generator.state_dict().items():
            if not tensor.is_floating_point():
                continue
            average[name] += (1 - 0.5 ** (batch / halflife)) * (tensor - average[name])
    return {"generator": generator.state_dict(), "critic": critic.state_dict(), "ema": average}


def main() -> None:
    torch.set_num_threads(1)
    stage, out, *overrides = sys.argv[1:]
    tree = {**BASE, "train.zero_stage": 0 if stage == "plain" else int(stage)}
    config = Config.load("tiny", [*(f"{k}={v}" for k, v in tree.items()), *overrides])
    resume_at = int(os.environ["RESUME_AT"]) if "RESUME_AT" in os.environ else None
    result = train_plain(config) if stage == "plain" else train_pair(config, resume_at)
    if os.environ.get("RANK", "0") == "0":
        torch.save(result, Path(out))
    if distributed.is_initialized():
        # Left to the interpreter's exit, gloo's threads now and then abort it.
        distributed.barrier()
        distributed.destroy_process_group()


if __name__ == "__main__":
    main()
