"""What spot, and falling back from it, is worth in simulated weeks; how fast a real cluster is.

    python -m tests.benchmarks.cluster [--seeds N] [--no-measured] [--json PATH]

A job on one node that has to be done by a deadline, through weeks of prices, capacity and
interruptions that are generated (tests.benchmarks.cluster_week names the parameters), under

    raygen      cluster.market's decisions and raygen.cost's ledger, as on a cluster
    patient     the same without a deadline: on demand only after half an hour without spot
    on demand   alone
    no saving   spot, whose work is lost with the node; on demand when it must be
    hindsight   the cheapest way, by a dynamic programme that knows the week

cost_over_hindsight and cost_over_on_demand are means over weeks and deadlines of raygen's dollars
by those of the other two; goals are 1.10 and 0.4. bill_over_cap_max is what the cloud charges by
the cap, where a cap of half the money that the job needs ends it. Seconds are those of a cluster
that is brought up on this machine, as root: see tests.benchmarks.cluster_measured.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from cluster.market import Terms
from tests.benchmarks.cluster_measured import measure
from tests.benchmarks.cluster_policies import (
    RESTART,
    Job,
    Outcome,
    on_demand,
    raygen,
    without_checkpoints,
)
from tests.benchmarks.cluster_week import HOUR, MINUTE, Week, cheapest, week
from tests.cluster_bench import why_not

WORK = 48 * HOUR
TIGHTNESS = (1.25, 1.5, 2.0)  # the deadline, in times the work
PATIENT = Terms(share=1.0, patience_s=1800.0, restart_s=RESTART * MINUTE)
FIRST_SEED = 1000  # those below were used to look at weeks

console = Console()


def bound(job: Job) -> Terms:
    """The terms of a job that has a deadline."""
    return Terms(
        share=1.0,
        deadline=job.deadline * MINUTE,
        work_s=job.work * MINUTE,
        restart_s=RESTART * MINUTE,
    )


def outcomes(world: Week, job: Job) -> dict[str, Outcome]:
    """Every policy's, on one week."""
    best = cheapest(world, job.work, job.deadline, RESTART)
    return {
        "raygen": raygen(world, job, bound(job)),
        "patient": raygen(world, job, PATIENT),
        "on demand": on_demand(world, job),
        "no saving": without_checkpoints(world, job),
        "hindsight": Outcome(best, best, job.deadline),
    }


def figures(seeds: int) -> tuple[dict[str, float], Table]:
    """The flat figures, and a table of dollars by hindsight's."""
    table = Table(
        "deadline", "policy", "$", "by hindsight", "by on demand", "late", "hours", "nodes"
    )
    ratios: dict[str, list[tuple[float, float]]] = {}
    late, over = 0, []
    worlds = [week(FIRST_SEED + seed) for seed in range(seeds)]
    for tightness in TIGHTNESS:
        job = Job(WORK, int(WORK * tightness))
        found = [outcomes(world, job) for world in worlds]
        for name in found[0]:
            runs = [each[name] for each in found]
            pairs = [
                (run.dollars / each["hindsight"].dollars, run.dollars / each["on demand"].dollars)
                for run, each in zip(runs, found, strict=True)
            ]
            ratios.setdefault(name, []).extend(pairs)
            missed = sum(run.done > job.deadline for run in runs)
            late += missed if name == "raygen" else 0
            done = [run.done for run in runs if math.isfinite(run.done)]
            means = np.mean(pairs, axis=0)
            table.add_row(
                f"{tightness:g} x",
                name,
                f"{np.mean([run.dollars for run in runs]):.2f}",
                f"{means[0]:.3f}",
                f"{means[1]:.3f}",
                f"{missed}",
                "" if name == "hindsight" else f"{np.mean(done) / HOUR:.1f}",
                f"{np.mean([run.launches for run in runs]):.1f}" if runs[0].launches else "",
            )
    for world in worlds:
        cap = 0.5 * raygen(world, Job(WORK, 2 * WORK), PATIENT).dollars
        over.append(raygen(world, Job(WORK, 2 * WORK), PATIENT, cap).dollars / cap)
    mean = {name: np.mean(pairs, axis=0) for name, pairs in ratios.items()}
    flat = {
        "cost_over_hindsight": mean["raygen"][0],
        "cost_over_on_demand": mean["raygen"][1],
        "late": late / (seeds * len(TIGHTNESS)),
        "patient_cost_over_hindsight": mean["patient"][0],
        "no_saving_cost_over_hindsight": mean["no saving"][0],
        "hindsight_over_on_demand": mean["hindsight"][1],
        "bill_over_cap_min": min(over),
        "bill_over_cap_max": max(over),
    }
    return {name: float(value) for name, value in flat.items()}, table


def _measured() -> dict[str, float]:
    """Seconds of a cluster that is really brought up, where that can be."""
    obstacle = why_not()
    if obstacle:
        console.print(f"not measured: the cluster bench {obstacle}", highlight=False)
        return {}
    seconds = measure()
    table = Table("seconds", "", title="cluster/cluster.yaml on this machine")
    for name, value in seconds.items():
        table.add_row(name, f"{value:.1f}")
    console.print(table)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--seeds", type=int, default=60, help="weeks (60)")
    parser.add_argument(
        "--measured", action=argparse.BooleanOptionalAction, default=True, help="bring one up"
    )
    parser.add_argument("--json", type=Path, help="where the figures go, as one flat object")
    arguments = parser.parse_args()
    flat, table = figures(arguments.seeds)
    console.print(table)
    flat |= _measured() if arguments.measured else {}
    for name, value in flat.items():
        console.print(f"{name:32} {value:.4g}", highlight=False)
    if arguments.json:
        arguments.json.write_text(json.dumps(flat, indent=2) + "\n")


if __name__ == "__main__":
    main()
