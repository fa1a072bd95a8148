"""A generator for tests.benchmarks.serve that draws shapes, after a minute or two.

    export_fitted("small", folder, seconds=90)      # the folder of an export

What random weights draw is noise, which takes a video encoder longer than any clip does. Here a
preset's network learns one rendered clip a class by its mean squared error: no generator that
anybody wants, but its clips are as hard to encode as those of one.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from torch import nn

from raygen import sampling
from raygen.conditioning import Conditioner
from raygen.config import Config
from raygen.data import synthetic
from raygen.export import export_run
from raygen.models import build_generator
from tests.small_runs import CLASSES, run_of

SHAPES = ("red-circle-right", "green-square-left", "blue-triangle-up")
COPIES = 2  # of each clip in a step, from other latents
RATE = 1e-3
TENTS = {1: (1.0,), 4: (0.25, 0.75, 0.75, 0.25)}  # what interpolates, by the size of a kernel
LATENT = 0.1  # of the weight of latents, which are noise to what is to be learnt

console = Console()


def export_fitted(preset: str, folder: Path, seconds: float) -> str:
    """An export of a preset's generator after so many seconds of learning."""
    overrides = {"name": preset, "storage": str(folder / "runs"), "data.uri": "s3://clips/none"}
    config = Config.load(preset, overrides)
    export_run(run_of(config, generator=fit(config, seconds)), str(folder / "export"))
    return str(folder / "export")


def fit(config: Config, seconds: float) -> nn.Module:
    """The generator of a class for each of SHAPES, one clip of which it has learnt."""
    torch.manual_seed(0)
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    generator = build_generator(config.model, config.data, len(CLASSES), config.conditions)
    _smooth(generator, config.model.latent_dim)
    make = Conditioner(config.conditions, config.data.size)
    labels = list(range(len(CLASSES))) * COPIES
    y_B = make(labels)
    x_BCTHW = torch.stack([_rendered(config, SHAPES[label]) for label in labels])
    optimizer = torch.optim.Adam(generator.parameters(), RATE, betas=(0.9, 0.99))
    start, step, loss = time.monotonic(), 0, torch.zeros(())
    while (spent := (time.monotonic() - start) / seconds) < 1:
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1.0, 2 * (1 - spent))
        seeds = range(step * len(labels), (step + 1) * len(labels))
        z_BD = sampling.latents(seeds, config.model.latent_dim)
        with torch.autocast("cpu", torch.bfloat16):
            made_BCTHW = generator(z_BD, y_B)
        loss = (made_BCTHW.float() - x_BCTHW).square().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        step += 1
    console.print(f"{step} steps of learning: mean squared error {loss.item():.3f}")
    return generator.eval()


@torch.no_grad()
def _smooth(generator: nn.Module, latent_dim: int) -> None:
    """Random weights that learn sooner: transposed convolutions interpolate, and latents whisper.

    From torch's own, checkerboards are what takes longest to unlearn.
    """
    if isinstance(project := getattr(generator, "project", None), nn.Linear):
        project.weight[:, :latent_dim] *= LATENT
    for part in generator.modules():
        if isinstance(part, nn.ConvTranspose3d) and {*part.kernel_size} <= TENTS.keys():
            t, h, w = (torch.tensor(TENTS[size]) for size in part.kernel_size)
            tent_THW = t[:, None, None] * h[:, None] * w
            random_IO = torch.randn(part.weight.shape[:2]) * part.in_channels**-0.5
            part.weight.copy_(random_IO[:, :, None, None, None] * tent_THW)


def _rendered(config: Config, name: str) -> torch.Tensor:
    """A clip of that colour, shape and motion as networks see it: [3, T, H, W] in [-1, 1]."""
    random = np.random.default_rng(0)
    colour, shape, motion = name.split("-")
    way = synthetic.path(motion, config.data.frames, random)
    clip_THWC = synthetic.render(shape, colour, way, config.data.height, random)
    return torch.from_numpy(clip_THWC).permute(3, 0, 1, 2).float().div_(127.5).sub_(1)
