"""What a terminal shows of a search while it runs; a log gets plain lines instead."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from tune.desk import Standing
from tune.records import Records, Trial
from tune.space import Space

LINE_EVERY_S = 30.0
DOING = {"start": "starting", "train": "running", "judge": "judging"}
SHOWN = 14  # trials: those that run, then the best


@dataclass(frozen=True)
class Purse:
    """The money: spent, reserved on top of that, the cap; dollars a second, and Unix seconds."""

    spent: float = 0.0
    reserved: float = 0.0
    cap: float = math.inf
    rate: float = 0.0
    at: float = field(default_factory=time.time)

    @property
    def finish(self) -> float | None:
        """When the cap is reached at this rate, Unix seconds."""
        return self.at + (self.cap - self.spent) / self.rate if self.rate > 0 else None


def state_of(trial: Trial, levels: int, running: bool) -> str:
    """running, failed, whole or paused."""
    if running:
        return "running"
    if trial.detail:
        return "failed"
    return "whole" if trial.level >= levels else "paused"


def money(purse: Purse) -> str:
    """The money in a line."""
    text = f"${purse.spent:.4f} spent, ${purse.reserved:.4f} reserved of ${purse.cap:g}"
    if purse.finish is not None:
        text += f"; done by {time.strftime('%H:%M', time.localtime(purse.finish))} at the latest"
    return text


def table(
    records: Records,
    space: Space,
    running: Mapping[int, Standing],
    purse: Purse,
    shown: int = SHOWN,
) -> Table:
    """Trials that run first, then the best; the rest is counted."""
    levels, steps = len(space.levels), space.levels[-1]
    made = Table(box=box.SIMPLE, padding=0, caption=money(purse), caption_justify="left")
    for column in ("trial", "level", "step", space.metric, "$", "state"):
        made.add_column(column, justify="left" if column in ("trial", "state") else "right")
    for key in space.keys:
        made.add_column(key.replace("optim.", "").replace("model.", ""), justify="right")
    sign = 1 if space.mode == "min" else -1

    def rank(trial: Trial) -> tuple[bool, float]:
        best = trial.best(space.mode)
        return trial.number not in running, math.inf if best is None else sign * best.score

    trials = dict(records.trials)
    first = records.best
    for number in running.keys() - trials.keys():
        trials[number] = Trial(number, {})
    for trial in sorted(trials.values(), key=rank)[:shown]:
        standing, best = running.get(trial.number), trial.best(space.mode)
        step = trial.results[-1].step if trial.results else 0
        state = state_of(trial, levels, standing is not None)
        made.add_row(
            trial.title,
            f"{trial.level}/{levels}",
            f"{step if standing is None else max(step, standing.step)}/{steps}",
            "" if best is None else f"{best.score:.4g}",
            f"{trial.dollars if standing is None else standing.dollars:.4f}",
            DOING[standing.doing] if standing is not None else state,
            *(brief(trial.values.get(key, "")) for key in space.keys),
            style="bold" if first is not None and first[0] is trial else "",
        )
    if len(trials) > shown:
        made.add_row(f"and {len(trials) - shown} more")
    return made


def brief(value: object) -> str:
    """A value of a configuration, short."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


class Progress:
    """Shows a search as it goes on."""

    def __init__(self, console: Console, live: Live | None) -> None:
        self._console, self._live = console, live
        self._lines: list[str] = []
        self._told: dict[int, int] | None = None
        self._said_at = time.monotonic()

    def note(self, text: str) -> None:
        """A line that stays."""
        self._console.print(text, soft_wrap=True, markup=False, highlight=False)

    def show(
        self, records: Records, space: Space, running: Mapping[int, Standing], purse: Purse
    ) -> None:
        """How it stands now."""
        if self._live is not None:
            rows = max(3, self._console.height - 8)
            shown = table(records, space, running, purse, min(SHOWN, rows))
            self._live.update(Group(shown, Text("")))
            return
        if self._told is None:  # what an earlier driver told
            self._told = {trial.number: trial.level for trial in records.trials.values()}
        for trial in list(records.trials.values()):
            if trial.level > self._told.get(trial.number, 0):
                self._told[trial.number] = trial.level
                self.note(result_line(trial, space))
        if time.monotonic() - self._said_at > LINE_EVERY_S:
            self._said_at = time.monotonic()
            self.note(f"{len(running)} running, {len(records.trials)} trials; {money(purse)}")


def result_line(trial: Trial, space: Space) -> str:
    """What a trial has just reported."""
    last = trial.results[-1]
    values = " ".join(f"{key}={brief(value)}" for key, value in trial.values.items())
    return (
        f"{trial.title} level {last.level}/{len(space.levels)} step {last.step} "
        f"{space.metric} {last.score:.4g} ${last.dollars:.4f}  {values}"
    )


@contextmanager
def progress(console: Console) -> Iterator[Progress]:
    """Shows a search, live on a terminal, until the end."""
    if not console.is_terminal:
        yield Progress(console, None)
        return
    with Live(console=console, refresh_per_second=2, transient=True) as live:
        yield Progress(console, live)
