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
SATURATION = AugmentConfig(saturation=0.9)
ALL = AugmentConfig(colour=1.0, translate=0.25, cutout=0.5, saturation=0.9)
KINDS = {
    "colour": COLOUR,
    "translate": TRANSLATE,
    "cutout": CUTOUT,
    "saturation": SATURATION,
    "all": ALL,
}


def clips(count: int = 6, frames: int = 3, size: int = 16) -> Tensor:
    rng = torch.Generator().manual_seed(0)
    return torch.rand(count, 3, frames, size, size, generator=rng) * 2 - 1


def seeded(config: AugmentConfig, count: int = 6, seed: int = 0) -> augment.Draw:
    return augment.draw(config, count, torch.Generator().manual_seed(seed))


def test_strength_zero_is_the_very_same_tensor_and_draws_nothing() -> None:
    rng = torch.Generator().manual_seed(0)
    before = rng.get_state()
    x_BCTHW = clips()
    assert augment.apply(x_BCTHW, augment.draw(AugmentConfig(), 6, rng), 1.0) is x_BCTHW
    assert torch.equal(rng.get_state(), before)


@pytest.mark.parametrize("kind", KINDS)
def test_probability_zero_changes_no_clip(kind: str) -> None:
    torch.testing.assert_close(augment.apply(clips(), seeded(KINDS[kind]), 0.0), clips())


@pytest.mark.parametrize("kind", KINDS)
def test_probability_is_the_share_of_changed_clips(kind: str) -> None:
    x_BCTHW, draw = clips(400, frames=1), seeded(KINDS[kind], 400)
    changed_B = (augment.apply(x_BCTHW, draw, 0.5) - x_BCTHW).abs().amax((1, 2, 3, 4)) > 1e-5
    # Four independent kinds leave 1/16 of the clips alone.
    assert changed_B.float().mean().item() == pytest.approx(
        0.9375 if kind == "all" else 0.5, abs=0.1
    )
    # On a device a probability is a tensor, or every step would wait for it.
    as_tensor_BCTHW = augment.apply(x_BCTHW, draw, torch.tensor(0.5, dtype=torch.float64))
    assert torch.equal(as_tensor_BCTHW, augment.apply(x_BCTHW, draw, 0.5))


@pytest.mark.parametrize("kind", KINDS)
def test_one_draw_a_clip_and_another_for_the_next(kind: str) -> None:
    still_BCTHW = clips()[:1, :, :1].expand(6, 3, 5, 16, 16)
    out_BCTHW = augment.apply(still_BCTHW, seeded(KINDS[kind]), 1.0)
    assert torch.equal(out_BCTHW, out_BCTHW[:, :, :1].expand_as(out_BCTHW)), "frames differ"
    assert not torch.equal(out_BCTHW[0], out_BCTHW[1])


