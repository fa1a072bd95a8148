"""`python -m tune report STORAGE`: a search as one HTML page that needs nothing else.

Plots are inline SVG (tune.plots), clips animated WebP in data URIs, and a few lines of script light
up one trial everywhere; nothing is loaded. The page follows the reader's light or dark setting.
"""

from __future__ import annotations

import base64
import math
import time
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from raygen import video
from raygen.config import Config
from raygen.data import store
from raygen.errors import CheckpointError, StorageError
from raygen.export import generator_of
from raygen.page import STYLE
from raygen.runs import Run, checkpoint_name
from tune import analysis, plots
from tune.measure import clip_dollars
from tune.plots import Axis, Series
from tune.progress import brief, state_of
from tune.records import Records, Result, Trial

BESTS = 3  # trials whose clips are shown
CLIPS = 6  # of each, one a class
SHOWN = 96  # pixels
CLIP_S = "clip_s"

MORE_STYLE = """
:root { --good: #0b6e4f; --poor: #9aa3ad; }
@media (prefers-color-scheme: dark) { :root { --good: #4fd1a1; --poor: #555c66; } }
svg { width: 100%; min-width: 34rem; height: auto; display: block; }
svg text { fill: var(--soft); font-size: 12px; }
svg .tick { font-size: 10.5px; paint-order: stroke; stroke: var(--paper); stroke-width: 3px; }
.axis { stroke: var(--soft); fill: none; } .grid { stroke: var(--rule); stroke-width: .6; }
.bar { fill: var(--good); } .front { stroke: var(--good); fill: none; stroke-dasharray: 5 4; }
.t { cursor: default; --c: color-mix(in oklab, var(--good), var(--poor) calc(var(--rank) * 100%)); }
.t polyline { fill: none; stroke: var(--c); stroke-width: 1.4; opacity: .8; }
.t circle { fill: var(--c); } .t.best polyline { stroke-width: 2.6; opacity: 1; }
.t.lit polyline { stroke-width: 4; opacity: 1; }
.t.lit circle { stroke: var(--ink); stroke-width: 1.5; }
tr.lit { background: color-mix(in oklab, var(--good), transparent 80%); }
tbody tr { cursor: default; }
.facts { display: flex; flex-wrap: wrap; gap: .4rem 2rem; padding: 0; }
.facts li { list-style: none; } .facts b { display: block; font-size: 1.25rem; color: var(--ink); }
.facts li { color: var(--soft); font-size: .85rem; } .clips img { width: 96px; }
td, th { white-space: nowrap; }
"""
SCRIPT = """
const lit = name => document.querySelectorAll('.t, tr[data-t]').forEach(e =>
  e.classList.toggle('lit', !!name && (e.classList.contains(name) || e.dataset.t === name)));
document.querySelectorAll('.t').forEach(e => {
  const name = e.classList[1];
  e.addEventListener('mouseenter', () => lit(name)); e.addEventListener('mouseleave', () => lit());
});
document.querySelectorAll('tr[data-t]').forEach(e => {
  e.addEventListener('mouseenter', () => lit(e.dataset.t));
  e.addEventListener('mouseleave', () => lit());
});
"""


def write(storage: str, output: str = "") -> str:
    """Writes the page about the search at `storage`; where to. Raises StorageError."""
    records = Records.find(storage)
    if records is None:
        raise StorageError(
            f"no search at {storage}: give the --storage of one, as in searches/tiny", storage
        )
    destination = output or records.path("report.html")
    store.write_bytes(destination, page(records).encode())
    return destination


def page(records: Records) -> str:
    """The whole document."""
    title = f"Search: {records.storage.rsplit('/', 1)[-1]}"
    judged = _judged(records)
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(title)}</title><style>{STYLE}{MORE_STYLE}</style></head><body>",
        f"<h1>{escape(title)}</h1>",
        _facts(records),
    ]
    if judged:
        parts += [_curves(records, judged), _clips(records, judged), _front(records, judged)]
        parts += [_coordinates(records, judged), _importance(records, judged)]
    else:
        parts.append("<p>No trial has been judged yet.</p>")
    parts += [_table(records), f"<script>{SCRIPT}</script></body></html>"]
    return "\n".join(part for part in parts if part) + "\n"


Judged = list[tuple[Trial, Result]]


def _judged(records: Records) -> Judged:
    """Trials that came to a figure, with their best checkpoints, the best first."""
    sign = 1 if records.mode == "min" else -1
    found = [(t, r) for t in records.trials.values() if (r := t.best(records.mode)) is not None]
    return sorted(found, key=lambda pair: sign * pair[1].score)


