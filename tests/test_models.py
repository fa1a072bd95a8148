"""Generators and critics: shapes, sizes, independence, conditions, gradients."""

from __future__ import annotations

import math

import pytest
import torch

from raygen.config import Config, families
from raygen.losses import gradient_penalty
from raygen.models import build_critic, build_generator, parameter_count
from raygen.models.blocks import pyramid

CLASSES = 4
KINDS = sorted(families())
BATCHED = ["conv3d", "dcgan"]  # batch norm
ALONE = [kind for kind in KINDS if kind not in BATCHED]  # each clip's output is its own


def narrow(kind: str, frames: int = 8, size: int = 16) -> Config:
    return Config.load(
        "tiny",
        {
            "model.kind": kind,
            "data.frames": frames,
            "data.size": size,
            "model.generator_width": 8,
            "model.critic_width": 8,
            "model.latent_dim": 16,
            "model.class_dim": 16,
        },
    )


def pair(config: Config, seed: int = 0) -> tuple[torch.nn.Module, torch.nn.Module]:
    torch.manual_seed(seed)
    return (
        build_generator(config.model, config.data, CLASSES),
        build_critic(config.model, config.data, CLASSES),
    )


def batch(config: Config, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(1)
    data = config.data
    z_BD = torch.randn(count, config.model.latent_dim, generator=rng)
    y_B = torch.arange(count) % CLASSES
    x_BCTHW = torch.rand(count, 3, data.frames, data.height, data.width, generator=rng) * 2 - 1
    return z_BD, y_B, x_BCTHW


@pytest.mark.parametrize(
    ("frames", "size", "base", "strides"),
    [
        (16, 32, (2, 4, 4), [(2, 2, 2)] * 3),
        (16, 64, (2, 4, 4), [(2, 2, 2)] * 3 + [(1, 2, 2)]),
        (4, 64, (2, 4, 4), [(2, 2, 2)] + [(1, 2, 2)] * 3),
        (12, 48, (3, 6, 6), [(2, 2, 2)] * 2 + [(1, 2, 2)]),
        (64, 16, (16, 4, 4), [(2, 2, 2)] * 2),
        (20, 80, (5, 5, 5), [(2, 2, 2)] * 2 + [(1, 2, 2)] * 2),
    ],
)
def test_pyramid_leads_from_its_base_to_the_clip(
    frames: int, size: int, base: tuple[int, int, int], strides: list[tuple[int, int, int]]
) -> None:
    shape = pyramid(frames, size)
    assert shape.base_THW == base
    assert list(shape.strides) == strides
    reached = [b * math.prod(s[i] for s in shape.strides) for i, b in enumerate(shape.base_THW)]
    assert reached == [frames, size, size]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("frames", "size"), [(4, 16), (16, 32), (12, 48), (4, 64), (64, 16)])
def test_shapes_and_range(kind: str, frames: int, size: int) -> None:
    config = narrow(kind, frames, size)
    generator, critic = pair(config)
    z_BD, y_B, _ = batch(config, 2)
    x_BCTHW = generator(z_BD, y_B)
    assert x_BCTHW.shape == (2, 3, frames, size, size)
    assert x_BCTHW.abs().max() <= 1
    assert x_BCTHW.std() > 0.01, "a generator that starts flat gives the critic nothing to compare"
    assert critic(x_BCTHW, y_B).shape == (2,)


def test_tiny_is_of_one_order_in_every_family() -> None:
    # A fully connected layer at a clip's size is as large as all the others together.
    for kind in set(KINDS) - {"mlp"}:
        config = Config.load("tiny", {"model.kind": kind})
        for build in (build_generator, build_critic):
            assert 0.25e6 < parameter_count(build(config.model, config.data, CLASSES)) < 2e6


@pytest.mark.parametrize("kind", KINDS)
def test_the_seed_decides_the_weights(kind: str) -> None:
    config = narrow(kind)
    first, again, other = (pair(config, seed) for seed in (3, 3, 4))
    for one, same, different in zip(first, again, other, strict=True):
        a, b, c = (
            torch.nn.utils.parameters_to_vector(m.parameters()) for m in (one, same, different)
        )
        assert torch.equal(a, b)
        assert not torch.equal(a, c)