@pytest.mark.parametrize("kind", KINDS)
def test_the_seed_decides(kind: str) -> None:
    first, again, other = (
        augment.apply(clips(), seeded(KINDS[kind], seed=seed), 1.0) for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("kind", KINDS)
def test_a_share_of_the_draw_is_the_share_of_the_result(kind: str) -> None:
    draw = seeded(KINDS[kind])
    whole_BCTHW = augment.apply(clips(), draw, 1.0)
    torch.testing.assert_close(augment.apply(clips()[2:5], draw[2:5], 1.0), whole_BCTHW[2:5])


@pytest.mark.parametrize("kind", KINDS)
def test_differentiable(kind: str) -> None:
    x_BCTHW = clips(2, frames=1, size=4).double().requires_grad_()
    draw = seeded(KINDS[kind], 2)
    assert torch.autograd.gradcheck(lambda x: augment.apply(x, draw, 1.0), x_BCTHW)
    assert torch.autograd.gradgradcheck(lambda x: augment.apply(x, draw, 1.0).square(), x_BCTHW)


@pytest.mark.parametrize("kind", ["colour", "saturation"])
def test_hue_is_kept(kind: str) -> None:
    # What acts on the three channels alike, or on their distance from their mean, keeps the ratio
    # of their differences.
    x_BCTHW, out_BCTHW = clips(), augment.apply(clips(), seeded(KINDS[kind]), 1.0)
    red_green = (x_BCTHW[:, 0] - x_BCTHW[:, 1], out_BCTHW[:, 0] - out_BCTHW[:, 1])
    green_blue = (x_BCTHW[:, 1] - x_BCTHW[:, 2], out_BCTHW[:, 1] - out_BCTHW[:, 2])
    torch.testing.assert_close(red_green[0] * green_blue[1], red_green[1] * green_blue[0])
    signs = (red_green[0].sign(), red_green[1].sign())
    assert torch.equal(*signs), "no colour turns into its opposite"


def test_contrast_stays_within_its_strength() -> None:
    x_BCTHW, out_BCTHW = clips(), augment.apply(clips(), seeded(COLOUR), 1.0)
    ratio_B = (out_BCTHW.std((1, 2, 3, 4)) / x_BCTHW.std((1, 2, 3, 4))).tolist()
    assert 0.5 <= min(ratio_B) < max(ratio_B) <= 1.5


def test_saturation_by_hand() -> None:
    draw = augment.Draw(None, None, None, torch.tensor([[0.0, -0.5], [0.0, 1.0]]))
    red_BCTHW = torch.tensor([0.6, -0.3, 0.0]).view(1, 3, 1, 1, 1).expand(2, 3, 1, 1, 1)
    out_BC = augment.apply(red_BCTHW, draw, 1.0).flatten(1)
    # About the grey of mean 0.1: half as far from it, and twice as far.
    expected_BC = torch.tensor([[0.35, -0.1, 0.05], [1.1, -0.7, -0.1]])
    torch.testing.assert_close(out_BC, expected_BC)


def test_translation_shifts_whole_pixels_and_repeats_the_edge() -> None:
    x_BCTHW = clips(1)
    down_right = augment.Draw(None, torch.tensor([[0.0, 2 / 16, -3 / 16]]), None, None)
    out_BCTHW = augment.apply(x_BCTHW, down_right, 1.0)
    assert torch.equal(out_BCTHW[..., 2:, :13], x_BCTHW[..., :14, 3:])
    assert torch.equal(out_BCTHW[..., 0, :13], x_BCTHW[..., 0, 3:])
    assert torch.equal(out_BCTHW[..., 2:, 15], x_BCTHW[..., :14, 15])


def test_translation_stays_within_its_strength() -> None:
    shift_B3 = seeded(AugmentConfig(translate=0.125), 500).shift_B3
    assert shift_B3 is not None
    shift_B2 = shift_B3[:, 1:]
    assert 0.12 < shift_B2.abs().max() <= 0.125
    assert abs(shift_B2.mean()) < 0.01


def test_cutout_erases_one_square_box() -> None:
    drawn_B4 = torch.tensor([[0.3, 0.5, 0.25, 0.5], [0.7, 0.5, 0.5, 0.5]])
    box = augment.Draw(None, None, drawn_B4, None)
    out_BCTHW = augment.apply(torch.ones(2, 3, 2, 16, 16), box, 0.5)
    expected_HW = torch.ones(16, 16)
    expected_HW[4:12, 0:8] = 0
    assert torch.equal(out_BCTHW[0], expected_HW.expand(3, 2, 16, 16))
    assert torch.equal(out_BCTHW[1], torch.ones(3, 2, 16, 16))


@pytest.mark.parametrize(
    ("sure", "after"), [(1.0, 0.6), (0.61, 0.6), (0.6, 0.5), (0.59, 0.4), (-1.0, 0.4)]
)
def test_the_probability_rises_where_the_critic_is_sure_of_real_clips(
    sure: float, after: float
) -> None:
    before, sureness = (torch.tensor(value, dtype=torch.float64) for value in (0.5, sure))
    moved = augment.adapted(before, sureness, target=0.6, most=1.0, by=0.1)
    assert moved.item() == pytest.approx(after)


def test_the_probability_stays_between_nothing_and_the_most() -> None:
    for sure, end in ((1.0, 0.3), (-1.0, 0.0)):
        probability = torch.tensor(0.15, dtype=torch.float64)
        for _ in range(9):
            probability = augment.adapted(
                probability, torch.tensor(sure), target=0.6, most=0.3, by=0.04
            )
        assert probability.item() == pytest.approx(end)