def _rank(judged: Judged, trial: Trial) -> float:
    at = next(k for k, (each, _) in enumerate(judged) if each is trial)
    return at / max(1, len(judged) - 1)


def _facts(records: Records) -> str:
    facts = []
    if records.best is not None:
        trial, result = records.best
        facts.append((f"{result.score:.4g}", f"{records.metric} of {trial.name}, the best"))
    facts.append((str(len(records.trials)), "trials"))
    levels = sum(len(trial.results) for trial in records.trials.values())
    facts.append((str(levels), "checkpoints judged"))
    ended = records.document.get("ended")
    if ended is not None:
        facts.append((f"${ended['spent']:.4f}", f"spent of ${ended['budget']:g}"))
        when = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(ended["at"]))
        facts.append((when, escape(ended["reason"])))
    else:
        total = sum(trial.dollars for trial in records.trials.values())
        facts.append((f"${total:.4f}", "by its trials so far; it has not ended"))
    items = "".join(f"<li><b>{escape(value)}</b>{text}</li>" for value, text in facts)
    return f'<ul class="facts">{items}</ul>'


def _curves(records: Records, judged: Judged) -> str:
    series = []
    for trial, _ in judged:
        points = [(r.dollars, r.score) for r in trial.results if math.isfinite(r.score)]
        series.append(Series(trial.name, points, _rank(judged, trial), _tip(records, trial)))
    x = Axis.of("dollars spent on the trial", [a for s in series for a, _ in s.points])
    y = Axis.of(records.metric, [b for s in series for _, b in s.points])
    less = "less" if records.mode == "min" else "more"
    return (
        "<h2>Learning curves</h2>"
        f"<p>A dot is a judged checkpoint: {escape(records.metric)}, {less} is better. "
        "The stronger the colour, the better the trial.</p>" + plots.lines(series, x, y)
    )


def _front(records: Records, judged: Judged) -> str:
    priced = [(t, r) for t, r in judged if CLIP_S in r.figures]
    if not priced:
        return ""
    sign = 1 if records.mode == "min" else -1
    points = [(_clip_dollars(records, t, r), sign * r.score) for t, r in priced]
    series = [
        Series(
            trial.name,
            [(dollars, result.score)],
            _rank(judged, trial),
            f"{_tip(records, trial)}, ${dollars:.3g} a clip",
        )
        for (trial, result), (dollars, _) in zip(priced, points, strict=True)
    ]
    x = Axis.of("dollars a clip, drawn where it was judged", [a for a, _ in points])
    y = Axis.of(records.metric, [r.score for _, r in priced])
    return (
        "<h2>Quality against the price of a clip</h2>"
        "<p>The dashed line joins those that no other beats in both.</p>"
        + plots.scatter(series, x, y, analysis.front(points))
    )


def _coordinates(records: Records, judged: Judged) -> str:
    axes: list[tuple[str, Sequence[tuple[float, str]]]] = []
    columns: list[list[float]] = []
    for key, written in records.document["space"].items():
        values = [trial.values[key] for trial, _ in judged]
        axis, ticks, column = _upright(written, values)
        axes.append((_short(key), ticks))
        columns.append(column if axis is None else [axis.at(value) for value in values])
    scores = [result.score for _, result in judged]
    y = Axis.of(records.metric, scores)
    axes.append((records.metric, [(y.at(tick), f"{tick:.3g}") for tick in y.ticks()]))
    columns.append([y.at(score) for score in scores])
    series = [
        Series(
            trial.name,
            [(k, column[row]) for k, column in enumerate(columns)],
            _rank(judged, trial),
            _tip(records, trial),
        )
        for row, (trial, _) in enumerate(judged)
    ]
    return "<h2>Configurations</h2>" + plots.parallel(series, axes)


def _upright(
    written: Mapping[str, Any], values: list[Any]
) -> tuple[Axis | None, list[tuple[float, str]], list[float]]:
    """A key's axis, its ticks, and, where it is a choice, the places of values."""
    if written["is"] == "Choice":
        options = [repr(option) for option in written["options"]]
        last = max(1, len(options) - 1)
        ticks = [(k / last, str(option)) for k, option in enumerate(written["options"])]
        return None, ticks, [options.index(repr(value)) / last for value in values]
    axis = Axis("", written["low"], written["high"], bool(written.get("log")))
    return axis, [(axis.at(t), f"{t:.3g}") for t in (axis.low, *axis.ticks(), axis.high)][:9], []


