"""Augmentation: nothing at strength 0, one draw a clip, differentiable, the same from one seed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from raygen import augment
from raygen.config import AugmentConfig

COLOUR = AugmentConfig(colour=1.0)
TRANSLATE = AugmentConfig(translate=0.25)
CUTOUT = AugmentConfig(cutout=0.5)
ALL = AugmentConfig(colour=1.0, translate=0.25, cutout=0.5)
KINDS = {"colour": COLOUR, "translate": TRANSLATE, "cutout": CUTOUT, "all": ALL}


def clips(count: int = 6, frames: int = 3, size: int = 16) -> Tensor:
    rng = torch.Generator().manual_seed(0)
    return torch.rand(count, 3, frames, size, size, generator=rng) * 2 - 1


def seeded(config: AugmentConfig, count: int = 6, seed: int = 0) -> augment.Draw:
    return augment.draw(config, count, torch.Generator().manual_seed(seed))


def test_strength_zero_is_the_very_same_tensor_and_draws_nothing() -> None:
    rng = torch.Generator().manual_seed(0)
    before = rng.get_state()
    x_BCTHW = clips()
    assert augment.apply(x_BCTHW, augment.draw(AugmentConfig(), 6, rng)) is x_BCTHW
    assert torch.equal(rng.get_state(), before)


@pytest.mark.parametrize("kind", KINDS)
def test_probability_zero_changes_no_clip(kind: str) -> None:
    config = KINDS[kind].model_copy(update={"probability": 0.0})
    torch.testing.assert_close(augment.apply(clips(), seeded(config)), clips())


@pytest.mark.parametrize("kind", KINDS)
def test_probability_is_the_share_of_changed_clips(kind: str) -> None:
    config = KINDS[kind].model_copy(update={"probability": 0.5})
    x_BCTHW = clips(400, frames=1)
    changed_B = (augment.apply(x_BCTHW, seeded(config, 400)) - x_BCTHW).abs().amax(
        (1, 2, 3, 4)
    ) > 1e-5
    # Three independent kinds leave 1/8 of the clips alone.
    assert changed_B.float().mean().item() == pytest.approx(
        0.875 if kind == "all" else 0.5, abs=0.1
    )


@pytest.mark.parametrize("kind", KINDS)
def test_one_draw_a_clip_and_another_for_the_next(kind: str) -> None:
    still_BCTHW = clips()[:1, :, :1].expand(6, 3, 5, 16, 16)
    out_BCTHW = augment.apply(still_BCTHW, seeded(KINDS[kind]))
    assert torch.equal(out_BCTHW, out_BCTHW[:, :, :1].expand_as(out_BCTHW)), "frames differ"
    assert not torch.equal(out_BCTHW[0], out_BCTHW[1])


@pytest.mark.parametrize("kind", KINDS)
def test_the_seed_decides(kind: str) -> None:
    first, again, other = (
        augment.apply(clips(), seeded(KINDS[kind], seed=seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("kind", KINDS)
def test_a_share_of_the_draw_is_the_share_of_the_result(kind: str) -> None:
    draw = seeded(KINDS[kind])
    whole_BCTHW = augment.apply(clips(), draw)
    torch.testing.assert_close(augment.apply(clips()[2:5], draw[2:5]), whole_BCTHW[2:5])


@pytest.mark.parametrize("kind", KINDS)
def test_differentiable(kind: str) -> None:
    x_BCTHW = clips(2, frames=1, size=4).double().requires_grad_()
    draw = seeded(KINDS[kind], 2)
    assert torch.autograd.gradcheck(lambda x: augment.apply(x, draw), x_BCTHW)
    assert torch.autograd.gradgradcheck(lambda x: augment.apply(x, draw).square(), x_BCTHW)


def test_colour_keeps_hue() -> None:
    # Brightness and contrast act on the three channels alike: their differences keep their ratio.
    x_BCTHW, out_BCTHW = clips(), augment.apply(clips(), seeded(COLOUR))
    red_green = (x_BCTHW[:, 0] - x_BCTHW[:, 1], out_BCTHW[:, 0] - out_BCTHW[:, 1])
    green_blue = (x_BCTHW[:, 1] - x_BCTHW[:, 2], out_BCTHW[:, 1] - out_BCTHW[:, 2])
    torch.testing.assert_close(red_green[0] * green_blue[1], red_green[1] * green_blue[0])
    ratio_B = (out_BCTHW.std((1, 2, 3, 4)) / x_BCTHW.std((1, 2, 3, 4))).tolist()
    assert 0.5 <= min(ratio_B) < max(ratio_B) <= 1.5


def test_translation_shifts_whole_pixels_and_repeats_the_edge() -> None:
    x_BCTHW = clips(1)
    down_right = augment.Draw(None, None, torch.tensor([[2 / 16, -3 / 16]]), None)
    out_BCTHW = augment.apply(x_BCTHW, down_right)
    assert torch.equal(out_BCTHW[..., 2:, :13], x_BCTHW[..., :14, 3:])
    assert torch.equal(out_BCTHW[..., 0, :13], x_BCTHW[..., 0, 3:])
    assert torch.equal(out_BCTHW[..., 2:, 15], x_BCTHW[..., :14, 15])


def test_translation_stays_within_its_strength() -> None:
    shift_B2 = seeded(AugmentConfig(translate=0.125), 500).shift_B2
    assert shift_B2 is not None
    assert 0.12 < shift_B2.abs().max() <= 0.125
    assert abs(shift_B2.mean()) < 0.01


def test_cutout_erases_one_square_box() -> None:
    box = augment.Draw(None, None, None, torch.tensor([[0.5, 0.25, 0.5], [0.5, 0.5, 0.0]]))
    out_BCTHW = augment.apply(torch.ones(2, 3, 2, 16, 16), box)
    expected_HW = torch.ones(16, 16)
    expected_HW[4:12, 0:8] = 0
    assert torch.equal(out_BCTHW[0], expected_HW.expand(3, 2, 16, 16))
    assert torch.equal(out_BCTHW[1], torch.ones(3, 2, 16, 16))
