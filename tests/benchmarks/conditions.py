"""Whether clips show what was asked for: texts never read in training, and given first frames.

    python -m tests.benchmarks.conditions --minutes 10 --json PATH

On rendered shapes with captions, some combinations of colour, shape and motion are held out of
training. One network learns from captions, another from first frames, each for so many minutes of
CPU time on one thread, without Ray; tests/shapes_judge.py says what the generated clips show, and
first what real ones do.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from raygen import sampling, video
from raygen.conditioning import Conditioner
from raygen.conditions import Condition
from raygen.config import Config
from raygen.data import synthetic
from raygen.draws import Draws
from tests import shapes_judge

HELD_OUT = 14  # of the 68 combinations
CLASSES = synthetic.class_names(68)
CLIPS_PER_CAPTION = 8  # judged
OVERRIDES: dict[str, Any] = {
    "train.zero_stage": 0,
    "train.steps": 1_000_000,
    # Every clip is rendered anew: nothing to remember, and nothing to augment.
    "augment.colour": 0.0,
    "augment.translate": 0.0,
    "augment.cutout": 0.0,
}
# What the README recommends for texts.
TEXTS = {"loss.contrast": 1.0, "conditions.crossed": 0.25}

console = Console()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0, help="of CPU time, each (10)")
    parser.add_argument("--frames", type=int, default=8, help="of a clip (8)")
    parser.add_argument("--size", type=int, default=32, help="of a clip, pixels (32)")
    parser.add_argument("--kinds", default="text,image", help="which to train (text,image)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sheets", type=Path, help="where contact sheets go")
    parser.add_argument("--json", type=Path, help="where the figures go, as one flat object")
    parser.add_argument("overrides", nargs="*", help="key=value, dotted keys")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    seen, unseen = split(arguments.seed)
    rng = np.random.default_rng(arguments.seed + 1)
    shape = {"data.frames": arguments.frames, "data.size": arguments.size}
    flat = {"judge_right": judge_of_the_judge(Config.load("tiny", shape), rng)}
    for kind in arguments.kinds.split(","):
        asked_for = OVERRIDES | shape | {"seed": arguments.seed, "conditions.kinds": [kind]}
        asked_for |= TEXTS if kind == "text" else {}
        config = Config.parse(Config.load("tiny", asked_for).dump(), arguments.overrides)
        generator, steps = train(config, seen, arguments.minutes)
        flat[f"{kind}_steps"] = steps
        found, sheets = (asked if kind == "text" else continued)(generator, config, seen, unseen)
        flat |= found
        if arguments.sheets:
            for name, (clips, labels) in sheets.items():
                video.save(arguments.sheets / f"{name}.png", clips, config.data.fps, labels)
    table = Table("", "")
    for name, value in flat.items():
        table.add_row(name, f"{value:.3g}")
    console.print(table)
    if arguments.json:
        arguments.json.write_text(json.dumps(flat, indent=2) + "\n")


def split(seed: int) -> tuple[list[str], list[str]]:
    """Combinations to learn from, and those held out."""
    order = np.random.default_rng(seed).permutation(len(CLASSES))
    names = [CLASSES[k] for k in order]
    return names[HELD_OUT:], names[:HELD_OUT]


def render(name: str, config: Config, rng: np.random.Generator) -> video.Clips:
    colour, shape, motion = name.split("-")
    way = synthetic.path(motion, config.data.frames, rng)
    return synthetic.render(shape, colour, way, config.data.height, rng)


def judge_of_the_judge(config: Config, rng: np.random.Generator) -> float:
    """The share of rendered clips that are read right."""
    names = [name for name in CLASSES for _ in range(4)]
    right = [shapes_judge.read(render(name, config, rng)) == truth(name) for name in names]
    return float(np.mean(right))


def truth(name: str) -> shapes_judge.Shown:
    return shapes_judge.Shown(*name.split("-"))


def train(config: Config, names: Sequence[str], minutes: float) -> tuple[torch.nn.Module, int]:
    """The averaged generator after so much CPU time, and its steps."""
    from torch import distributed

    from raygen import ranks
    from raygen.engine import Pair
    from raygen.models import build_generator

    if not distributed.is_initialized():
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = str(probe.getsockname()[1])
        os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "DS_ACCELERATOR": "cpu"}
        ranks.join(torch.device("cpu"))
    pair = Pair(config, len(CLASSES), device=torch.device("cpu"), world_size=1)
    make = Conditioner(config.conditions, config.data.size)
    rng, rows = np.random.default_rng(config.seed), slice(0, config.train.batch_size)
    began, step = time.process_time(), 0
    while (spent := (time.process_time() - began) / 60) < minutes:
        drawn = [names[k] for k in rng.integers(len(names), size=config.train.batch_size)]
        clips = np.stack([render(name, config, rng) for name in drawn])
        x_BCTHW = torch.from_numpy(clips).permute(0, 4, 1, 2, 3).float().div_(127.5).sub_(1)
        y_B = conditions(make, drawn, x_BCTHW)
        figures = pair.step(
            [(x_BCTHW, y_B)],
            Draws.at(config, step, rows),
            step=step,
            progress=spent / minutes,
        )
        if step % 50 == 0:
            said = ", ".join(f"{name} {float(value):.3g}" for name, value in figures.items())
            console.print(f"{spent:.1f} min, step {step}: {said}", soft_wrap=True)
        step += 1
    shape = (config.model, config.data, len(CLASSES), config.conditions)
    generator = build_generator(*shape).eval()
    generator.load_state_dict(pair.ema.gather(), strict=False)
    return generator, step


def conditions(make: Conditioner, names: Sequence[str], x_BCTHW: Tensor | None) -> Condition:
    """Of the kinds that the config knows, all that there is to say of clips of `names`."""
    kinds = make.config.kinds
    return make(
        [CLASSES.index(name) if "class" in kinds else None for name in names],
        texts=[synthetic.caption(name) for name in names] if "text" in kinds else None,
        frames=list(x_BCTHW[:, :, 0]) if "image" in kinds and x_BCTHW is not None else None,
    )


Sheets = dict[str, tuple[video.Clips, list[str]]]


def asked(
    generator: torch.nn.Module, config: Config, seen: list[str], unseen: list[str]
) -> tuple[dict[str, float], Sheets]:
    """Captions to clips: the share that shows all that was asked for, and of each part of it."""
    make = Conditioner(config.conditions, config.data.size)
    flat, sheets = {}, {}
    for title, names in (("unseen", unseen), ("seen", seen)):
        wanted = [name for name in names for _ in range(CLIPS_PER_CAPTION)]
        z_ND = sampling.latents(range(len(wanted)), config.model.latent_dim)
        y_N = conditions(make, wanted, None)
        clips = sampling.generate(generator, z_ND, y_N, torch.device("cpu"))
        right_N3 = np.array(
            [
                [a == b for a, b in zip(shapes_judge.read(clip), truth(name), strict=True)]
                for clip, name in zip(clips, wanted, strict=True)
            ]
        )
        flat[f"text_{title}_right"] = float(right_N3.all(1).mean())
        for part, share in zip(shapes_judge.Shown._fields, right_N3.mean(0), strict=True):
            flat[f"text_{title}_{part}"] = float(share)
        rows = slice(None, None, CLIPS_PER_CAPTION)
        sheets[f"text-{title}"] = (clips[rows], wanted[rows])
    return flat, sheets


def continued(
    generator: torch.nn.Module, config: Config, seen: list[str], unseen: list[str]
) -> tuple[dict[str, float], Sheets]:
    """First frames to clips: whether the last frame has the first one's colour and shape.

    Of combinations held out of training as of others: a frame says nothing of the motion.
    """
    make = Conditioner(config.conditions, config.data.size)
    rng = np.random.default_rng(config.seed + 2)
    wanted = [name for name in [*unseen, *seen] for _ in range(2)]
    reals = np.stack([render(name, config, rng) for name in wanted])
    frames = [sampling.to_float(clip[0]) for clip in reals]
    y_N = make([None] * len(wanted), frames=frames)
    z_ND = sampling.latents(range(len(wanted)), config.model.latent_dim)
    clips = sampling.generate(generator, z_ND, y_N, torch.device("cpu"))
    assert np.array_equal(clips[:, 0], reals[:, 0])

    def kept(of: video.Clips) -> float:
        right = [
            shapes_judge.colour_and_shape(clip[k]) == tuple(truth(name)[:2])
            for clip, name in zip(of, wanted, strict=True)
            for k in range(1, len(clip))
        ]
        return float(np.mean(right))

    step = np.abs(np.diff(clips.astype(np.float64), axis=1)).mean()
    of_real = np.abs(np.diff(reals.astype(np.float64), axis=1)).mean()
    flat = {
        "image_colour_shape_kept": kept(clips),
        "image_colour_shape_real": kept(reals),
        "image_motion_over_real": float(step / of_real),
    }
    return flat, {"image": (clips[::4], wanted[::4])}


if __name__ == "__main__":
    main()
