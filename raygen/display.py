"""What a terminal shows of a training and of a judgement; a log gets plain lines instead."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table

from raygen.board import Status
from raygen.metrics import Evaluation

LOG_EVERY_S = 20.0

console = Console(emoji=False)


def judgement(evaluation: Evaluation) -> Table:
    """An evaluation as a table: generated beside real."""
    table = Table("", "generated", "real", title="judged by a classifier trained on the real clips")
    for row in evaluation.rows():
        table.add_row(*row)
    for name, accuracy in evaluation.class_accuracies.items():
        table.add_row(f"  {name}", f"{accuracy:.3f}", "")
    return table


def control_table(evaluation: Evaluation) -> Table:
    """What the distances say of real clips that were spoilt on purpose."""
    title = "what the distances notice: half of the real clips, spoilt, to the other half"
    table = Table("real clips", "Fréchet", "kernel", title=title)
    for row in evaluation.control_rows():
        table.add_row(*row)
    return table


@contextmanager
def training_line() -> Iterator[Callable[[Status], None]]:
    """A live line that shows a training's status; yields the function that takes one."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        TextColumn("{task.percentage:>3.0f}%"),
        TextColumn("{task.fields[figures]}"),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("starting workers", total=1.0, figures="")
        said = 0.0
        resumed = 0

        def on_status(status: Status) -> None:
            nonlocal said, resumed
            if status.started_at and status.started_at != resumed:
                resumed = status.started_at
                console.print(f"goes on from the checkpoint of step {status.started_at}")
            description, figures = f"step {status.step}/{status.steps}", _figures(status)
            progress.update(
                task, completed=status.fraction, description=description, figures=figures
            )
            # A log has no live line: one now and then instead.
            now = time.monotonic()
            if not console.is_terminal and now - said > LOG_EVERY_S:
                said = now
                console.print(f"{description}  {figures}", soft_wrap=True)

        yield on_status


def _figures(status: Status) -> str:
    left = "" if status.remaining_s == float("inf") else f"{_clock(status.remaining_s)} left"
    losses = (
        f"G {status.losses['loss/generator']:.2f} C {status.losses['loss/critic']:.2f}"
        if status.losses
        else ""
    )
    refused = f"{status.refused} clips refused" if status.refused else ""
    starved = ""
    if status.starved > 0.02:  # below that the decoders keep up
        fetch, decode = (status.losses.get(f"data/{what}_ms", 0) for what in ("fetch", "decode"))
        costs = f"{fetch:.0f} ms to fetch, {decode:.0f} to decode one"
        starved = f"{status.starved:.0%} waiting for clips ({costs})"
    workers = f"{status.workers} workers" if status.workers > 1 else ""
    parts = [
        f"{status.clips_per_s:.0f} clips/s",
        workers,
        losses,
        left,
        f"${status.dollars:.4f}",
        starved,
        refused,
    ]
    return "  ".join(part for part in parts if part)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"
