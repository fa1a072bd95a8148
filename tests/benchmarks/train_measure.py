"""What tests.benchmarks.train measures in processes of their own, one for each rank.

python -m tests.benchmarks.train_measure cpu TURNS OUT.json
python -m tests.benchmarks.train_measure bytes 0 OUT.json      # each rank of a group
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed

from raygen.config import Config
from raygen.draws import Draws
from tests.benchmarks.engine import CLASSES, TURN, contestants, join


def main() -> None:
    torch.set_num_threads(1)
    what, turns, out = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
    figures = cpu(turns) if what == "cpu" else sharded()
    if os.environ.get("RANK", "0") == "0":
        out.write_text(json.dumps(figures))
    distributed.barrier()
    distributed.destroy_process_group()


def cpu(turns: int) -> dict[str, float]:
    """Median CPU milliseconds of a step of each contestant, turn by turn."""
    join()
    steps = contestants(Config.load("tiny", {"train.batch_size": 8}))
    spent: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(turns + 1):
        for name, step in steps.items():
            began = time.process_time()
            for n in range(turn * TURN, (turn + 1) * TURN):
                step(n)
            if turn:
                spent[name].append((time.process_time() - began) / TURN * 1000)
    return {name: statistics.median(each) for name, each in spent.items()}


def sharded() -> dict[int, dict[str, float]]:
    """Stage to the share of all parameters, and of all optimizer state, that this rank holds."""
    from raygen import ranks
    from raygen.engine import Pair

    ranks.join(torch.device("cpu"))
    shares = {}
    for stage in range(4):
        config = Config.load("tiny", {"train.zero_stage": stage, "train.critic_stage": stage})
        size, rank = distributed.get_world_size(), distributed.get_rank()
        pair = Pair(config, CLASSES, device=torch.device("cpu"), world_size=size)
        data, share = config.data, config.train.batch_size // size
        rows = slice(rank * share, (rank + 1) * share)
        x = torch.zeros(share, 3, data.frames, data.height, data.width)
        y = torch.zeros(share, dtype=torch.long)
        pair.step([(x, y)], Draws.at(config, 0, rows), step=0, progress=0.0)
        parameters = list(pair.generator.module.parameters())
        held = [getattr(p, "ds_tensor", p) for p in parameters]
        whole = sum(getattr(p, "ds_numel", p.numel()) for p in parameters)
        # Adam keeps two numbers a parameter, and counters that nobody shards.
        state = pair.generator._engine.optimizer
        inner = getattr(state, "optimizer", state).state.values()
        moments = sum(t.numel() for s in inner for t in s.values() if _is_moment(t))
        shares[stage] = {
            "param": sum(t.numel() for t in held) / whole,
            "optimizer": moments / (2 * whole),
        }
    return shares


def _is_moment(value: Any) -> bool:
    return isinstance(value, Tensor) and value.numel() > 1


if __name__ == "__main__":
    main()
