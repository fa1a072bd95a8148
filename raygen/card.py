"""The model card of an export: what it is, how it was made, what it is worth and not for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from raygen import __version__
from raygen.config import KINDS, ConditionsConfig
from raygen.exported import network
from raygen.metrics import Evaluation
from raygen.models import parameter_count
from raygen.runs import Run
from raygen.sides import in_full

DIGEST_DIGITS = 12
KIND_WORDS = {
    "class": "a class",
    "text": "a text",
    "image": "a first frame",
    "vector": "a vector",
}


def card(run: Run, document: Mapping[str, Any]) -> str:
    """Markdown for the export of `run` that `document`, its config.json, describes."""
    config, data, status = run.config, run.data, document["status"]
    digest = document["sha256"][:DIGEST_DIGITS]
    parameters = parameter_count(network(document))
    by, arguments, query = _asked_by(config.conditions, run.classes[0])
    return f"""---
library_name: raygen
tags: [video-generation, gan, {config.model.kind}]
---
# {config.name}

A generator of short video clips, conditional on {by}: {config.data.frames} frames of \
{in_full(config.data.size)} pixels at {config.data.fps:g} frames per second. \
Family `{config.model.kind}`{_base(document)}, {parameters / 1e6:.2f} M parameters, \
weights {digest}, trained by raygen {__version__}.

**Classes:** {", ".join(f"`{name}`" for name in run.classes)}

## Use
```
raygen generate THIS_FOLDER {arguments}--seed 7 --n 4 -o out.mp4
serve run serve.app:app export=THIS_FOLDER      # then GET /v1/models/best/clips/7{query}
```
The same seed and conditions give the same clip.

## Training
| | |
|---|---|
| data | {data["uri"]}, {data["clips"]} clips, digest `{data["digest"]}` |
| steps | {status["step"]}, {status["clips_seen"]} clips seen |
| time | {status["elapsed_s"] / 60:.1f} minutes |
| workers | {config.train.workers}, on nodes of type {config.train.node} |
| cost | ${status["dollars"]:.4f} |
| seed | {config.seed} |

## Evaluation
{_metrics_table(document["evaluation"])}

## Intended use and limits
It draws clips like those it was trained on, and nothing else: for research, for tests of video \
pipelines, for augmentation of the same data. It has no notion of what is true: do not pass its \
clips off as recordings, and mark them as generated where you publish them.

**Privacy.** A network trained on few clips remembers some of them. If people can be recognised in \
the training clips, expect them to be recognisable in what it generates, and ask them, or the \
holder of the rights, before you share this model.
"""


def _base(document: Mapping[str, Any]) -> str:
    """Of a cascade, what its stage enlarges."""
    if "base" not in document:
        return ""
    base = document["base"]
    size, digest = in_full(base["data"]["size"]), base["sha256"][:DIGEST_DIGITS]
    return f" on the clips of {size} pixels of `{base['name']}` ({base['model']['kind']}, {digest})"


def _asked_by(config: ConditionsConfig, class_name: str) -> tuple[str, str, str]:
    """What the model takes, in words; the same as arguments of the command, and as a query."""
    words = [KIND_WORDS[kind] for kind in KINDS if kind in config.kinds]
    by = " and ".join([", ".join(words[:-1]), words[-1]] if words[1:] else words)
    if config.optional:
        by += ", each of which may be left out" if words[1:] else ", which may be left out"
    options = {
        "class": f"--class {class_name} ",
        "text": '--text "..." ',
        "image": "--image F.png ",
    }
    arguments = "".join(options.get(kind, "--vector F.npy ") for kind in config.kinds)
    queries = {"class": f"class={class_name}", "text": "text=..."}
    asked = "&".join(queries[kind] for kind in config.kinds if kind in queries)
    return by, arguments, f"?{asked}" if asked else ""


def _metrics_table(evaluation: Mapping[str, Any] | None) -> str:
    if evaluation is None:
        return "Not evaluated: `raygen evaluate RUN`, then export again."
    rows = "\n".join(f"| {' | '.join(row)} |" for row in Evaluation.from_dict(evaluation).rows())
    return f"| | generated | real |\n|---|---|---|\n{rows}\n\nDo not compare across data sets."
