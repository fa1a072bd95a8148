"""All model families at equal CPU time, judged jointly beside the physical limit.

    python -m tests.benchmarks.quality --minutes 20 --seeds 3 --clips FOLDER --json PATH

Each family and seed trains in a process of its own, one thread, without Ray, until it has used
`--minutes` of CPU time, as one rank of the very pair that `raygen train` spreads; two at a time.
A family trains with the preset of its name, or with `--preset` where there is none. One judge,
which knows takes that show the same (mirrored ones) and holds them out together, judges them all.
`real` is one half of the real videos judged against the other as if it had been generated. Without
--clips, raygen renders moving shapes. With --keep FOLDER what was trained is kept, and the same
command goes on where it was cut short.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table

from raygen import video
from raygen.config import Config, families, presets
from raygen.data import synthetic
from raygen.data.catalog import Catalogue
from raygen.data.plan import Span
from raygen.evaluate import real_clips
from raygen.generated import Clips, Labels, decode, usable
from raygen.metrics import Evaluation, Judge

AT_ONCE = 2  # children
TAKES = 16  # training clips cut from each video, evenly over its time
SHEET_ROWS = 2  # of each class
BASELINE, REAL = "conv3d", "real"
CLASSES, PER_CLASS = 4, 30  # of rendered shapes

# What reads a pipe has no width that a table must fit in.
console = Console(width=None if sys.stdout.isatty() else 160)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--clips", help="folder of classes of clips (rendered shapes)")
    parser.add_argument("--fps", type=float, default=16.0, help="frames a second of a clip (16)")
    parser.add_argument("--minutes", type=float, default=2.0, help="CPU time of each training (2)")
    parser.add_argument("--seeds", type=int, default=1, help="trainings of each family (1)")
    parser.add_argument("--preset", default="tiny", help="what families train with (tiny)")
    parser.add_argument("--families", help="comma-separated (all)")
    parser.add_argument("--json", type=Path, help="the default family's figures, one flat object")
    parser.add_argument("--sheets", type=Path, help="where contact sheets and mp4 go")
    parser.add_argument("--keep", type=Path, help="where trainings are kept, to go on with")
    parser.add_argument("--child", nargs=2, metavar=("KIND", "SEED"), help=argparse.SUPPRESS)
    parser.add_argument("overrides", nargs="*", help="key=value for all, as train.precision=bf16")
    arguments = parser.parse_args()
    if arguments.child:
        kind, seed = arguments.child
        config = config_of(arguments.preset, kind, int(seed), arguments.overrides)
        train(arguments.keep, config, arguments.minutes)
        return
    chosen = arguments.families.split(",") if arguments.families else list(families())
    with tempfile.TemporaryDirectory() as scratch:
        kept = arguments.keep or Path(scratch)
        kept.mkdir(parents=True, exist_ok=True)
        catalogue, config = prepare(kept, arguments.preset, arguments.clips, arguments.fps)
        jobs = [(kind, seed) for kind in chosen for seed in range(arguments.seeds)]
        with ThreadPoolExecutor(AT_ONCE) as pool:
            own = (arguments.preset, arguments.minutes, arguments.overrides)
            list(pool.map(lambda job: start(kept, job, *own), jobs))
        console.print("judging")
        judge = Judge(
            *real_clips(catalogue, config), catalogue.classes, config.evaluate, config.seed
        )
        results: dict[str, list[Evaluation]] = {kind: [] for kind in chosen}
        steps: dict[str, list[int]] = {kind: [] for kind in chosen}
        for kind, seed in jobs:
            made = np.load(result(kept, kind, seed))
            results[kind].append(judge(made["clips"], made["labels"]).evaluation)
            steps[kind].append(int(made["steps"]))
            if arguments.sheets:
                draw(made, catalogue.classes, arguments.fps, arguments.sheets / f"{kind}-{seed}")
        results[REAL] = [judge.real_half().evaluation]
    console.print(table(results, steps))
    console.print(controls(results[REAL][0]))
    if arguments.json:
        flat = figures(results, Config.load(arguments.preset).model.kind)
        arguments.json.write_text(json.dumps(flat, indent=2) + "\n")


def prepare(kept: Path, preset: str, folder: str | None, fps: float) -> tuple[Catalogue, Config]:
    """The videos' catalogue and the judge's config; what the children train on, in `kept`."""
    if folder is None:
        folder = str(kept / "shapes")
        if not Path(folder).is_dir():
            synthetic.synthesize(folder, synthetic.class_names(CLASSES), PER_CLASS, seed=0)
    config = Config.load(preset, {"data.fps": fps})
    catalogue = usable(folder, config)
    place = kept / "clips.npz"
    if not place.is_file():
        starts = [(k + 0.5) / TAKES for k in range(TAKES)]
        wanted = [Span(row, at) for row in range(len(catalogue)) for at in starts]
        clips, labels, _ = decode(catalogue, wanted, config)
        np.savez(place, clips=clips, labels=labels, classes=len(catalogue.classes))
    return catalogue, config


def start(
    kept: Path, job: tuple[str, int], preset: str, minutes: float, overrides: Sequence[str]
) -> None:
    """Trains a kind and a seed in a child process, or finds that this was done."""
    kind, seed = job
    if result(kept, kind, seed).is_file():
        return
    arguments = ["--child", kind, str(seed), "--minutes", str(minutes), "--keep", str(kept)]
    arguments += ["--preset", preset]
    command = [sys.executable, "-m", "tests.benchmarks.quality", *overrides, *arguments]
    log = kept / f"{kind}-{seed}.log"
    with log.open("wb") as file:
        one = {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
        code = subprocess.run(
            command, stdout=file, stderr=subprocess.STDOUT, env=os.environ | one, check=False
        ).returncode
    if code:
        raise SystemExit(f"{kind}, seed {seed}: exit {code}; {log.read_text()[-2000:]}")
    console.print(f"{kind}, seed {seed}: trained")


def result(kept: Path, kind: str, seed: int) -> Path:
    return kept / f"{kind}-{seed}.npz"


def config_of(preset: str, kind: str, seed: int, overrides: Sequence[str] = ()) -> Config:
    data, named = Config.load(preset).data, kind if kind in presets() else preset
    own = {"model.kind": kind, "seed": seed, "train.zero_stage": 0}
    own |= {"data.frames": data.frames, "data.size": data.size}
    return Config.parse(Config.load(named, own).dump(), overrides)


def train(kept: Path, config: Config, minutes: float) -> None:
    """Trains the pair for so long, and leaves generated clips; the body of a child process."""
    import torch

    from raygen import sampling
    from raygen.conditions import Condition
    from raygen.draws import Draws
    from raygen.engine import Pair
    from raygen.models import build_generator
    from tests.benchmarks.engine import join

    torch.set_num_threads(1)
    join()
    made = np.load(kept / "clips.npz")
    classes, device = int(made["classes"]), torch.device("cpu")
    batches = batches_of(made["clips"], made["labels"], config)
    pair = Pair(config, classes, device=device, world_size=1)
    budget, began, step, spent = minutes * 60, time.process_time(), 0, 0.0
    while spent < budget:
        drawn = Draws.at(config, step, slice(0, config.train.batch_size))
        batch = [next(batches) for _ in range(config.loss.critic_steps)]
        pair.step(batch, drawn, step=step, progress=spent / budget)
        step, spent = step + 1, time.process_time() - began
    generator = build_generator(config.model, config.data, classes)
    generator.load_state_dict(generator.state_dict() | pair.ema.gather())
    labels = np.arange(config.evaluate.clips) % classes
    z_ND = sampling.latents(range(len(labels)), config.model.latent_dim)
    y_N = Condition.of(torch.from_numpy(labels))
    clips = sampling.generate(generator.eval(), z_ND, y_N, device)
    whole = result(kept, config.model.kind, config.seed)
    unfinished = whole.with_suffix(".partial.npz")
    np.savez(unfinished, clips=clips, labels=labels, steps=step)
    unfinished.rename(whole)


def batches_of(clips: Clips, labels: Labels, config: Config) -> Iterator[tuple[Any, Any]]:
    """Real clips in [-1, 1] and class ids, in an order of the config's seed, without end."""
    import torch

    rng = np.random.default_rng(config.seed)
    while True:
        rows = rng.permutation(len(clips))
        for at in range(0, len(rows) - config.train.batch_size + 1, config.train.batch_size):
            batch = rows[at : at + config.train.batch_size]
            x_BTHWC = torch.from_numpy(clips[batch]).float() / 127.5 - 1
            yield x_BTHWC.permute(0, 4, 1, 2, 3).contiguous(), torch.from_numpy(labels[batch])


