"""The command `python -m tune`: a space and a number of dollars in, the best generator out.

python -m tune tune/spaces/tiny.yaml --budget 2 data.uri=s3://bucket/clips
python -m tune report searches/tiny
"""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from raygen.cli import invoke
from raygen.registry_cli import publisher
from tune.known import first
from tune.perturb import Perturbation
from tune.prepare import committed, is_over, prepare
from tune.progress import progress
from tune.records import BEST, Records
from tune.space import Space

COMMANDS = ("search", "report", "study")
FIRST = 4  # of the configurations that are tried before the model picks

Searched = Annotated[str, typer.Argument(help="a search's storage: folder or s3://")]

app = typer.Typer(
    help="Spend dollars on finding the best generator: python -m tune SPACE.yaml --budget 50",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
console = Console(emoji=False)


def main() -> None:
    """The module's command; `search` may be left out."""
    arguments = sys.argv[1:]
    if arguments and arguments[0] not in (*COMMANDS, "--help"):
        arguments = ["search", *arguments]
    invoke("tune", app, arguments)


@app.command()
def search(
    space: Annotated[Path, typer.Argument(help="a .yaml file, as in tune/spaces/tiny.yaml")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="key=value, dotted keys of Config, for all trials")
    ] = None,
    budget: Annotated[float, typer.Option(help="dollars, all in all")] = math.nan,
    storage: Annotated[
        str, typer.Option(help="where all of it is kept: folder or s3://; default: searches/SPACE")
    ] = "",
    parallel: Annotated[
        int | None, typer.Option(min=1, help="trials at once; default: what the cluster holds")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="of what is tried")] = 0,
    earlier: Annotated[
        list[str] | None,
        typer.Option("--from", help="an earlier search's storage: its best are tried first"),
    ] = None,
    perturb: Annotated[
        bool, typer.Option("--perturb", help="trials may begin from others' checkpoints, changed")
    ] = False,
    publish: Annotated[
        str, typer.Option(help="registry that the best goes to in the end, as SPACE")
    ] = "",
) -> None:
    """Search a space for the best generator that a number of dollars can buy; the same command
    goes on where it stopped.
    """
    checked = Space.load(space, overrides or [])
    place = storage or f"searches/{space.stem}"
    tried = first(checked, earlier or [], FIRST)
    perturbation = Perturbation(checked) if perturb else None
    publish_best = publisher(publish, space.stem) if publish else None
    records = prepare(checked, place, budget)
    if is_over(records, budget):
        console.print("this search is over; a larger --budget goes on", soft_wrap=True)
    elif (spent := committed(records)) >= budget:  # its driver died just before the end
        from tune.finish import finish

        finish(records, "the cap is reached", budget=budget, spent=spent)
    else:
        # Ray takes seconds to import: not before what can be wrong without it.
        from tune.search import Search

        with progress(console) as shown:
            search = Search(
                checked,
                records,
                budget,
                shown,
                parallel=parallel,
                seed=seed,
                first=tried,
                perturb=perturbation,
            )
            search.run()
    _best(records, checked)
    if publish_best is not None:
        publish_best(records.path(BEST))


@app.command()
def report(
    storage: Searched,
    output: Annotated[
        str, typer.Option("--output", "-o", help="the page; default: STORAGE/report.html")
    ] = "",
) -> None:
    """Write one HTML page about a search that needs nothing else to be read."""
    from tune.report import write

    console.print(write(storage, output), soft_wrap=True)


@app.command()
def study(
    storage: Searched,
    output: Annotated[
        str, typer.Option("--output", "-o", help="the SQLite file; default: STORAGE/study.db")
    ] = "",
) -> None:
    """Write a search as a study of Optuna's, for optuna-dashboard."""
    from tune.study import write

    console.print(write(storage, output), soft_wrap=True)


def _best(records: Records, space: Space) -> None:
    ended = records.document["ended"]
    best = records.best
    assert best is not None  # or it would not have ended
    trial, result = best
    values = " ".join(f"{key}={value}" for key, value in trial.values.items())
    console.print(
        f"{ended['reason']}: ${ended['spent']:.4f} of ${ended['budget']:g} spent on "
        f"{len(records.trials)} trials",
        soft_wrap=True,
        highlight=False,
    )
    console.print(
        f"best: {trial.name} at step {result.step}, {records.metric} {result.score:.4g}: {values}",
        soft_wrap=True,
        highlight=False,
    )
    console.print(f"next: raygen generate {records.path(BEST)} -o clips.mp4", soft_wrap=True)
    console.print(f"      python -m tune report {records.storage}", soft_wrap=True)


if __name__ == "__main__":
    main()
