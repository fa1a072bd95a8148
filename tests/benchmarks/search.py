"""BudgetScheduler's policy beside other searchers, for the same money, on recorded training runs.

    python -m tests.benchmarks.search [--seeds N] [--half tuned] [--json PATH]

Two families (search_data), four workers in simulated time, caps of 4, 12 and 36 whole runs, every
start and restart paid (search_sim). The policy's rules were chosen on one half of the tasks; what
is printed is the other. A regret of 0 is the best that any configuration of the task reaches, 1 a
final score that three quarters of them reach. Confidence intervals are over tasks, of means over
seeds. Needs ../shared/data.

What is finished is kept in the cache (search_data) a searcher and task at a time, and not run
again with the same code and seeds. Ctrl-C or SIGTERM ends it early: what is there is reported.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import signal
import sys
import threading
import time
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from functools import cache
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from tests.benchmarks.search_data import LEVELS, TASKS, available, cached, load, world
from tests.benchmarks.search_peers import PEERS
from tests.benchmarks.search_sim import RESTART, WORKERS, Outcome, Pool, Searcher, simulate
from tests.cap_histories import overspend_max
from tune.policy import Policy

CAPS = (4, 12, 36)
OURS = "budget"
GRID = np.linspace(0.02, 1.0, 50)  # of the cap: where regret against spend is read
NAMES = (OURS, *PEERS)
PROCESSES = 2
STOPPING = (signal.SIGINT, signal.SIGTERM)
ROOT = Path(__file__).resolve().parents[2]
# What results hang on: those of all, and more for some.
SOURCES = [f"tests/benchmarks/search_{part}.py" for part in ("data", "sim")] + ["tune/model.py"]
OUR_SOURCES = [f"tune/{part}.py" for part in ("policy", "candidates", "outlook", "terms")]
PEER_SOURCES = [f"tests/benchmarks/search_{part}.py" for part in ("rungs", "peers")]

Part = tuple[str, str, str]  # searcher, family, task
Key = tuple[str, str, str, int]  # and cap
Curves = dict[Key, list[float]]  # mean regret over seeds at GRID

console = Console()


def make(name: str, pool: Pool, seed: int, cap: float) -> Searcher:
    """A searcher by name."""
    if name != OURS:
        return PEERS[name](pool, seed, cap)
    return Policy(
        pool,
        money=cap,
        levels=LEVELS,
        workers=WORKERS,
        level_dollars=1 / LEVELS,
        restart_dollars=RESTART,
        seed=seed,
    )


def search(name: str, family: str, task: str, cap: float, seed: int) -> Outcome:
    """One simulated search. All searchers find the same world under a seed."""
    found = world(load(family, task), np.random.default_rng([seed, 7]))
    pool = Pool(found)
    return simulate(make(name, pool, seed, cap), pool, found, cap)


def of_part(part: Part, seeds: int) -> Curves:
    """A searcher on a task, at all caps."""
    found: Curves = {}
    for cap in CAPS:
        runs = [search(*part, cap, seed) for seed in range(seeds)]
        found[*part, cap] = [
            float(np.mean([run.at(share * cap) for run in runs])) for share in GRID
        ]
    return found


class Kept:
    """A file with a line a finished part."""

    def __init__(self, file: Path, seeds: int) -> None:
        self.file, self.seeds = file, seeds
        lines = file.read_text().splitlines() if file.exists() else []
        self.known: dict[str, Curves] = {}
        for line in lines:
            of, curves = json.loads(line)
            self.known[of] = {(*key, cap): curve for *key, cap, curve in curves}

    def of(self, part: Part) -> str:
        """What makes results of a part the same."""
        return f"{_code(part[0] == OURS)} {self.seeds} {' '.join(part)}"

    def find(self, part: Part) -> Curves:
        """What is known of a part: nothing, where it has to be run."""
        return self.known.get(self.of(part), {})

    def add(self, part: Part, found: Curves) -> None:
        """At once on the disk."""
        line = json.dumps([self.of(part), [[*key, curve] for key, curve in found.items()]])
        with self.file.open("a") as out:
            out.write(line + "\n")


@cache
def _code(ours: bool) -> str:
    files = SOURCES + (OUR_SOURCES if ours else PEER_SOURCES)
    return hashlib.sha256(b"".join((ROOT / file).read_bytes() for file in files)).hexdigest()[:16]


def gather(parts: list[Part], kept: Kept, processes: int) -> Curves:
    """The parts' results: all, or after Ctrl-C or SIGTERM those that are there."""
    found: Curves = {}
    for part in parts:
        found |= kept.find(part)
    stopped = threading.Event()
    before = {n: signal.signal(n, lambda *_: stopped.set()) for n in STOPPING}
    with ProcessPoolExecutor(processes, initializer=_deaf) as pool:
        left = {pool.submit(of_part, p, kept.seeds): p for p in parts if not kept.find(p)}
        while left:
            for job in wait(left, timeout=1.0, return_when=FIRST_COMPLETED).done:
                part = left.pop(job)
                kept.add(part, job.result())
                found |= job.result()
            if stopped.is_set():
                left = {job: part for job, part in left.items() if not job.cancel()}
    for number, handler in before.items():
        signal.signal(number, handler)
    return found


