"""One rank of the parity test: trains the DeepSpeed pair and saves what it ends with.

    RANK=0 WORLD_SIZE=2 MASTER_ADDR=127.0.0.1 MASTER_PORT=29511 \
        python -m tests.parity_worker STAGE OUT.pt [key=value ...]

`plain` trains the same in a plain PyTorch loop, over the whole global batch in one process;
DEVICE=cuda does either on a GPU, without TF32;
RESUME_AT=3 saves the engines before that step and goes on with new ones that load them; with
HANDOVER=FOLDER they are left there, for another number of ranks to go on from with FROM=FOLDER.
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

from raygen.config import Config
from tests.plain_pair import PlainPair

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


DEVICE = torch.device(os.environ.get("DEVICE", "cpu"))


def real(config: Config, step: int) -> tuple[Tensor, Tensor]:
    """A global batch of noise clips, the same in every process."""
    rng = torch.Generator().manual_seed(100 + step)
    data, count = config.data, config.train.batch_size
    shape = (count, 3, data.frames, data.size, data.size)
    x_BCTHW = torch.rand(shape, generator=rng) * 2 - 1
    y_B = torch.randint(CLASSES, (count,), generator=rng)
    return x_BCTHW.to(DEVICE), y_B.to(DEVICE)


def train_pair(config: Config) -> dict[str, Any]:
    """The engines under test; the state of both networks after STEPS steps."""
    import deepspeed

    from raygen.engine import Draws, Pair

    resume_at = int(os.environ.get("RESUME_AT", -1))
    handover, source = os.environ.get("HANDOVER"), os.environ.get("FROM")

    deepspeed.init_distributed("nccl" if DEVICE.type == "cuda" else "gloo")
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    pair = Pair(config, CLASSES, device=DEVICE, world_size=world_size)
    if source:
        pair = taken_over(source, config, world_size)
    share = config.train.batch_size // world_size
    rows = slice(rank * share, (rank + 1) * share)
    for step in range(resume_at if source else 0, STEPS):
        if step == resume_at and handover:
            average = pair.ema.gather()
            pair.save(handover)
            if rank == 0:
                torch.save(average, Path(handover) / "ema.pt")
            return {}
        if step == resume_at and not source:
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
    new = Pair(other, CLASSES, device=DEVICE, world_size=world_size)
    new.load(folder[0], average)
    distributed.barrier()
    shutil.rmtree(folder[0], ignore_errors=True)
    return new


def taken_over(folder: str, config: Config, world_size: int) -> Any:
    """A new pair that goes on from what another number of ranks left in `folder`."""
    from raygen import reshard
    from raygen.engine import Pair

    universal = config.train.zero_stage > 0
    if universal and int(os.environ["RANK"]) == 0:
        reshard.to_universal(folder, folder + "/universal")
    distributed.barrier()
    other = Config.parse(config.dump(), {"seed": config.seed + 1})
    new = Pair(other, CLASSES, device=DEVICE, world_size=world_size, universal=universal)
    new.load(folder + "/universal" if universal else folder, torch.load(folder + "/ema.pt"))
    return new


def train_plain(config: Config) -> dict[str, Any]:
    """The same training in a plain loop."""
    from raygen.engine import Draws

    plain = PlainPair(config, CLASSES, DEVICE)
    for step in range(STEPS):
        draws = Draws.at(config, step, slice(0, config.train.batch_size))
        plain.step(*real(config, step), draws, step=step, progress=step / STEPS)
    generator, critic = plain.generator.state_dict(), plain.critic.state_dict()
    return {"generator": generator, "critic": critic, "ema": plain.average}


def main() -> None:
    torch.set_num_threads(1)
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.deterministic = True
    stage, out, *overrides = sys.argv[1:]
    tree = {**BASE, "train.zero_stage": 0 if stage == "plain" else int(stage)}
    config = Config.load("tiny", [*(f"{k}={v}" for k, v in tree.items()), *overrides])
    result = train_plain(config) if stage == "plain" else train_pair(config)
    if os.environ.get("RANK", "0") == "0":
        cpu = {
            network: {name: tensor.cpu() for name, tensor in tensors.items()}
            for network, tensors in result.items()
        }
        torch.save(cpu, Path(out))
    if distributed.is_initialized():
        # Left to the interpreter's exit, gloo's threads now and then abort it.
        distributed.barrier()
        distributed.destroy_process_group()


if __name__ == "__main__":
    main()
