"""What DeepSpeed costs a step: the pair at each ZeRO stage beside the plain PyTorch loop.

    python -m tests.benchmarks.engine --presets tiny small --json PATH

One rank, on the GPU where there is one, fp32 (and bf16 on a GPU). The contestants take turns of a
few steps each, in one process; the figure is the median time of a step. On one rank there is
nothing to shard: this is the price of sharding, not its profit.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from raygen.config import Config
from tests.plain_pair import PlainPair

CUDA = torch.cuda.is_available()
if not CUDA:
    os.environ["DS_ACCELERATOR"] = "cpu"

CLASSES = 4
TURN = 4  # steps: the lazy penalty falls on one of them
console = Console()
Step = Callable[[int], object]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--presets", nargs="+", default=["tiny"])
    parser.add_argument("--turns", type=int, default=8, help="of each contestant (8)")
    parser.add_argument("--json", type=Path, help="where the figures go, as one flat object")
    arguments = parser.parse_args()
    join()
    figures: dict[str, float] = {}
    for preset in arguments.presets:
        milliseconds = measure(contestants(preset), arguments.turns)
        table = Table(preset, "ms a step", "of plain")
        for name, value in milliseconds.items():
            precision = name.split()[-1]
            ratio = value / milliseconds[f"plain {precision}"]
            table.add_row(name, f"{value:.1f}", f"{ratio:.2f}")
            key = f"{preset}_{name}".replace(" ", "_").replace("-", "")
            figures |= {f"{key}_ms": value, f"{key}_over_plain": ratio}
        console.print(table)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


def join() -> None:
    """A process group of one."""
    import deepspeed

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    rank = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    os.environ.update(rank, MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    deepspeed.init_distributed("nccl" if CUDA else "gloo")


def contestants(preset: str) -> dict[str, Step]:
    """Name to the function that takes step n of it."""
    from raygen.engine import Pair

    device = torch.device("cuda" if CUDA else "cpu")
    made: dict[str, Step] = {}
    for precision in ("fp32", "bf16") if CUDA else ("fp32",):
        for stage in ("plain", 0, 1, 2, 3):
            overrides = {"train.precision": precision, "train.zero_stage": stage}
            if stage == "plain":
                del overrides["train.zero_stage"]
            config = Config.load(preset, overrides)
            data, count = config.data, config.train.batch_size
            x = torch.rand(count, 3, data.frames, data.size, data.size, device=device) * 2 - 1
            y = torch.randint(CLASSES, (count,), device=device)
            pair: PlainPair | Pair
            if stage == "plain":
                pair = PlainPair(config, CLASSES, device)
            else:
                pair = Pair(config, CLASSES, device=device, world_size=1)

            name = "plain" if stage == "plain" else f"ZeRO-{stage}"
            made[f"{name} {precision}"] = stepper(pair, x, y)
    return made


def stepper(pair: Any, x: Tensor, y: Tensor) -> Step:
    from raygen.engine import Draws

    train = pair.config.train

    def step(n: int) -> None:
        draws = Draws.at(pair.config, n, slice(0, train.batch_size))
        # The plain loop in bf16 is what its user writes: autocast.
        cast = isinstance(pair, PlainPair) and train.precision == "bf16"
        with torch.autocast(x.device.type, torch.bfloat16, enabled=cast):
            pair.step(x, y, draws, step=n, progress=0.5)

    return step


def measure(steps: dict[str, Step], turns: int) -> dict[str, float]:
    """Median milliseconds of a step of each, the first turn left out."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(turns + 1):
        for name, step in steps.items():
            synchronize()
            began = time.perf_counter()
            for n in range(turn * TURN, (turn + 1) * TURN):
                step(n)
            synchronize()
            if turn:
                seconds[name].append((time.perf_counter() - began) / TURN)
    return {name: statistics.median(each) * 1000 for name, each in seconds.items()}


def synchronize() -> None:
    if CUDA:
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
