"""Plots as SVG by hand: lines, points, parallel axes, bars. Colours are the page's, by class.

Every mark of a trial has the classes `t` and its name, so that a page can light it up everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

W, H = 760, 320  # of a plot, SVG units
LEFT, RIGHT, TOP, BOTTOM = 64, 16, 14, 44


@dataclass(frozen=True)
class Series:
    """A trial's points (x, y); `rank` 0 is the best, 1 the worst; `tip` is its tooltip."""

    name: str
    points: Sequence[tuple[float, float]]
    rank: float
    tip: str


@dataclass(frozen=True)
class Axis:
    """A range and its label; of a logarithmic one both ends are above 0."""

    label: str
    low: float
    high: float
    log: bool = False

    @classmethod
    def of(cls, label: str, values: Sequence[float]) -> Axis:
        """One that holds all values; logarithmic where they differ more than tenfold."""
        low, high = min(values), max(values)
        if low > 0 and high / low > 10:
            return cls(label, low, high, True)
        room = (high - low) * 0.05 or abs(high) * 0.05 or 1.0
        return cls(label, low - room, high + room)

    def at(self, value: float) -> float:
        """Where a value lies, 0 to 1."""
        low, high, value = (math.log(v) if self.log else v for v in (self.low, self.high, value))
        return (value - low) / (high - low) if high > low else 0.5

    def ticks(self) -> list[float]:
        """Round numbers on it."""
        if self.log:
            first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
            marks = [m * 10.0**e for e in range(first, last + 1) for m in (1, 2, 5)]
            inside = [m for m in marks if self.low <= m <= self.high]
            return inside if len(inside) <= 8 else [m for m in inside if f"{m:e}"[0] == "1"]
        unit = 10 ** math.floor(math.log10((self.high - self.low) / 4))
        step = next(s * unit for s in (1, 2, 5, 10) if (self.high - self.low) / (s * unit) <= 6)
        first = math.ceil(self.low / step)
        return [k * step for k in range(first, math.floor(self.high / step) + 1)]


def lines(series: Sequence[Series], x: Axis, y: Axis) -> str:
    """Each series as a line with a dot a point."""
    marks = []
    for each in sorted(series, key=lambda s: -s.rank):
        places = [_place(x, y, point) for point in each.points]
        path = " ".join(f"{a:.1f},{b:.1f}" for a, b in places)
        dots = "".join(f'<circle cx="{a:.1f}" cy="{b:.1f}" r="2.5"/>' for a, b in places)
        marks.append(
            f'<g {_mark(each)}><title>{escape(each.tip)}</title><polyline points="{path}"/>'
            f"{dots}</g>"
        )
    return _plot(_frame(x, y) + "".join(marks), f"{y.label} against {x.label}")


def scatter(series: Sequence[Series], x: Axis, y: Axis, front: Sequence[int]) -> str:
    """Each series' last point; those of the front are joined by steps."""
    places = [_place(x, y, each.points[-1]) for each in series]
    path = ""
    for k, index in enumerate(front):
        a, b = places[index]
        path += f"M{a:.1f},{b:.1f}" if k == 0 else f"H{a:.1f}V{b:.1f}"
    marks = "".join(
        f'<g {_mark(each)}><title>{escape(each.tip)}</title><circle cx="{a:.1f}" cy="{b:.1f}" '
        f'r="{6 if k in front else 4}"/></g>'
        for k, (each, (a, b)) in enumerate(zip(series, places, strict=True))
    )
    body = f'{_frame(x, y)}<path class="front" d="{path}"/>{marks}'
    return _plot(body, f"{y.label} against {x.label}")