def draw(
    made: Mapping[str, npt.NDArray[Any]], classes: Sequence[str], fps: float, stem: Path
) -> None:
    rows = np.concatenate(
        [np.flatnonzero(made["labels"] == k)[:SHEET_ROWS] for k in range(len(classes))]
    )
    names = [classes[label] for label in made["labels"][rows]]
    for suffix in (".png", ".mp4"):
        video.save(stem.with_suffix(suffix), made["clips"][rows], fps, names, scale=4)


COLUMNS: dict[str, tuple[str, str]] = {
    "frechet": ("Fréchet", ".3g"),
    "kernel": ("kernel", ".3g"),
    "class_accuracy": ("accuracy", ".2f"),
    "motion_ratio": ("motion", ".2f"),
    "jerk_ratio": ("2nd diff.", ".2f"),
    "warp_ratio": ("warp", ".2f"),
    "precision": ("precision", ".2f"),
    "coverage": ("coverage", ".2f"),
    "diversity_pixels_ratio": ("diversity", ".2f"),
    "memorised": ("memorised", ".3f"),
    "score": ("score", ".3g"),
}


def table(results: Mapping[str, list[Evaluation]], steps: Mapping[str, list[int]]) -> Table:
    """One row a family, the least score first: the median of the seeds, then their range."""
    first = results[REAL][0]
    title = f"{first.distance}; the judge is right on {first.judge_accuracy:.3f} of held-out clips"
    drawn = Table("family", "steps", *(head for head, _ in COLUMNS.values()), title=title)
    order = sorted(results, key=lambda kind: middle(results[kind], "score"))
    for kind in order:
        counted = str(round(statistics.median(steps[kind]))) if kind in steps else ""
        cells = []
        for key, (_, form) in COLUMNS.items():
            values = [getattr(each, key) for each in results[kind]]
            cell = format(statistics.median(values), form)
            if len(values) > 1:
                cell += f"\n{min(values):{form}} to {max(values):{form}}"
            cells.append(cell)
        drawn.add_row(kind, counted, *cells)
    return drawn


