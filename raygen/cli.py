"""The command `raygen`: from a bucket of clips to a generator, one verb a stage.

A wrong key, file, bucket or class is answered in one line on standard error, with an exit code
from raygen.errors; a traceback is a bug.
"""

from __future__ import annotations

import faulthandler
import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from raygen import config as configuration
from raygen import data_cli, dollars_cli, local_ray, registry_cli
from raygen.config import Config
from raygen.data import store
from raygen.errors import CheckpointError, ConfigError, RaygenError, StorageError
from raygen.sides import in_full

if TYPE_CHECKING:
    from raygen.runs import Run

app = typer.Typer(
    help="A bucket of clips and a number of dollars in; the best video generator they buy out.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
console = Console(emoji=False)

PIPE_WIDTH = 200

Preset = Annotated[str, typer.Argument(help="a preset's name or a .yaml file")]
Overrides = Annotated[list[str] | None, typer.Argument(help="key=value, dotted keys")]
Best = Annotated[
    bool, typer.Option("--best", help="the best checkpoint judged while training, not the newest")
]
RunUri = Annotated[str, typer.Argument(help="STORAGE/NAME, as in runs/tiny or s3://bucket/tiny")]


def main() -> None:
    """The console script."""
    invoke("raygen", app)


def invoke(name: str, commands: typer.Typer, arguments: list[str] | None = None) -> None:
    """Runs a command line, the process's own by default; a RaygenError is a line and an exit."""
    # A crash in a library's native code says where every thread was.
    faulthandler.enable(sys.__stderr__ or sys.stderr)
    local_ray.guard()
    try:
        commands(args=arguments)
    except RaygenError as error:
        failure = Console(stderr=True, soft_wrap=True, markup=False, emoji=False)
        failure.print(f"{name}: {error}", style="bold")
        sys.exit(error.exit_code)


@app.command()
def train(
    preset: Preset,
    overrides: Overrides = None,
    budget: Annotated[
        float | None, typer.Option(help="dollars that are not exceeded: budget.dollars")
    ] = None,
    publish: Annotated[
        str, typer.Option(help="registry that the best judged, or the newest, checkpoint goes to")
    ] = "",
) -> None:
    """Train a preset; the same command with the same name goes on where it stopped."""
    spend = [] if budget is None else [f"budget.dollars={budget}"]
    config = Config.load(preset, [*(overrides or []), *spend])
    # Ray takes seconds to import: not before what can be wrong without it.
    from raygen.display import training_line
    from raygen.train import fit

    publish_run = registry_cli.publisher(publish, config.name) if publish else None
    with training_line() as on_status:
        run = fit(config, on_status=on_status, on_note=_note)
    if not run.checkpoints():
        return
    status = run.status
    console.print(
        f"{run.uri}: step {status['step']}, {status['clips_seen']} clips, "
        f"{status['elapsed_s']:.0f} s, ${run.dollars:.4f}"
    )
    console.print(f"next: raygen evaluate {run.uri}", soft_wrap=True)
    if publish_run is not None:
        best = run.best()
        publish_run(run if best is None else run.at(best))


@app.command()
def evaluate(
    place: Annotated[str, typer.Argument(help="a run, or a folder of generated clips")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="of a folder: key=value of data and evaluate")
    ] = None,
    against: Annotated[
        str, typer.Option(help="real clips: folder, s3:// or catalogue.parquet; default: the run's")
    ] = "",
    html: Annotated[Path | None, typer.Option(help="one page with the clips playing")] = None,
    as_json: Annotated[Path | None, typer.Option("--json", help="the figures")] = None,
    best: Best = False,
) -> None:
    """Judge a run's generator, or a folder of generated clips, against real clips.

    Of a run it writes evaluation.json into the run, unless other clips are given.
    """
    from raygen import evaluate as evaluating
    from raygen.display import control_table, judgement
    from raygen.runs import EVALUATION, MANIFEST, Run

    uri = store.absolute(place)
    run = None
    if store.exists(store.join(uri, MANIFEST)):
        run = Run.open(uri)
        if overrides:
            raise ConfigError(f"{overrides[0]}: a run is judged as its config says")
    elif not against:
        raise StorageError(
            f"no run at {uri}: give STORAGE/NAME, as in runs/tiny, or --against real clips where "
            "it is a folder of generated ones",
            uri,
        )
    elif best:
        raise ConfigError(f"--best is of runs, and {place} is none")
    with console.status("judging") as status:
        if run is not None:
            judged = run.at(_best(run)) if best else run
            findings = evaluating.judge_run(judged, status.update, against)
            if not against:
                run.write_json(EVALUATION, findings.evaluation.as_dict())
        else:
            findings = evaluating.judge_folder(uri, against, overrides or [], status.update)
    console.print(judgement(findings.evaluation))
    console.print(control_table(findings.evaluation))
    if as_json is not None:
        document = json.dumps(evaluating.scored(findings.evaluation), indent=2) + "\n"
        store.write_bytes(str(as_json), document.encode())
    if html is not None:
        from raygen.page import page

        store.write_bytes(str(html), page(findings).encode())
    if run is not None:
        console.print(f"next: raygen export {run.uri} -o exports/{run.config.name}", soft_wrap=True)


