"""What the presets come to, as README.md says it, and a step of each."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from raygen.config import Config, presets
from raygen.draws import Draws
from raygen.models.size import size_of
from tests.plain_pair import PlainPair
from tests.test_models import narrow

README = Path(__file__).parents[1] / "README.md"
ON_META = ("base", "large", "small")


def readme_rows() -> dict[str, list[str]]:
    """Name to cells of the README's table of presets."""
    table = README.read_text().split("<!-- presets -->")[1]
    rows = [
        [c.strip() for c in r.strip("|").split("|")] for r in re.findall(r"^\|.*$", table, re.M)
    ]
    return {row[0].strip("`"): row[1:] for row in rows[2:]}


def test_the_readme_lists_all_presets() -> None:
    assert sorted(readme_rows()) == presets()


@pytest.mark.parametrize("preset", presets())
def test_sizes_of_the_presets(preset: str) -> None:
    config = Config.load(preset)
    data, size = config.data, size_of(config)
    assert readme_rows()[preset] == [
        f"{data.frames}x{data.height}x{data.width}",
        f"`{config.model.kind}`",
        f"{size.generator_parameters:,}",
        f"{size.critic_parameters:,}",
        f"{size.generator_flops / 1e9:.3g}",
        f"{size.critic_flops / 1e9:.3g}",
    ]


def test_flops_are_counted_as_by_hand() -> None:
    # A fully connected network: two for every weight of its matrices.
    config = narrow("mlp")
    pixels, units = 3 * 8 * 16 * 16, 8
    size = size_of(config)
    assert size.generator_flops == 2 * (32 * units + units * units + units * pixels)
    assert size.critic_flops == 2 * (pixels * 2 * units + units * 16 + 16)


def step_of(config: Config, device: torch.device) -> None:
    """The plain loop's step of two clips, with R1 and R2 where the config has them."""
    config = Config.parse(config.dump(), {"train.batch_size": 2, "train.micro_batch": None})
    with device:
        pair = PlainPair(config, 4, device)
        shape = (2, 3, config.data.frames, config.data.height, config.data.width)
        batch = (torch.zeros(shape), torch.zeros(2, dtype=torch.int64))
    pair.step([batch], Draws.at(config, 0, slice(0, 2)), step=0, progress=0.0)
    for network in (pair.generator, pair.critic):
        assert all(p.grad is not None for p in network.parameters())


@pytest.mark.parametrize("preset", presets())
def test_a_step_of_every_preset(preset: str) -> None:
    # The meta device has shapes alone: what is large needs neither memory nor time. It draws no
    # noise, which small clips have.
    less = {"data.size": 64, "data.frames": 4} if preset == "superres" else {}
    step_of(Config.load(preset, less), torch.device("meta" if preset in ON_META else "cpu"))


@pytest.mark.parametrize("kind", ["residual", "triplane"])
def test_a_step_of_the_new_families_at_base(kind: str) -> None:
    """Shapes agree at 128 pixels too, through both networks and the second derivative."""
    step_of(Config.load("base", {"model.kind": kind}), torch.device("meta"))
