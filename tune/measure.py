"""Thirty steps of one worker on noise, before any dollar goes into a trial: pace, memory, latency.

It runs the engines that train, on the resources that a worker gets, in a process of its own; clips
and storage have no part in it, so a real step is never faster.
"""

from __future__ import annotations

import os
import resource
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import ray
import torch

from raygen.config import Config
from raygen.cost.prices import price
from raygen.errors import Interrupted
from tune.space import Constraints

LOOK_EVERY_S = 0.5
STEPS = 30
CLASSES = 4
DRAWN = 8  # clips, after one to warm up
_GB = 1e9


@dataclass(frozen=True)
class Profile:
    """Seconds until the engines stood, and of a step; peak memory, GB; seconds to draw one clip.

    Memory is the GPU's where the worker has one, the process's own otherwise.
    """

    start_s: float
    step_s: float
    memory_gb: float
    clip_s: float

    def violation(self, constraints: Constraints, config: Config) -> str | None:
        """Which constraint a trial of this profile does not keep, in words."""
        found = (
            ("memory_gb", self.memory_gb, constraints.memory_gb),
            ("latency_ms", self.clip_s * 1e3, constraints.latency_ms),
            ("dollars_per_clip", clip_dollars(config, self.clip_s), constraints.dollars_per_clip),
        )
        for name, value, most in found:
            if most is not None and value > most:
                return f"constraints.{name}: {value:.3g} measured, more than {most:g}"
        return None


def measure(config: Config, stop: Callable[[], str] = str) -> Profile:
    """The profile of one worker of `config`, as a Ray task with what a worker reserves.

    Raises Interrupted once `stop` gives a reason to.
    """
    train = config.train
    # A process of its own: what it ever took is what `resource` tells, and engines stay loaded.
    task = ray.remote(
        num_cpus=train.cpus_per_worker, num_gpus=train.gpus_per_worker, max_calls=1, max_retries=2
    )(_measure)
    measured = task.remote(config.dump())
    while not ray.wait([measured], timeout=LOOK_EVERY_S)[0]:
        if reason := stop():
            ray.cancel(measured, force=True)
            raise Interrupted(reason)
    profile: Profile = ray.get(measured)
    return profile


def clip_dollars(config: Config, clip_s: float) -> float:
    """What drawing a clip costs on a worker's share of its node, on demand."""
    node, train = price(config.train.node), config.train
    # A GPU is taken to be all that its node is rented for.
    share = 1.0 if train.gpus_per_worker else min(1.0, train.cpus_per_worker / node.cpus)
    return node.dollars(clip_s) * share


def _measure(dumped: Mapping[str, Any]) -> Profile:
    began = time.perf_counter()
    if not torch.cuda.is_available():
        os.environ["DS_ACCELERATOR"] = "cpu"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    os.environ.update(alone, MASTER_PORT=port)
    import deepspeed

    from raygen.draws import Draws
    from raygen.engine import Pair

    config = Config.parse(dumped)
    batch = config.train.batch_size // config.train.world_sizes[-1]
    config = Config.parse(dumped, {"train.workers": 1, "train.batch_size": batch})
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    deepspeed.init_distributed("nccl" if device.type == "cuda" else "gloo")
    pair = Pair(config, CLASSES, device=device, world_size=1)
    start_s = time.perf_counter() - began
    data = config.data
    x_BCTHW = torch.rand(batch, 3, data.frames, data.height, data.width, device=device) * 2 - 1
    y_B = torch.arange(batch, device=device) % CLASSES
    seconds = []
    for step in range(STEPS):
        began = time.perf_counter()
        draws = Draws.at(config, step, slice(0, batch))
        pair.step(
            [(x_BCTHW, y_B)] * config.loss.critic_steps,
            draws,
            step=step,
            progress=step / config.train.steps,
        )
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    # The lazy penalty makes every few steps dearer: a mean, without the first ones that warm up.
    steady = seconds[STEPS // 3 :]
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if device.type == "cuda":
        memory = torch.cuda.max_memory_allocated()
    return Profile(start_s, sum(steady) / len(steady), memory / _GB, _clip_s(config, device))


@torch.inference_mode()
def _clip_s(config: Config, device: torch.device) -> float:
    from raygen.models import build_generator

    shape = (config.model, config.data, CLASSES, config.conditions)
    generator = build_generator(*shape).to(device).eval()
    z_1D = torch.randn(1, config.model.latent_dim, device=device)
    y_1 = torch.zeros(1, dtype=torch.int64, device=device)
    generator(z_1D, y_1).cpu()
    began = time.perf_counter()
    for _ in range(DRAWN):
        generator(z_1D, y_1).cpu()
    return (time.perf_counter() - began) / DRAWN
