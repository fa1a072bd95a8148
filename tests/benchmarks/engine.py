"""What DeepSpeed costs a step: the pair at each ZeRO stage beside the plain PyTorch loop.

    python -m tests.benchmarks.engine --presets tiny small --json PATH
    python -m tests.benchmarks.engine --presets small data.size=128 train.batch_size=16

One rank, on the GPU where there is one, fp32. The contestants take turns of a few steps each, in
one process; the figure is the median time of a step. On one rank there is nothing to shard: this
is the price of sharding, not its profit.

On a GPU also bf16, channels_last and compile (at ZeRO-1), each one's peak memory, and the
floating-point operations a second of the convolutions and matrix products that a step consists of,
beside what this card reaches in large matrix products of that precision.
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
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from raygen.config import Config
from raygen.draws import Draws
from raygen.sides import in_full
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
    parser.add_argument("overrides", nargs="*", help="key=value, for every preset")
    arguments = parser.parse_intermixed_args()
    join()
    figures: dict[str, float] = {}
    for preset in arguments.presets:
        config = Config.load(preset, arguments.overrides)
        steps = contestants(config)
        milliseconds = measure(steps, arguments.turns)
        gpu = on_gpu(config, steps, milliseconds) if CUDA else {}
        shape = f"{config.data.frames}x{in_full(config.data.size)}"
        columns = ["GiB", "TFLOP/s", "of ceiling"] if CUDA else []
        table = Table(f"{preset} {shape}", "ms a step", "clips/s", "of plain", *columns)
        for name, value in milliseconds.items():
            ratio = value / milliseconds[f"plain {precision_of(name)}"]
            row = {
                "ms": value,
                "clips_s": config.train.batch_size / value * 1000,
                "over_plain": ratio,
                **gpu.get(name, {}),
            }
            table.add_row(name, *(f"{figure:.2f}" for figure in row.values()))
            label = f"{preset}_{shape}" if arguments.overrides else preset
            key = f"{label}_{name}".replace(" ", "_").replace("-", "")
            figures |= {f"{key}_{column}": figure for column, figure in row.items()}
        console.print(table)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


def join() -> None:
    """A process group of one."""
    from raygen import ranks

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    rank = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    os.environ.update(rank, MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    ranks.join(torch.device("cuda" if CUDA else "cpu"))


def contestants(config: Config) -> dict[str, Step]:
    """Name to the function that takes step n of it; the name ends in the precision."""
    from raygen.engine import Pair

    device = torch.device("cuda" if CUDA else "cpu")
    data = config.data
    shape = (config.train.batch_size, 3, data.frames, data.height, data.width)
    x = torch.rand(shape, device=device) * 2 - 1
    y = torch.randint(CLASSES, shape[:1], device=device)
    overrides: dict[str, dict[str, Any]] = {}
    for precision in ("fp32", "bf16") if CUDA else ("fp32",):
        of = {"train.precision": precision}
        overrides[f"plain {precision}"] = of
        for stage in range(4):
            overrides[f"ZeRO-{stage} {precision}"] = of | {"train.zero_stage": stage}
        if CUDA:
            one = of | {"train.zero_stage": 1}
            last = {"train.channels_last": True}
            overrides[f"ZeRO-1 channels_last {precision}"] = one | last
            overrides[f"ZeRO-1 compile {precision}"] = one | {"train.compile": True}
            overrides[f"ZeRO-1 both {precision}"] = one | last | {"train.compile": True}
    made: dict[str, Step] = {}
    for name, changes in overrides.items():
        changed = Config.parse(config.dump(), changes)
        pair: PlainPair | Pair
        if name.startswith("plain"):
            pair = PlainPair(changed, CLASSES, device)
        else:
            pair = Pair(changed, CLASSES, device=device, world_size=1)
        made[name] = stepper(pair, x, y)
    return made


def stepper(pair: Any, x: Tensor, y: Tensor) -> Step:
    config = pair.config
    # The plain loop in bf16 is what its user writes: autocast.
    cast = isinstance(pair, PlainPair) and config.train.precision == "bf16"
    batches = [(x, y)] * config.loss.critic_steps

    def step(n: int) -> None:
        draws = Draws.at(config, n, slice(0, config.train.batch_size))
        with torch.autocast(x.device.type, torch.bfloat16, enabled=cast):
            pair.step(batches, draws, step=n, progress=0.5)

    return step


def precision_of(name: str) -> str:
    return name.split()[-1]


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


def on_gpu(
    config: Config, steps: dict[str, Step], milliseconds: dict[str, float]
) -> dict[str, dict[str, float]]:
    """By contestant: GiB that a step takes beyond what all hold, TFLOP/s, share of the ceiling."""
    # Counted over a turn of the plain loop: the others do the same sums, or save some.
    with Operations() as counter:
        for n in range(TURN):
            steps["plain fp32"](n)
    teraflops = counter.total / TURN / 1e12
    reached = {precision: ceiling(precision) for precision in ("fp32", "bf16")}
    console.print(
        f"{teraflops:.3f} TFLOP a step; matrix products reach "
        + ", ".join(f"{value:.0f} TFLOP/s in {name}" for name, value in reached.items())
    )
    made = {}
    for name, step in steps.items():
        synchronize()
        held = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        for n in range(TURN):
            step(n)
        synchronize()
        rate = teraflops / milliseconds[name] * 1000
        made[name] = {
            "peak_gib": (torch.cuda.max_memory_allocated() - held) / 2**30,
            "tflops": rate,
            "of_ceiling": rate / reached[precision_of(name)],
        }
    return made


class Operations(TorchDispatchMode):
    """Counts those of convolutions and matrix products, as PyTorch's FlopCounterMode does.

    That one follows modules as well, which fails under a double backward.
    """

    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if count := flop_registry.get(func._overloadpacket):
            self.total += count(*args, **kwargs, out_val=result)
        return result


def ceiling(precision: str, size: int = 8192) -> float:
    """TFLOP/s of a product of two square matrices."""
    # As PyTorch's convolutions do by default.
    torch.backends.cuda.matmul.allow_tf32 = True
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = (torch.randn(size, size, device="cuda", dtype=dtype) for _ in range(2))
    seconds = []
    for _ in range(10):
        synchronize()
        began = time.perf_counter()
        a @ b
        synchronize()
        seconds.append(time.perf_counter() - began)
    return 2 * size**3 / statistics.median(seconds) / 1e12


def synchronize() -> None:
    if CUDA:
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
