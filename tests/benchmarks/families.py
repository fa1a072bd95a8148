"""The default family beside the articles' literal baseline, for the same training time.

    python -m tests.benchmarks.families --clips FOLDER --minutes 13 --sheets FOLDER --json PATH

The clips are uploaded to S3 on loopback; each family trains from there with two workers at
ZeRO-1, is judged against the same real clips by a judge of the same seed, and leaves a contact
sheet. Without --clips, raygen renders moving shapes. `real` is the physical limit: real clips
judged as if they were generated.
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
from pathlib import Path

import ray
from rich.console import Console
from rich.table import Table

from raygen import video
from raygen.config import Config
from raygen.data import store, synthetic
from raygen.data.scan import scan
from raygen.demo import BUCKET, loopback_s3
from raygen.evaluate import evaluate_run
from raygen.export import generator_of
from raygen.metrics import Evaluation
from raygen.runs import Run
from raygen.train import fit

PRESETS = ("tiny", "conv3d")
SHEET_ROWS_PER_CLASS = 2

console = Console()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", help="folder of classes of clips (rendered shapes)")
    parser.add_argument("--fps", type=float, default=25.0, help="frames a second of --clips (25)")
    parser.add_argument("--minutes", type=float, default=2.0, help="of training, each (2)")
    parser.add_argument("--sheets", type=Path, help="where contact sheets and mp4 go")
    parser.add_argument("--json", type=Path, help="where the figures go, as one flat object")
    arguments = parser.parse_args()
    logging.getLogger("ray").setLevel(logging.ERROR)
    results: dict[str, Evaluation] = {}
    steps: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as scratch, loopback_s3(Path(scratch) / "s3.log"):
        uri = f"s3://{BUCKET}/clips"
        overrides = {
            "storage": f"s3://{BUCKET}/runs",
            "data.uri": upload(uri, arguments.clips),
            "data.fps": arguments.fps if arguments.clips else 16,
            "train.workers": 2,
            "train.zero_stage": 1,
            "train.steps": 1_000_000,
            "train.checkpoint_every": 1_000,
            "budget.minutes": arguments.minutes,
        }
        for preset in PRESETS:
            run = fit(Config.load(preset, overrides))
            ray.shutdown()
            results[preset], steps[preset] = evaluate_run(run), run.status["step"]
            if arguments.sheets:
                draw(run, arguments.sheets / preset)
    console.print(table(results, steps))
    if arguments.json:
        arguments.json.write_text(json.dumps(figures(results, steps), indent=2) + "\n")


def upload(uri: str, folder: str | None) -> str:
    """Clips to the S3 prefix `uri`, and the URI of their catalogue."""
    if folder is None:
        synthetic.synthesize(uri, synthetic.class_names(4), 48, seed=0)
    else:
        root = store.absolute(folder)
        for item in store.list_objects(root):
            store.write_bytes(
                store.join(uri, item.uri.removeprefix(root)), store.read_bytes(item.uri)
            )
    scan(uri).write(f"s3://{BUCKET}/catalogue.parquet")
    return f"s3://{BUCKET}/catalogue.parquet"


def draw(run: Run, stem: Path) -> None:
    generator = generator_of(run)
    labels = [k for k in range(len(run.classes)) for _ in range(SHEET_ROWS_PER_CLASS)]
    clips = generator.generate(range(len(labels)), labels)
    names = [run.classes[label] for label in labels]
    for suffix in (".png", ".mp4"):
        video.save(stem.with_suffix(suffix), clips, generator.fps, names, scale=4)


def table(results: dict[str, Evaluation], steps: dict[str, int]) -> Table:
    """One column a family, and the real clips where they were judged by the same measure."""
    first = next(iter(results.values()))
    drawn = Table("", *results, "real")
    drawn.add_row("steps", *(str(steps[name]) for name in results), "")
    for k, (label, _, real) in enumerate(first.rows()):
        drawn.add_row(label, *(result.rows()[k][1] for result in results.values()), real)
    return drawn


def figures(results: dict[str, Evaluation], steps: dict[str, int]) -> dict[str, float]:
    flat: dict[str, float] = {}
    for name, result in results.items():
        flat[f"{name}_steps"] = steps[name]
        for key in ("frechet", "class_accuracy", "motion_ratio", "ssim_fake"):
            flat[f"{name}_{key}"] = getattr(result, key)
    tiny, conv3d = (results[name] for name in PRESETS)
    flat["judge_accuracy"] = tiny.judge_accuracy
    flat["frechet_real"] = tiny.frechet_real
    flat["frechet_over_conv3d"] = tiny.frechet / conv3d.frechet
    return flat


if __name__ == "__main__":
    main()
