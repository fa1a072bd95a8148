"""What is said of a clip's motion: by hand, in the right order, clip by clip, differentiable."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from raygen import temporal

FLOOR = 2 / 255


def moving_square(speed: int = 1, frames: int = 8, size: int = 32) -> Tensor:
    """A clip [1, 3, T, H, W] of a textured square that moves to the right."""
    rng = torch.Generator().manual_seed(0)
    texture_C66 = torch.rand(3, 6, 6, generator=rng) + 0.2
    x_BCTHW = torch.full((1, 3, frames, size, size), -0.5)
    for t in range(frames):
        left = 4 + speed * t
        x_BCTHW[0, :, t, 12:18, left : left + 6] = texture_C66
    return x_BCTHW


def grain(x_BCTHW: Tensor, strength: float = 0.2) -> Tensor:
    rng = torch.Generator().manual_seed(1)
    return x_BCTHW + strength * torch.randn(x_BCTHW.shape, generator=rng)


def test_roughness_by_hand() -> None:
    # x = t^2 / 10 everywhere has the second difference 0.2, at every scale.
    square_T = torch.arange(5.0).square() / 10
    x_BCTHW = square_T.view(1, 1, 5, 1, 1).expand(2, 3, 5, 16, 16)
    expected_BK = torch.full((2, 3), math.log(0.2 + FLOOR))
    torch.testing.assert_close(temporal.roughness(x_BCTHW), expected_BK)


def test_uniform_motion_and_standing_still_are_not_rough() -> None:
    ramp_T = torch.linspace(-1, 1, 6)
    x_BCTHW = ramp_T.view(1, 1, 6, 1, 1).expand(1, 3, 6, 16, 16)
    torch.testing.assert_close(temporal.roughness(x_BCTHW), torch.full((1, 3), math.log(FLOOR)))


def test_grain_is_rough_at_the_finest_scale_above_all() -> None:
    smooth_BCTHW = moving_square()
    rise_BK = temporal.roughness(grain(smooth_BCTHW)) - temporal.roughness(smooth_BCTHW)
    fine, middle, coarse = rise_BK[0].tolist()
    assert fine > middle > coarse > 0


def test_a_frame_explains_what_has_moved_no_further_than_the_reach() -> None:
    still, near, grainy = (
        temporal.unexplained(x_BCTHW).item()
        for x_BCTHW in (moving_square(0), moving_square(1), grain(moving_square(1)))
    )
    assert near == pytest.approx(still, abs=0.5)
    assert grainy > near + 3
    # Two pixels are within reach of the matching, five are not.
    within, beyond = (temporal.unexplained(moving_square(v, 4)).item() for v in (2, 5))
    assert beyond > within + 3


def test_a_frame_that_nothing_resembles_is_unexplained_by_all_of_its_difference() -> None:
    # Black after white: every candidate is off by 2, squared.
    x_BCTHW = torch.tensor([1.0, -1.0]).view(1, 1, 2, 1, 1).expand(1, 3, 2, 32, 32)
    expected = math.log(4 + FLOOR**2)
    assert temporal.unexplained(x_BCTHW).item() == pytest.approx(expected, rel=1e-5)


def test_large_frames_are_compared_at_32_pixels() -> None:
    small_BCTHW = moving_square()
    large_BCTHW = small_BCTHW.repeat_interleave(4, 3).repeat_interleave(4, 4)
    torch.testing.assert_close(temporal.unexplained(large_BCTHW), temporal.unexplained(small_BCTHW))


def test_each_clip_is_judged_alone() -> None:
    clips_BCTHW = torch.cat([moving_square(1), grain(moving_square(2)), moving_square(0)])
    for measure in (temporal.roughness, temporal.unexplained):
        alone_BK = torch.cat([measure(clip_BCTHW) for clip_BCTHW in clips_BCTHW.split(1)])
        torch.testing.assert_close(measure(clips_BCTHW), alone_BK)


def test_differentiable() -> None:
    rng = torch.Generator().manual_seed(0)
    x_BCTHW = torch.randn(2, 3, 3, 4, 4, generator=rng, dtype=torch.float64, requires_grad=True)
    for measure in (temporal.roughness, temporal.unexplained):
        assert torch.autograd.gradcheck(measure, x_BCTHW)