def parallel(
    series: Sequence[Series], axes: Sequence[tuple[str, Sequence[tuple[float, str]]]]
) -> str:
    """A line a trial over upright axes (label, ticks at 0 to 1); a series has a point an axis."""
    gap = (W - 2 * LEFT) / max(1, len(axes) - 1)
    top, bottom = TOP + 22, H - 14
    body, labels = [], []
    for k, (label, ticks) in enumerate(axes):
        a = LEFT + k * gap
        anchor = "start" if k == 0 else "end" if k == len(axes) - 1 else "middle"
        up = TOP + (0 if k % 2 == 0 else 11)
        body.append(
            f'<line class="axis" x1="{a:.1f}" x2="{a:.1f}" y1="{top}" y2="{bottom}"/>'
            f'<text x="{a:.1f}" y="{up}" text-anchor="{anchor}">{escape(label)}</text>'
        )
        for at, text in ticks:
            b = bottom - at * (bottom - top)
            labels.append(
                f'<text class="tick" x="{a + 4:.1f}" y="{b + 3:.1f}">{escape(text)}</text>'
            )
    for each in sorted(series, key=lambda s: -s.rank):
        path = " ".join(
            f"{LEFT + k * gap:.1f},{bottom - at * (bottom - top):.1f}"
            for k, (_, at) in enumerate(each.points)
        )
        body.append(
            f'<g {_mark(each)}><title>{escape(each.tip)}</title><polyline points="{path}"/></g>'
        )
    return _plot("".join(body + labels), "configurations: " + ", ".join(label for label, _ in axes))


def bars(shares: dict[str, float]) -> str:
    """A bar a key, 0 to 1, the longest first."""
    rows = sorted(shares.items(), key=lambda pair: -pair[1])
    height, left, most = 24, 190, max(max(shares.values()), 1e-9)
    body = []
    for k, (key, share) in enumerate(rows):
        y, width = 4 + k * height, share / most * (W - left - 70)
        body.append(
            f'<text x="{left - 8}" y="{y + 14}" text-anchor="end">{escape(key)}</text>'
            f'<rect class="bar" x="{left}" y="{y + 2}" width="{width:.1f}" height="16" rx="2"/>'
            f'<text x="{left + width + 6:.1f}" y="{y + 14}">{share:.0%}</text>'
        )
    return _plot("".join(body), "importance of keys", 8 + len(rows) * height)


def colour(rank: float) -> str:
    """Of a trial's rank: the best stand out, the rest step back."""
    return f"--rank:{min(1.0, max(0.0, rank)):.3f}"


def _mark(each: Series) -> str:
    best = " best" if each.rank == 0 else ""
    return f'class="t {escape(each.name)}{best}" style="{colour(each.rank)}"'


def _place(x: Axis, y: Axis, point: tuple[float, float]) -> tuple[float, float]:
    across, down = W - LEFT - RIGHT, H - TOP - BOTTOM
    return LEFT + x.at(point[0]) * across, TOP + (1 - y.at(point[1])) * down


def _frame(x: Axis, y: Axis) -> str:
    left, bottom = LEFT, H - BOTTOM
    parts = [
        f'<path class="axis" d="M{left},{TOP}V{bottom}H{W - RIGHT}"/>',
        f'<text x="{(left + W) / 2}" y="{H - 6}" text-anchor="middle">{escape(x.label)}</text>',
        f'<text transform="translate(13 {(TOP + bottom) / 2}) rotate(-90)" text-anchor="middle">'
        f"{escape(y.label)}</text>",
    ]
    for tick in x.ticks():
        a, _ = _place(x, y, (tick, y.low))
        parts.append(
            f'<line class="grid" x1="{a:.1f}" x2="{a:.1f}" y1="{TOP}" y2="{bottom}"/>'
            f'<text class="tick" x="{a:.1f}" y="{bottom + 15}" text-anchor="middle">'
            f"{tick:.3g}</text>"
        )
    for tick in y.ticks():
        _, b = _place(x, y, (x.low, tick))
        parts.append(
            f'<line class="grid" x1="{left}" x2="{W - RIGHT}" y1="{b:.1f}" y2="{b:.1f}"/>'
            f'<text class="tick" x="{left - 6}" y="{b + 4:.1f}" text-anchor="end">{tick:.3g}</text>'
        )
    return "".join(parts)


def _plot(body: str, title: str, height: float = H) -> str:
    return (
        f'<div class="wide"><svg viewBox="0 0 {W} {height}" role="img" '
        f'aria-label="{escape(title)}">{body}</svg></div>'
    )
