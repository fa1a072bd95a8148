"""Losses against the equations written out by hand, the penalty against known gradients."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from raygen.config import DataConfig, StridedConfig
from raygen.losses import (
    LossKind,
    cosine,
    critic_loss,
    difference_penalty,
    generator_loss,
    gradient_penalty,
    lecam,
    margin,
    mean_gap,
    scheduled,
)
from raygen.models import build_critic

REAL = [0.3, -1.2, 2.0]
FAKE = [-0.5, 0.7, 1.1]


def softplus(t: float) -> float:
    return math.log1p(math.exp(t))


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


EXPECTED = {
    ("relativistic", critic_loss): mean([softplus(f - r) for r, f in zip(REAL, FAKE, strict=True)]),
    ("relativistic", generator_loss): mean(
        [softplus(r - f) for r, f in zip(REAL, FAKE, strict=True)]
    ),
    ("bce", critic_loss): mean(
        [softplus(-r) + softplus(f) for r, f in zip(REAL, FAKE, strict=True)]
    ),
    ("bce", generator_loss): mean([softplus(-f) for f in FAKE]),
    # By hand: reals lack 0.7, 2.2 and 0 to the margin, fakes 0.5, 1.7 and 2.1.
    ("hinge", critic_loss): (0.7 + 2.2 + 0.0 + 0.5 + 1.7 + 2.1) / 3,
    ("hinge", generator_loss): -(-0.5 + 0.7 + 1.1) / 3,
}


@pytest.mark.parametrize(("kind", "loss"), EXPECTED)
def test_against_the_equations(kind: LossKind, loss: Callable[..., Tensor]) -> None:
    value = loss(kind, torch.tensor(REAL), torch.tensor(FAKE))
    assert value.shape == ()
    assert value.item() == pytest.approx(EXPECTED[kind, loss], rel=1e-6)


@pytest.mark.parametrize(("kind", "loss"), EXPECTED)
def test_gradients(kind: LossKind, loss: Callable[..., Tensor]) -> None:
    logits = [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (REAL, FAKE)]
    assert torch.autograd.gradcheck(lambda real_B, fake_B: loss(kind, real_B, fake_B), logits)


def test_huge_logits_stay_finite() -> None:
    far_B = torch.tensor([1e4, -1e4])
    kinds: tuple[LossKind, ...] = ("relativistic", "bce", "hinge")
    for kind in kinds:
        assert critic_loss(kind, far_B, -far_B).isfinite()
        assert generator_loss(kind, far_B, -far_B).isfinite()


def test_the_margin_is_of_the_pair_or_of_the_logit() -> None:
    logits = torch.tensor(REAL), torch.tensor(FAKE)
    assert margin("relativistic", *logits).tolist() == pytest.approx([0.8, -1.9, 0.9])
    assert (
        margin("bce", *logits).tolist() == margin("hinge", *logits).tolist() == logits[0].tolist()
    )


def test_lecam_by_hand_and_by_its_gradient() -> None:
    logits = [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (REAL, FAKE)]
    anchors = torch.tensor(1.0, dtype=torch.float64), torch.tensor(-2.0, dtype=torch.float64)
    # Reals to the fakes' anchor, -2, and fakes to the reals', 1.
    expected = mean([(r + 2) ** 2 for r in REAL]) + mean([(f - 1) ** 2 for f in FAKE])
    assert lecam(logits[0], logits[1], *anchors).item() == pytest.approx(expected)
    assert torch.autograd.gradcheck(lambda r, f: lecam(r, f, *anchors), logits)


def test_the_gap_of_means_has_the_gradient_of_half_its_square() -> None:
    fake_BK = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    real_mean_K = torch.randn(3, dtype=torch.float64)
    (fake_BK.mean(0) - real_mean_K).square().sum().div(2).backward()
    assert fake_BK.grad is not None
    expected_BK, fake_BK.grad = fake_BK.grad, None
    whole = mean_gap(fake_BK, fake_BK.mean(0).detach(), real_mean_K)
    whole.backward()
    torch.testing.assert_close(fake_BK.grad, expected_BK)
    torch.testing.assert_close(whole, (fake_BK.mean(0) - real_mean_K).square().sum() / 2)


def test_the_gap_of_means_is_that_of_its_micro_batches() -> None:
    fake_BK, means = torch.randn(6, 3, requires_grad=True), (torch.zeros(3), torch.ones(3))
    whole = torch.autograd.grad(mean_gap(fake_BK, *means), fake_BK)
    parts = torch.stack([mean_gap(part_BK, *means) for part_BK in fake_BK.split(2)]).mean()
    torch.testing.assert_close(whole, torch.autograd.grad(parts, fake_BK))


def test_the_penalty_of_a_linear_critic_is_its_squared_norm() -> None:
    weight_CTHW = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(0))

    def critic(x_BCTHW: Tensor, y_B: Tensor) -> Tensor:
        return (x_BCTHW * weight_CTHW).sum((1, 2, 3, 4)) * y_B

    y_B = torch.tensor([1.0, 2.0, 0.0])
    penalty = gradient_penalty(critic, torch.randn(3, 3, 2, 4, 4), y_B)
    # Clip b's gradient is y_b * weight: the mean of y^2 is 5/3.
    assert penalty.item() == pytest.approx(5 / 3 * weight_CTHW.square().sum().item(), rel=1e-5)


def test_the_penalty_against_finite_differences() -> None:
    rng = torch.Generator().manual_seed(0)
    weight = torch.randn(6, 3 * 2 * 4 * 4, generator=rng, dtype=torch.float64)

    def critic(x_BCTHW: Tensor, y_B: Tensor) -> Tensor:
        return torch.tanh(x_BCTHW.flatten(1) @ weight.T / 5).square().sum(1)

    x_BCTHW = torch.randn(2, 3, 2, 4, 4, generator=rng, dtype=torch.float64)
    y_B = torch.zeros(2, dtype=torch.int64)
    step, squares = 1e-6, torch.zeros(2, dtype=torch.float64)
    for index in range(x_BCTHW[0].numel()):
        nudge = torch.zeros_like(x_BCTHW).flatten(1)
        nudge[:, index] = step
        nudge_BCTHW = nudge.view_as(x_BCTHW)
        slope_B = (critic(x_BCTHW + nudge_BCTHW, y_B) - critic(x_BCTHW - nudge_BCTHW, y_B)) / (
            2 * step
        )
        squares += slope_B.square()
    assert gradient_penalty(critic, x_BCTHW, y_B).item() == pytest.approx(
        squares.mean().item(), rel=1e-6
    )


def test_r1_and_r2_of_a_critic_against_finite_differences() -> None:
    """In float64 and with a weight of its own: the value, and its slope along the weights."""
    model, data = StridedConfig(critic_width=4, class_dim=4), DataConfig(frames=4, size=16)
    torch.manual_seed(0)
    critic = build_critic(model, data, 3).double()
    x_BCTHW = torch.rand(1, 3, 4, 16, 16, dtype=torch.float64) * 2 - 1
    y_B, weight_B = torch.tensor([2]), torch.tensor([0.25], dtype=torch.float64)

    def penalty() -> Tensor:
        return gradient_penalty(critic, x_BCTHW, y_B, weight_B)

    step, squares = 1e-6, 0.0
    with torch.no_grad():
        for nudge_NF in (step * torch.eye(x_BCTHW[0].numel())).split(256):
            nudge_NCTHW, y_N = nudge_NF.double().view(-1, *x_BCTHW.shape[1:]), y_B.repeat(256)
            rise_N = critic(x_BCTHW + nudge_NCTHW, y_N) - critic(x_BCTHW - nudge_NCTHW, y_N)
            squares += (rise_N / (2 * step)).square().sum().item()
    assert penalty().item() == pytest.approx(0.25 * squares, rel=1e-6)

    weights = torch.nn.utils.parameters_to_vector(critic.parameters()).detach()
    slopes = torch.autograd.grad(
        penalty(), list(critic.parameters()), allow_unused=True, materialize_grads=True
    )
    direction = 1e-5 * torch.randn_like(weights)
    there = []
    for sign in (1, -1):
        moved = weights + sign * direction
        torch.nn.utils.vector_to_parameters(moved, critic.parameters())
        there.append(penalty().item())
    slope = (torch.cat([s.flatten() for s in slopes]) * direction).sum().item()
    assert (there[0] - there[1]) / 2 == pytest.approx(slope, rel=1e-3)


def test_the_difference_penalty_weighs_each_clip() -> None:
    logit_B, noisy_B = torch.tensor([1.0, 2.0]), torch.tensor([1.5, 1.0])
    weighed = difference_penalty(logit_B, noisy_B, 0.5, torch.tensor([1.0, 0.5]))
    assert weighed.item() == pytest.approx((1.0 + 0.5 * 4.0) / 2)


def test_the_penalty_reaches_the_critic_and_not_the_clip() -> None:
    scale = torch.tensor(3.0, requires_grad=True)
    x_BCTHW = torch.randn(2, 3, 2, 4, 4, requires_grad=True)
    penalty = gradient_penalty(
        lambda x, y: scale * x.sum((1, 2, 3, 4)), x_BCTHW, torch.zeros(2, dtype=torch.int64)
    )
    penalty.backward()  # type: ignore[no-untyped-call]
    assert scale.grad is not None
    # penalty = scale^2 * 96 elements, hence 2 * scale * 96.
    assert scale.grad.item() == pytest.approx(2 * 3.0 * 96)
    assert x_BCTHW.grad is None


def test_the_penalty_gradchecks() -> None:
    rng = torch.Generator().manual_seed(0)
    x_BCTHW = torch.randn(2, 3, 1, 2, 2, generator=rng, dtype=torch.float64)
    weight = torch.randn(4, 12, generator=rng, dtype=torch.float64, requires_grad=True)
    y_B = torch.zeros(2, dtype=torch.int64)

    def penalty(weight: Tensor) -> Tensor:
        return gradient_penalty(
            lambda x, y: torch.sin(x.flatten(1) @ weight.T).sum(1), x_BCTHW, y_B
        )

    assert torch.autograd.gradcheck(penalty, weight)


def test_the_difference_penalty_is_the_exact_one_on_average() -> None:
    rng = torch.Generator().manual_seed(0)
    weight = torch.randn(6, 3 * 2 * 4 * 4, generator=rng, dtype=torch.float64)

    def critic(x_BCTHW: Tensor, y_B: Tensor) -> Tensor:
        return torch.tanh(x_BCTHW.flatten(1) @ weight.T / 5).square().sum(1)

    x_BCTHW = torch.randn(1, 3, 2, 4, 4, generator=rng, dtype=torch.float64)
    y_B = torch.zeros(1, dtype=torch.int64)
    draws, sigma = 20_000, 1e-4
    noise_BCTHW = torch.randn(draws, 3, 2, 4, 4, generator=rng, dtype=torch.float64)
    approximate = difference_penalty(
        critic(x_BCTHW, y_B).expand(draws), critic(x_BCTHW + sigma * noise_BCTHW, y_B), sigma
    )
    # The mean of the square of a normal variable: its relative error is sqrt(2 / draws), 1 %.
    exact = gradient_penalty(critic, x_BCTHW, y_B)
    assert approximate.item() == pytest.approx(exact.item(), rel=0.05)


@pytest.mark.parametrize(("progress", "value"), [(0.0, 4.0), (0.5, 2.2), (1.0, 0.4), (1.7, 0.4)])
def test_cosine(progress: float, value: float) -> None:
    assert cosine(progress, 4.0, 0.4) == pytest.approx(value)


def test_cosine_falls_slowest_at_its_ends() -> None:
    falls = [cosine(p / 10, 1, 0) - cosine((p + 1) / 10, 1, 0) for p in range(10)]
    assert min(falls) > 0
    assert max(falls) == pytest.approx(falls[4]) == pytest.approx(falls[5])
    assert falls[0] < falls[2] < falls[4]


def test_what_has_no_end_is_not_scheduled() -> None:
    assert scheduled(0.7, 0.9, None) == 0.9
    assert scheduled(1.0, 0.9, 0.99) == pytest.approx(0.99)