@pytest.mark.parametrize("kind", ALONE)
def test_a_clip_does_not_depend_on_its_batch(kind: str) -> None:
    config = narrow(kind)
    generator, critic = pair(config)
    z_BD, y_B, x_BCTHW = batch(config, 5)
    torch.testing.assert_close(generator(z_BD, y_B)[:1], generator(z_BD[:1], y_B[:1]))
    torch.testing.assert_close(critic(x_BCTHW, y_B)[:1], critic(x_BCTHW[:1], y_B[:1]))


@pytest.mark.parametrize("kind", BATCHED)
def test_batch_statistics_says_which_do(kind: str) -> None:
    config = narrow(kind)
    generator, critic = pair(config)
    z_BD, y_B, x_BCTHW = batch(config, 5)
    assert config.model.batch_statistics
    assert not torch.allclose(generator(z_BD, y_B)[:2], generator(z_BD[:2], y_B[:2]), atol=1e-3)
    assert not torch.allclose(critic(x_BCTHW, y_B)[:2], critic(x_BCTHW[:2], y_B[:2]), atol=1e-3)
    assert not any(narrow(alone).model.batch_statistics for alone in ALONE)


@pytest.mark.parametrize("kind", KINDS)
def test_latent_and_class_both_change_the_clip(kind: str) -> None:
    config = narrow(kind)
    generator, _ = pair(config)
    generator.eval()  # batch norm by its running statistics: only the inputs differ
    z_BD, y_B, _ = batch(config, 2)
    x_BCTHW = generator(z_BD, y_B)
    assert (generator(z_BD, (y_B + 1) % CLASSES) - x_BCTHW).abs().mean() > 1e-3
    assert (generator(z_BD.flip(0), y_B) - x_BCTHW).abs().mean() > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_the_class_changes_the_logit(kind: str) -> None:
    config = narrow(kind)
    _, critic = pair(config)
    _, y_B, x_BCTHW = batch(config, 4)
    logit_B, other_B = critic(x_BCTHW, y_B), critic(x_BCTHW, (y_B + 1) % CLASSES)
    assert (logit_B - other_B).abs().min() > 1e-6


@pytest.mark.parametrize("kind", KINDS)
def test_every_weight_learns(kind: str) -> None:
    config = narrow(kind)
    generator, critic = pair(config)
    z_BD, y_B, _ = batch(config, CLASSES)
    critic(generator(z_BD, y_B), y_B).square().sum().backward()
    for network in (generator, critic):
        for name, parameter in network.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
            # Batch norm cancels the bias of the convolution before it up to rounding.
            assert parameter.grad.any(), name


@pytest.mark.parametrize("kind", ALONE)
def test_double_backward_agrees_with_finite_differences(kind: str) -> None:
    config = narrow(kind)
    critic = pair(config)[1].double()
    _, y_B, x_BCTHW = batch(config, 2)
    x_BCTHW = x_BCTHW.double()
    weight = next(critic.parameters())
    direction = torch.randn(weight.shape, generator=torch.Generator().manual_seed(2)).double()
    (gradient,) = torch.autograd.grad(gradient_penalty(critic, x_BCTHW, y_B), weight)

    # Small enough that no leaky ReLU changes sides: the penalty is smooth in between.
    step = 1e-7
    with torch.no_grad():
        weight.add_(step * direction)
    above = gradient_penalty(critic, x_BCTHW, y_B).detach()
    with torch.no_grad():
        weight.sub_(2 * step * direction)
    below = gradient_penalty(critic, x_BCTHW, y_B).detach()
    torch.testing.assert_close(
        (gradient * direction).sum(), (above - below) / (2 * step), rtol=1e-3, atol=0.0
    )


@pytest.mark.parametrize("kind", BATCHED)
def test_bf16_weights_beside_fp32_buffers(kind: str) -> None:
    """What DeepSpeed makes of a network in bf16; the clips are about those of fp32."""
    generator, critic = pair(narrow(kind))
    z_BD, y_B = torch.randn(4, 16), torch.arange(4) % CLASSES
    generator.train()
    exact_BCTHW = generator(z_BD, y_B)
    for network in (generator, critic):
        for parameter in network.parameters():
            parameter.data = parameter.data.bfloat16()
    x_BCTHW = generator(z_BD.bfloat16(), y_B)
    assert x_BCTHW.dtype == torch.bfloat16
    assert (x_BCTHW - exact_BCTHW).square().mean() < 0.02 * exact_BCTHW.square().mean()
    critic(x_BCTHW, y_B).sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in generator.parameters() if p.grad is not None)