def _deaf() -> None:
    """A worker finishes its part; the parent stops it."""
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)


def spend_ratios(found: Curves) -> list[float]:
    """For each task and cap: what ASHA spent to its last regret, by what the policy had to."""
    ratios = []
    for (name, family, task, cap), curve in found.items():
        if name != OURS:
            continue
        asha = found["stopping_asha", family, task, cap]
        goal = asha[-1] + 1e-9
        theirs = next(s for s, r in zip(GRID, asha, strict=True) if r <= goal)
        ours = next((s for s, r in zip(GRID, curve, strict=True) if r <= goal), math.inf)
        ratios.append(theirs / ours)
    return ratios


def report(found: Curves) -> dict[str, float]:
    """Prints the tables; the figures of --json."""
    flat: dict[str, float] = {}
    for family in ("lcbench", "algoperf"):
        tasks = sorted({task for _, f, task, _ in found if f == family})
        if not tasks:
            continue
        table = Table(title=f"{family}: mean regret over {len(tasks)} tasks, 95 % CI")
        for head in ("searcher", *(f"cap {cap}" for cap in CAPS), "all", "budget wins : loses"):
            table.add_column(head)
        for name in NAMES:
            last_TC = np.array([[found[name, family, t, c][-1] for c in CAPS] for t in tasks])
            ours_TC = np.array([[found[OURS, family, t, c][-1] for c in CAPS] for t in tasks])
            wins = int((ours_TC < last_TC - 1e-9).sum())
            losses = int((ours_TC > last_TC + 1e-9).sum())
            cells = [_interval(last_TC[:, c]) for c in range(len(CAPS))]
            table.add_row(name, *cells, _interval(last_TC.mean(1)), f"{wins} : {losses}")
            flat[f"regret_{name}_{family}"] = float(last_TC.mean())
        console.print(table)
    ratios = spend_ratios(found)
    flat["spend_ratio_to_asha_median"] = float(np.median(ratios))
    flat["tasks_reported"] = len({(f, t) for _, f, t, _ in found})
    reached = sum(ratio > 0 for ratio in ratios)
    console.print(
        f"ASHA's last regret, at the median of tasks and caps, for 1/"
        f"{flat['spend_ratio_to_asha_median']:.2f} of what ASHA had spent when it got there; "
        f"reached in {reached} of {len(ratios)}"
    )
    return flat


def _interval(value_T: np.ndarray) -> str:
    half = 1.96 * value_T.std(ddof=1) / math.sqrt(len(value_T)) if len(value_T) > 1 else math.nan
    return f"{value_T.mean():.4f} ± {half:.4f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=30)
    parser.add_argument("--half", choices=("tuned", "reported"), default="reported")
    parser.add_argument("--processes", type=int, default=PROCESSES)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    if not available():
        sys.exit("tests.benchmarks.search needs the recorded runs in ../shared/data/hpo")
    began = time.monotonic()
    tasks = [(f, t) for (f, half), names in TASKS.items() if half == given.half for t in names]
    parts = [(name, *task) for task in tasks for name in NAMES]
    found = gather(parts, Kept(cached("parts.jsonl"), given.seeds), given.processes)
    whole = [task for task in tasks if all((name, *task, CAPS[0]) in found for name in NAMES)]
    if len(whole) < len(tasks):
        console.print(f"[bold]{len(whole)} of {len(tasks)} tasks are finished[/bold]")
    if not whole:
        sys.exit(1)
    flat = report({key: curve for key, curve in found.items() if key[1:3] in whole})
    flat["overspend_max"] = overspend_max()
    console.print(f"{given.seeds} seeds, {time.monotonic() - began:.0f} s; {flat}")
    if given.json:
        given.json.write_text(json.dumps(flat, indent=2) + "\n")


if __name__ == "__main__":
    main()
