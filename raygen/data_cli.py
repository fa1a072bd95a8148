"""`raygen data`: clips rendered, listed and probed into a catalogue, and looked at."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from raygen.errors import ConfigError

app = typer.Typer(help="Clips: render, scan, inspect and cache them.", no_args_is_help=True)
console = Console(emoji=False)

MISSING_SHOWN = 3


@app.command()
def synth(
    uri: Annotated[str, typer.Argument(help="folder or s3://bucket/prefix")],
    classes: Annotated[int, typer.Option(min=1, max=48, help="number of classes")] = 6,
    clips: Annotated[int, typer.Option(min=1, help="clips of each class")] = 40,
    seed: Annotated[int, typer.Option(min=0, help="the same seed, the same bytes")] = 0,
    size: Annotated[int, typer.Option(min=16, max=1024, help="pixels")] = 64,
) -> None:
    """Render labelled moving shapes to mp4. The ground truth goes beside them."""
    from raygen.data import synthetic

    names = synthetic.class_names(classes)
    with console.status(f"rendering {classes} x {clips} clips"):
        synthetic.synthesize(uri, names, clips, seed, size=size)
    console.print(f"{uri}: {classes * clips} clips of {', '.join(names)}", soft_wrap=True)
    console.print(f"next: raygen train tiny data.uri={uri}", soft_wrap=True)


@app.command()
def scan(
    uri: Annotated[str, typer.Argument(help="folder or s3://bucket/prefix")],
    output: Annotated[str, typer.Option("--output", "-o", help="where the Parquet file goes")],
    labels: Annotated[
        str, typer.Option(help="folders, ucf101:FOLDER, manifest:FILE or youtube8m:FOLDER")
    ] = "folders",
    drop_duplicates: Annotated[bool, typer.Option(help="refuse near duplicates")] = False,
    drop_static: Annotated[bool, typer.Option(help="refuse what hardly moves")] = False,
    drop_black: Annotated[bool, typer.Option(help="refuse what is black")] = False,
    cuts: Annotated[bool, typer.Option(help="find cuts, so that no clip straddles one")] = False,
    fresh: Annotated[bool, typer.Option(help="probe again what OUTPUT knows")] = False,
) -> None:
    """List and probe videos into a catalogue. Again, only what is new or has changed."""
    from raygen.data import inspect, store
    from raygen.data import labels as sources
    from raygen.data import scan as scanning
    from raygen.data.catalog import Catalogue
    from raygen.data.screen import Screens

    if not output.endswith(".parquet"):
        raise ConfigError(f"-o {output}: must end in .parquet")
    source = sources.source(labels, store.absolute(uri))
    with Progress(*Progress.get_default_columns(), console=console, transient=True) as progress:
        task = progress.add_task("probing", total=None)
        report = scanning.scan_to(
            uri,
            output,
            labels=source,
            previous=output if store.exists(output) and not fresh else None,
            screens=Screens(drop_duplicates, drop_static, drop_black, cuts),
            on_probe=lambda done, of: progress.update(task, completed=done, total=of),
        )
    found = Catalogue.read(output)
    _show(inspect.classes(found))
    for reason, count in found.refused.most_common():
        console.print(f"refused {count}: {reason}", markup=False, soft_wrap=True)
    for line in inspect.savings(found):
        console.print(line, soft_wrap=True)
    if report.missing:
        some = ", ".join(report.missing[:MISSING_SHOWN])
        more = ", ..." if len(report.missing) > MISSING_SHOWN else ""
        console.print(
            f"{len(report.missing):,} labelled videos are not below {uri}: {some}{more}",
            markup=False,
            soft_wrap=True,
        )
    console.print(
        f"{output}: {len(found):,} videos, {len(found.usable(0)):,} usable; probed "
        f"{report.probed:,} of {report.listed:,} objects",
        soft_wrap=True,
    )
    console.print(f"next: raygen data inspect {output} -o sheet.png", soft_wrap=True)


@app.command()
def inspect(
    catalogue: Annotated[str, typer.Argument(help="a catalogue.parquet, local or s3://")],
    output: Annotated[
        str | None, typer.Option("--output", "-o", help="where a contact sheet goes, .png")
    ] = None,
) -> None:
    """Show what a catalogue holds. With -o, a contact sheet of its classes too."""
    from raygen.data import inspect as inspecting
    from raygen.data import store
    from raygen.data.catalog import Catalogue

    if output is not None and Path(output).suffix.lower() != ".png":
        raise ConfigError(f"-o {output}: must end in .png")
    found = Catalogue.read(catalogue)
    for section in inspecting.summary(found):
        _show(section)
    for line in inspecting.savings(found):
        console.print(line, soft_wrap=True)
    if output is not None:
        store.write_bytes(output, inspecting.sheet(found))
        console.print(f"{output}: one clip a class", soft_wrap=True)


@app.command()
def materialize(
    uri: Annotated[str, typer.Argument(help="a catalogue.parquet, or a folder or s3:// of clips")],
    preset: Annotated[str, typer.Argument(help="a preset's name or a .yaml file")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value, dotted keys")] = None,
) -> None:
    """Decode every clip once, for all epochs. Says what the cache costs and saves."""
    from raygen.config import Config
    from raygen.cost.prices import price as price_of
    from raygen.data import materialize as filling
    from raygen.data import scan as scanning
    from raygen.data.catalog import Catalogue

    config = Config.load(preset, overrides or [])
    if not config.data.cache.uri:
        raise ConfigError(
            "data.cache.uri is empty: say where decoded clips are kept, as in "
            "data.cache.uri=s3://bucket/cache",
            "data.cache.uri",
        )
    price = price_of(config.train.node)
    found = Catalogue.read(uri) if uri.endswith(".parquet") else scanning.scan(uri)
    with Progress(*Progress.get_default_columns(), console=console, transient=True) as progress:
        task = progress.add_task("decoding", total=None)
        report = filling.materialize(
            found,
            config.data,
            config.data.cache.uri,
            on_progress=lambda done, of: progress.update(task, completed=done, total=of),
        )
    for line in report.lines(price.node, price.on_demand / price.cpus):
        console.print(line, soft_wrap=True, markup=False)


def _show(section: tuple[str, list[str], list[list[str]]]) -> None:
    title, columns, rows = section
    table = Table(*columns, title=title, title_justify="left")
    for row in rows:
        table.add_row(*row)
    console.print(table, markup=False)