@app.command()
def runs(
    storage: Annotated[str, typer.Argument(help="where runs are kept: folder or s3://")] = "runs",
    as_json: Annotated[bool, typer.Option("--json", help="for machines, a list")] = False,
) -> None:
    """List the runs of a storage: state, step, metrics, dollars; the newest first."""
    from raygen import runs_list

    lines, notes = runs_list.find(storage)
    for note in notes:
        Console(stderr=True, emoji=False).print(note, soft_wrap=True, markup=False)
    if as_json:
        sys.stdout.write(json.dumps([line.as_dict() for line in lines], indent=2) + "\n")
        return
    table = Table(title=storage, title_justify="left", box=box.SIMPLE, padding=0)
    for column in runs_list.COLUMNS:
        justify: Literal["left", "right"] = "left" if column in ("run", "state") else "right"
        table.add_column(column, justify=justify, overflow="fold")
    for line in lines:
        table.add_row(*line.cells(time.time()))
    # What reads a pipe has no width that a table must fit in.
    wide = console if console.is_terminal else Console(emoji=False, width=PIPE_WIDTH)
    wide.print(table, markup=False)


@app.command()
def export(
    uri: RunUri,
    output: Annotated[str, typer.Option("--output", "-o", help="folder or s3:// prefix")],
    best: Best = False,
) -> None:
    """Write a run's averaged generator as safetensors, config and model card."""
    from raygen.export import export_run
    from raygen.runs import Run

    run = Run.open(uri)
    export_run(run.at(_best(run)) if best else run, output)
    console.print(f"{output}: generator.safetensors, config.json, README.md", soft_wrap=True)
    console.print(f"next: raygen generate {output} -o clips.mp4", soft_wrap=True)
    console.print(f"      serve run serve.app:app export={output}", soft_wrap=True)