def _importance(records: Records, judged: Judged) -> str:
    space = records.document["space"]
    columns, widths = [], {}
    for key, written in space.items():
        values = [trial.values[key] for trial, _ in judged]
        if written["is"] == "Choice":
            options = [repr(option) for option in written["options"]]
            column = np.eye(len(options))[[options.index(repr(value)) for value in values]]
        else:
            axis = Axis("", written["low"], written["high"], bool(written.get("log")))
            column = np.array([[axis.at(value)] for value in values])
        columns.append(column)
        widths[_short(key)] = column.shape[1]
    # Not a key, but it moves the figure: some were trained longer than others.
    last = len(records.document["levels"])
    columns.append(np.array([[result.level / last] for _, result in judged]))
    widths["(how far it was trained)"] = 1
    sign = 1 if records.mode == "min" else -1
    scores = np.array([sign * result.score for _, result in judged])
    found = analysis.importance(np.concatenate(columns, 1), scores, widths)
    if found is None:
        return (
            f"<h2>What mattered</h2><p>Fewer than {analysis.LEAST} trials came to a figure: too "
            "few to say.</p>"
        )
    trust = (
        "the shares below are worth little"
        if found.explained < 0.2
        else "take the shares below as a hint"
        if found.explained < 0.6
        else "the shares below can be leaned on"
    )
    return (
        "<h2>What mattered</h2><p>Each key's share, by itself, of how the trials' ranks differ: "
        "main effects of a kernel regression on the trials (an analysis of variance as fANOVA does "
        f"it, not fANOVA's forest). Of trials that it has not seen it predicts "
        f"{max(0.0, found.explained):.0%} of the variance: {trust}.</p>" + plots.bars(found.shares)
    )


def _clips(records: Records, judged: Judged) -> str:
    shown = []
    for trial, result in judged[:BESTS]:
        run = Run.open(records.run_uri(trial))
        try:
            generator = generator_of(run.at(run.path(checkpoint_name(result.step))))
        except (CheckpointError, StorageError):  # pruned since, by a later one that was better
            continue
        classes = generator.classes[:CLIPS]
        labels = (
            list(range(len(classes))) if "class" in generator.conditioner.config.kinds else None
        )
        clips = generator.generate(range(len(classes)), labels)
        images = "".join(
            f'<span><img alt="{escape(name)}" src="{_uri(clip, generator.fps)}">'
            f"{escape(name)}</span>"
            for name, clip in zip(classes, clips, strict=True)
        )
        shown.append(
            f"<figure><div>{images}</div><figcaption>{escape(_tip(records, trial))}, step "
            f"{result.step}</figcaption></figure>"
        )
    return f'<h2>Clips of the best</h2><div class="clips">{"".join(shown)}</div>' if shown else ""


def _table(records: Records) -> str:
    keys, levels = list(records.document["space"]), len(records.document["levels"])
    head = ["trial", records.metric, "step", "level", "$", "state", *map(_short, keys)]
    sign = 1 if records.mode == "min" else -1

    def rank(trial: Trial) -> float:
        best = trial.best(records.mode)
        return math.inf if best is None else sign * best.score

    rows = []
    for trial in sorted(records.trials.values(), key=rank):
        best = trial.best(records.mode)
        cells = [
            trial.title,
            "" if best is None else f"{best.score:.4g}",
            str(trial.results[-1].step if trial.results else 0),
            f"{trial.level}/{levels}",
            f"{trial.dollars:.4f}",
            trial.detail or state_of(trial, levels, False),
            *(brief(trial.values.get(key, "")) for key in keys),
        ]
        body = "".join(f"<td>{escape(cell)}</td>" for cell in cells)
        rows.append(f'<tr data-t="{trial.name}">{body}</tr>')
    names = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    return (
        f'<h2>Trials</h2><div class="wide"><table><thead><tr>{names}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _clip_dollars(records: Records, trial: Trial, result: Result) -> float:
    config = Config.parse(Run.open(records.run_uri(trial)).manifest["config"])
    return clip_dollars(config, result.figures[CLIP_S])


def _tip(records: Records, trial: Trial) -> str:
    best = trial.best(records.mode)
    figure = "" if best is None else f" {records.metric} {best.score:.4g}"
    values = ", ".join(f"{_short(key)} {brief(value)}" for key, value in trial.values.items())
    return f"{trial.title}{figure}: {values}"


def _short(key: str) -> str:
    return key.removeprefix("optim.").removeprefix("model.")


def _uri(clip_THWC: Any, fps: float) -> str:
    scale = max(1, math.floor(SHOWN / clip_THWC.shape[2]))
    data = video.encode_webp(video.enlarge(clip_THWC, min(scale, 2)), fps)
    return f"data:image/webp;base64,{base64.b64encode(data).decode()}"
