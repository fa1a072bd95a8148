"""What training under ZeRO costs, and what a lost node costs: `python -m tests.benchmarks.train`.

    CPU time of a step         at each ZeRO stage on one rank, over the plain PyTorch loop's
    bytes held by a rank       of parameters and of optimizer state, over all of it, on two ranks
    from a killed node         to the next step of those that are left
    from a spot notice         to a checkpoint on storage
    saving                     as a share of the training thread's time, at the interval chosen

The last three on a Ray cluster of raylets on this machine, `tiny`'s networks on rendered clips.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

os.environ["RAY_AUTH_MODE"] = "disabled"
os.environ["DS_ACCELERATOR"] = "cpu"

from raygen.config import Config
from raygen.data import synthetic
from raygen.errors import Interrupted

console = Console()
STAGES = range(4)
NOTICE_S = 40.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=6, help="of each stage (6)")
    parser.add_argument("--json", type=Path, help="where the figures go, as one flat object")
    arguments = parser.parse_args()
    figures = cpu(arguments.turns) | sharding() | elastic()
    table = Table("figure", "value")
    for name, value in figures.items():
        table.add_row(name, f"{value:.4g}")
    console.print(table)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


def cpu(turns: int) -> dict[str, float]:
    """cpu_over_plain_z0 to _z3, in a process of its own: DeepSpeed stays out of this one."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "cpu.json"
        command = [*_MEASURE, "cpu", str(turns), str(out)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        milliseconds: dict[str, float] = json.loads(out.read_text())
    plain = milliseconds["plain fp32"]
    console.print(f"a step of the plain loop: {plain:.0f} ms of CPU")
    return {f"cpu_over_plain_z{s}": milliseconds[f"ZeRO-{s} fp32"] / plain for s in STAGES}


def sharding() -> dict[str, float]:
    """What one of two ranks holds, over what there is of it."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "bytes.json"
        environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29617", "WORLD_SIZE": "2"}
        ranks = [
            subprocess.Popen(
                [*_MEASURE, "bytes", "0", str(out)],
                env=os.environ | environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            for rank in range(2)
        ]
        for rank in ranks:
            if rank.wait():
                raise SystemExit("a rank failed; its output is lost")
        shares: dict[str, dict[str, float]] = json.loads(out.read_text())
    table = Table("of a rank of two", *(f"ZeRO-{stage}" for stage in STAGES))
    for what in ("param", "optimizer"):
        table.add_row(what, *(f"{shares[str(stage)][what]:.2f}" for stage in STAGES))
    console.print(table)
    optimizer = {
        f"optimizer_bytes_rank_over_total_z{s}": shares[str(s)]["optimizer"] for s in (1, 2, 3)
    }
    return optimizer | {"param_bytes_rank_over_total_z3": shares["3"]["param"]}


def elastic() -> dict[str, float]:
    """kill_to_step_s, notice_to_checkpoint_s and checkpoint_stall_fraction."""
    from tests.raylets import Nodes, Training

    nodes = Nodes(3)
    try:
        with tempfile.TemporaryDirectory() as folder:
            clips = f"{folder}/clips"
            synthetic.synthesize(clips, synthetic.class_names(3), 8, seed=0)
            # One of the three stays free: the group that follows finds its room at once.
            overrides = {
                "data.uri": clips,
                "storage": folder,
                "name": "train",
                "train.workers": [1, 2],
                "train.steps": 100_000,
                "train.batch_size": 8,
            }
            training = Training(Config.load("tiny", overrides))
            first = training.wait_for(lambda s: s.step >= 60, 300)
            shares = [s.losses["save/share"] for _, s in training.seen if "save/share" in s.losses]

            killed = time.monotonic()
            step = training.newest.step
            nodes.kill(nodes.alive[first.nodes[0]])
            again = training.wait_for(
                lambda s: s.nodes not in ((), first.nodes) and s.step > s.started_at
            )
            kill_s = time.monotonic() - killed
            console.print(
                f"killed after step {step} with {first.workers} workers: next step after "
                f"{kill_s:.1f} s, from step {again.started_at}, with {again.workers}"
            )

            training.wait_for(lambda s: s.step > again.started_at + 20)
            noticed, before = time.monotonic(), training.newest.saved_at
            nodes.drain(nodes.alive[again.nodes[0]], NOTICE_S)
            training.wait_for(lambda s: s.saved_at > before)
            notice_s = time.monotonic() - noticed
            training.stop()
            with contextlib.suppress(Interrupted):
                training.finish()
            return {
                "kill_to_step_s": kill_s,
                "steps_repeated_after_kill": float(max(0, step - again.started_at)),
                "notice_to_checkpoint_s": notice_s,
                "checkpoint_stall_fraction": sum(shares) / len(shares),
            }
    finally:
        nodes.close()


_MEASURE = (sys.executable, "-m", "tests.benchmarks.train_measure")

if __name__ == "__main__":
    main()