@app.command()
def generate(
    export: Annotated[
        str, typer.Argument(help="an export: folder or s3:// prefix; with --url a model, or best")
    ],
    output: Annotated[str, typer.Option("--output", "-o", help=".mp4 .webp .gif .png or .npy")],
    class_name: Annotated[
        list[str] | None, typer.Option("--class", help="again for another; default: each in turn")
    ] = None,
    text: Annotated[
        list[str] | None, typer.Option("--text", help="what it shows; again for another")
    ] = None,
    image: Annotated[
        str | None, typer.Option("--image", help="a picture: the first frame, kept")
    ] = None,
    vector: Annotated[
        str | None, typer.Option("--vector", help=".npy of your own numbers, as trained with")
    ] = None,
    truncation: Annotated[
        float, typer.Option(min=0.0, max=2.0, help="scale of the latent; below 1: more usual clips")
    ] = 1.0,
    interpolate: Annotated[
        bool, typer.Option("--interpolate", help="from the first class or text to the second")
    ] = False,
    frames: Annotated[
        int | None, typer.Option(min=1, max=4096, help="of a clip; default: as trained")
    ] = None,
    fps: Annotated[
        float | None, typer.Option(min=0.1, max=240, help="default: as trained, the same motion")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="seed of the first clip")] = 0,
    n: Annotated[int, typer.Option(min=1, max=1024, help="clips; their seeds count up")] = 1,
    scale: Annotated[int, typer.Option(min=1, max=16, help="enlarge by repeating pixels")] = 4,
    url: Annotated[
        str, typer.Option("--url", help="ask this endpoint, with the token in $RAYGEN_TOKEN")
    ] = "",
) -> None:
    """Generate clips; the same seed and conditions give the same clip.

    With --interpolate the clips lead from the first --class or --text to the second, or, where
    none is given twice, from the first seed to the next.
    """
    from raygen import asking, picture, video
    from raygen.export import load_generator

    video.format_of(output)  # before the work, not after it
    if url:
        from raygen.client import Client

        if vector is not None:
            raise ConfigError("--vector: an endpoint takes none")
        between = len(class_name or []) == 2 or len(text or []) == 2
        ends = [seed, seed if between else seed + 1]
        with Client(url, token=os.environ.get("RAYGEN_TOKEN", "")) as client:
            made = client.generate(
                model=export,
                n=n,
                seeds=ends if interpolate else range(seed, seed + n),
                classes=_each(class_name, n, interpolate),
                texts=_each(text, n, interpolate),
                image=image,
                interpolate=interpolate,
                frames=frames,
                fps=fps,
                truncation=truncation,
                format=video.format_of(output),
                scale=min(scale, 8),
            )
        made.save(output)
        _note(f"{output}: {n} clips of {made.model}")
        return
    generator = load_generator(export)
    asked = asking.Asked(
        classes=class_name or [],
        texts=text or [],
        image=None if image is None else picture.read(image, generator.data.size),
        vector=None if vector is None else asking.read_vector(vector),
        times=generator.times(frames, fps),
    )
    draw = asking.interpolated if interpolate else asking.drawn
    clips, names = draw(generator, asked, seed, n, truncation)
    video.save(output, clips, fps or generator.fps, names, scale)
    console.print(f"{output}: {n} x {clips.shape[1]} frames of {', '.join(sorted(set(names)))}")


@app.command()
def demo(
    minutes: Annotated[float, typer.Option(min=0.1, help="of training")] = 2.7,
    folder: Annotated[str, typer.Option(help="where its results go")] = "demo",
) -> None:
    """The whole path on this machine alone: S3 on loopback, training, judge, export, HTTP."""
    from raygen.demo import run_demo

    run_demo(Path(folder), minutes)


@app.command()
def config(preset: Preset, overrides: Overrides = None) -> None:
    """Print a preset, resolved: every key with its value and what it means."""
    sys.stdout.write(Config.load(preset, overrides or []).to_yaml())


@app.command()
def presets() -> None:
    """The presets that ship with raygen, side by side."""
    columns = ("preset", "clip", "model", "loss", "batch", "steps", "generator", "critic", "GFLOP")
    table = Table(*columns, box=box.SIMPLE, padding=0)
    for name in configuration.presets():
        table.add_row(name, *_summary(Config.load(name)))
    console.print(table)


def _each(words: list[str] | None, count: int, ends: bool) -> list[str]:
    """In turn, one a clip; where they are the ends, as they are."""
    return [words[k % len(words)] for k in range(count)] if words and not ends else words or []


def _best(run: Run) -> str:
    checkpoint = run.best()
    if checkpoint is None:
        raise CheckpointError(
            f"no checkpoint of {run.uri} was judged while it trained: set evaluate.every=STEPS"
        )
    return checkpoint


def _note(text: str) -> None:
    console.print(text, soft_wrap=True, markup=False)


def _summary(config: Config) -> list[str]:
    from raygen.models.size import size_of

    size = size_of(config)
    counts = (f"{n / 1e6:.3g}M" for n in (size.generator_parameters, size.critic_parameters))
    flops = f"{size.generator_flops / 1e9:.3g}+{size.critic_flops / 1e9:.3g}"
    data, train = config.data, config.train
    clip = f"{data.frames}x{in_full(data.size)}"
    spent = (str(train.batch_size), str(train.steps))
    return [clip, config.model.kind, config.loss.kind, *spent, *counts, flops]


# After those above: help lists commands in this order.
app.command()(registry_cli.publish)
app.command()(registry_cli.models)
app.command()(registry_cli.verify)
app.command()(dollars_cli.prices)
app.command()(dollars_cli.cost)
app.command()(dollars_cli.status)
app.add_typer(data_cli.app, name="data")