def controls(real: Evaluation) -> Table:
    """What the distances notice of real clips that were spoilt."""
    drawn = Table("real clips", "Fréchet", "kernel", title="one half, spoilt, to the other")
    for row in real.control_rows():
        drawn.add_row(*row)
    return drawn


def middle(evaluations: Sequence[Evaluation], key: str) -> float:
    values: list[float] = [getattr(each, key) for each in evaluations]
    return statistics.median(values)


def figures(results: Mapping[str, list[Evaluation]], default_kind: str) -> dict[str, float]:
    """Of the default family: the median of the seeds, and their `_min` and `_max`."""
    default = results[default_kind]
    real = results[REAL][0]
    values = {
        "frechet_over_real": [each.frechet / real.frechet for each in default],
        "class_accuracy": [each.class_accuracy for each in default],
        "judge_accuracy": [each.judge_accuracy for each in default],
        "motion_ratio": [each.motion_ratio for each in default],
        "warp_over_real": [each.warp_ratio for each in default],
        "memorised": [each.memorised for each in default],
    }
    if BASELINE in results:
        baseline = middle(results[BASELINE], "frechet")
        values["frechet_over_conv3d"] = [each.frechet / baseline for each in default]
    flat: dict[str, float] = {}
    for key, each in values.items():
        flat |= {key: statistics.median(each), f"{key}_min": min(each), f"{key}_max": max(each)}
    return flat


if __name__ == "__main__":
    main()
