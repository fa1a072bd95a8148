"""`raygen prices`, `cost` and `status`: what nodes cost, what went where, and what runs now."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from raygen import local_ray

console = Console(emoji=False)

PIPE_WIDTH = 200


def prices() -> None:
    """The price table that runs are costed with."""
    from raygen.cost import prices as listed

    title = f"dollars an hour, {listed.table_date()}"
    table = Table("node", "hardware", "on demand", "spot, about", title=title)
    for price in listed.prices():
        table.add_row(price.node, price.hardware, f"{price.on_demand:.4f}", f"{price.spot:.3g}")
    console.print(table)


def cost(
    place: Annotated[str, typer.Argument(help="a run, a search, or a folder of runs, or s3://")],
    as_json: Annotated[bool, typer.Option("--json", help="for machines")] = False,
    settle: Annotated[
        bool, typer.Option("--settle", help="ask AWS when machines ended that nobody saw go")
    ] = False,
) -> None:
    """What went where: runs or trials, idle nodes, lost with nodes, the head; and when."""
    from raygen.cost.report import ledgers, plot, report

    if settle:
        from raygen.cost import cloud

        for ledger in ledgers(place):
            for line in cloud.settle(ledger):
                console.print(line, soft_wrap=True, markup=False)
    found = report(place)
    if as_json:
        sys.stdout.write(json.dumps(found.as_dict(), indent=2) + "\n")
        return
    table = Table("", "$", "%", title=found.place, title_justify="left", box=box.SIMPLE, padding=0)
    for name, dollars in found.lines():
        share = f"{100 * dollars / found.total:.1f}" if found.total else ""
        table.add_row(name, f"{dollars:.4f}", share)
    console.print(table, markup=False)
    for note in found.notes():
        console.print(note, soft_wrap=True, markup=False)
    if len(found.curve) > 1:
        console.print(plot(found.curve), markup=False, highlight=False)


def status(
    places: Annotated[
        list[str] | None, typer.Argument(help="runs, searches or folders of them: dollars of today")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="for machines")] = False,
) -> None:
    """What a running cluster is: nodes, market, price, what they do, interruptions, dollars."""
    local_ray.let_go()
    from raygen import status as cluster

    found = cluster.find(places or [])
    if as_json:
        sys.stdout.write(json.dumps(found.as_dict(), indent=2) + "\n")
        return
    table = Table(*cluster.COLUMNS, box=box.SIMPLE, padding=0)
    for node in found.nodes:
        table.add_row(*node.cells())
    wide = console if console.is_terminal else Console(emoji=False, width=PIPE_WIDTH)
    wide.print(table, markup=False)
    for note in found.notes():
        console.print(note, soft_wrap=True, markup=False)
