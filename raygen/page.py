"""A judgement as one HTML page that needs nothing else: clips playing beside their nearest.

raygen evaluate RUN --html judgement.html

Clips are animated WebP in data URIs; the page follows the reader's light or dark setting, runs no
script and loads nothing. Shapes: T frames, H, W, C = 3, uint8 0 to 255.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable, Sequence
from html import escape

import numpy as np

from raygen import video
from raygen.evaluate import Findings
from raygen.metrics.classifier import Clips

PER_CLASS = 3  # clips shown of each class, beside those that look copied
MOST = 48  # clips shown
COPIES = 12  # of them, those that look copied
SHOWN = 128  # pixels: smaller clips are enlarged about to this width

STYLE = """
:root { color-scheme: light dark; --ink: #1c1e21; --paper: #fbfbfa; --rule: #d7d8d6;
  --soft: #62666d; --warn: #b3261e; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e6e3; --paper: #16181b; --rule: #363a40; --soft: #9a9fa8; --warn: #ff8a80; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.4rem; overflow-wrap: anywhere; } h2 { font-size: 1.1rem; margin-top: 2.2rem; }
p, caption { color: var(--soft); max-width: 44rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; margin: .6rem 0; }
caption { text-align: left; padding-bottom: .4rem; }
th, td { border-bottom: 1px solid var(--rule); padding: .25rem .9rem .25rem 0; text-align: right;
  font-variant-numeric: tabular-nums; }
th:first-child, td:first-child { text-align: left; }
.clips { display: flex; flex-wrap: wrap; gap: 1.2rem; }
figure { margin: 0; border: 1px solid var(--rule); border-radius: 6px; padding: .5rem; }
figure.copied { border-color: var(--warn); }
figure div { display: flex; gap: .4rem; }
figure span { display: block; font-size: .75rem; color: var(--soft); }
img { display: block; width: 128px; image-rendering: pixelated; }
figcaption { font-size: .8rem; padding-top: .3rem; } .copied figcaption { color: var(--warn); }
"""


def page(findings: Findings) -> str:
    """The whole document."""
    evaluation = findings.evaluation
    title = f"Judged: {findings.title}"
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>",
        f"<h1>{escape(title)}</h1>",
        "<p>Measured beside the real clips of one data set by a judge that was trained on them: "
        "the figures do not compare across data sets, extractors or numbers of clips.</p>",
        _table("What was measured", ["", "generated", "real"], evaluation.rows()),
    ]
    if controls := evaluation.control_rows():
        parts.append(
            _table(
                "What the distances notice: one half of the real clips, spoilt, to the other half. "
                "A figure near that of the untouched clips means that the distance is blind to it.",
                ["real clips", "Fréchet", "kernel"],
                controls,
            )
        )
    accuracies = [(name, f"{share:.3f}") for name, share in evaluation.class_accuracies.items()]
    parts.append(_table("Class accuracy of the generated clips", ["class", "right"], accuracies))
    parts.append(_clips(findings))
    return "\n".join([*parts, "</body></html>"]) + "\n"


def _table(caption: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    body = "\n".join(_row(row, "td") for row in rows)
    return (
        f'<div class="wide"><table><caption>{escape(caption)}</caption>\n'
        f"<thead>{_row(head, 'th')}</thead>\n<tbody>{body}</tbody></table></div>"
    )


def _row(cells: Sequence[str], tag: str) -> str:
    return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"


def _clips(findings: Findings) -> str:
    copied_M = findings.judgement.copied_M
    parts = [
        "<h2>Generated clips beside the nearest real ones</h2>",
        "<p>Nearest in pixels over time shifts and mirror images, and in the extractor's features. "
        "The ratio is the distance to the nearest video over that to the next few: a copy has a "
        "small one, and a red frame.</p>",
    ]
    copies = np.flatnonzero(copied_M)
    copies = copies[np.argsort(findings.judgement.pixels.ratio_M[copies])][:COPIES]
    if len(copies):
        parts += [f"<h2>Copied ({int(copied_M.sum())} of {len(copied_M)})</h2>"]
        parts += [_figures(findings, copies)]
    shown = max(1, min(PER_CLASS, (MOST - COPIES) // len(findings.classes)))
    for label, name in enumerate(findings.classes):
        rows = np.flatnonzero(findings.labels == label)[:shown]
        if len(rows):
            parts += [f"<h2>{escape(name)}</h2>", _figures(findings, rows)]
    return "\n".join(parts)


def _figures(findings: Findings, rows: Iterable[int]) -> str:
    return f'<div class="clips">{"".join(_figure(findings, int(row)) for row in rows)}</div>'


def _figure(findings: Findings, row: int) -> str:
    pixels, features = findings.judgement.pixels, findings.judgement.features
    shown = [
        ("generated", findings.fake[row]),
        ("nearest in pixels", findings.real[pixels.index_M[row]]),
        ("nearest in features", findings.real[features.index_M[row]]),
    ]
    images = "".join(
        f'<span><img alt="{what}" src="{_uri(clip, findings.fps)}">{what}</span>'
        for what, clip in shown
    )
    kind = ' class="copied"' if findings.judgement.copied_M[row] else ""
    caption = (
        f"clip {row}, {findings.classes[findings.labels[row]]}: "
        f"{pixels.distance_M[row]:.1f} grey levels, ratio {pixels.ratio_M[row]:.2f}"
    )
    return f"<figure{kind}><div>{images}</div><figcaption>{escape(caption)}</figcaption></figure>"


def _uri(clip_THWC: Clips, fps: float) -> str:
    scale = max(1, math.floor(SHOWN / clip_THWC.shape[2]))
    data = video.encode_webp(video.enlarge(clip_THWC, min(scale, 2)), fps)
    return f"data:image/webp;base64,{base64.b64encode(data).decode()}"
