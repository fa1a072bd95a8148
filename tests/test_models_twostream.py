from __future__ import annotations

import pytest
import torch

from raygen.config import Config
from raygen.models import build_generator
from raygen.models.twostream import Level, TwoStreamGenerator, low_pass

CONFIG = Config.load("tiny", {"model.kind": "twostream", "model.generator_width": 4})


@pytest.fixture
def generator() -> TwoStreamGenerator:
    torch.manual_seed(0)
    built = build_generator(CONFIG.model, CONFIG.data, 2)
    assert isinstance(built, TwoStreamGenerator)
    return built


def drawn(generator: TwoStreamGenerator) -> torch.Tensor:
    with torch.no_grad():
        clips: torch.Tensor = generator(
            torch.randn(3, CONFIG.model.latent_dim), torch.tensor([0, 1, 1])
        )
    return clips


@pytest.mark.parametrize("axis", [2, 3, 4])
@pytest.mark.parametrize("length", [2, 7, 16])
def test_what_alternates_goes_and_what_is_smooth_stays(axis: int, length: int) -> None:
    shape = [1, 1, 1, 1, 1]
    shape[axis] = length
    alternating = torch.arange(length).remainder(2).mul(2).sub(1).float().view(shape)
    whole = alternating.expand(2, 3, *(n if n > 1 else 6 for n in shape[2:])).contiguous()
    torch.testing.assert_close(low_pass(whole), torch.zeros_like(whole))
    torch.testing.assert_close(low_pass(torch.full_like(whole, 0.3)), torch.full_like(whole, 0.3))


def test_a_single_frame_passes_in_time() -> None:
    wave = torch.cos(torch.arange(29) * torch.pi / 2).expand(1, 1, 1, 29, 29)
    torch.testing.assert_close(low_pass(wave), 0.875 * wave)


def test_nothing_moves_without_a_foreground(generator: TwoStreamGenerator) -> None:
    assert drawn(generator).diff(dim=2).abs().max() > 1e-3
    last = generator.foreground.levels[-1]
    assert isinstance(last, Level)
    assert last.up.bias is not None
    with torch.no_grad():
        last.up.bias[-1] = -50  # the mask's
    still = drawn(generator)
    assert still.diff(dim=2).abs().max() == 0
    assert (still[0] - still[1]).abs().mean() > 1e-3


def test_the_latent_is_heard_at_every_level(generator: TwoStreamGenerator) -> None:
    style = torch.randn(2, CONFIG.model.latent_dim + CONFIG.model.class_dim)
    for level in [*generator.foreground.levels, *generator.background.levels]:
        assert isinstance(level, Level)
        x = torch.randn(1, level.up.in_channels, 2, 4, 4).expand(2, -1, -1, -1, -1)
        one, other = level(x, style)
        assert (one - other).abs().mean() > 0.1 * one.abs().mean()
