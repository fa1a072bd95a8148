"""The residual blocks, with attention and beside a frame critic; recomputing, layouts, one clip."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from raygen import sampling
from raygen.conditions import Condition
from raygen.config import Config
from raygen.losses import gradient_penalty
from raygen.models import build_critic, build_generator, recompute_activations
from raygen.models.grouped import TemporalAttention, downsample, upsample
from raygen.models.residual_critic import JointCritic
from raygen.network import _run_channels_last
from tests.test_models import ALONE, CLASSES, KINDS, batch, narrow, pair

ATTENTIVE = {"model.attention": True, "model.frame_critic": 2}


def with_all(kind: str) -> Config:
    """`kind` with all that can be switched on beside it."""
    extras = ATTENTIVE if kind in ("residual", "triplane") else {"model.frame_critic": 2}
    return Config.parse(narrow(kind).dump(), extras)


def gradients(network: nn.Module) -> list[torch.Tensor]:
    return [p.grad.clone() for p in network.parameters() if p.grad is not None]


def test_resampling_is_the_binomial_filter() -> None:
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    k = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
    kernel = (k[:, None] * k).expand(3, 1, 4, 4)
    up = F.conv_transpose2d(x, 4 * kernel, stride=2, padding=1, groups=3)
    torch.testing.assert_close(upsample(x)[:, :, 1:-1, 1:-1], up[:, :, 1:-1, 1:-1])
    # The two are each other's transpose, up to the 4 pixels that one becomes, but at the edge.
    torch.testing.assert_close((up * up).sum() / 4, (downsample(up) * x).sum())


def test_a_stripe_finer_than_the_pixels_leaves_no_alias() -> None:
    stripes = torch.tensor([1.0, -1.0]).repeat(8).expand(1, 1, 16, 16)
    assert downsample(stripes)[:, :, :, 1:-1].abs().max() < 1e-6


def test_attention_within_reach_sees_no_further() -> None:
    torch.manual_seed(0)
    attention = TemporalAttention(32, branches=1, reach=2)
    x = torch.randn(1, 9, 32, 2, 2)
    changed = x.clone()
    changed[:, 8] += 1
    same = (attention(x) == attention(changed)).flatten(2).all(2)[0]
    assert same.tolist() == [True] * 4 + [False]


@pytest.mark.parametrize("kind", ALONE)
def test_recomputed_activations_change_nothing(kind: str) -> None:
    config = with_all(kind)
    z_BD, y_B, x_BCTHW = batch(config, 3)
    plain, again = pair(config), pair(config)
    for network in again:
        recompute_activations(network)
    for generator, critic in (plain, again):
        generator(z_BD, y_B).square().sum().backward()
        (critic(x_BCTHW, y_B).sum() + gradient_penalty(critic, x_BCTHW, y_B)).backward()
    for one, other in zip(plain, again, strict=True):
        for a, b in zip(gradients(one), gradients(other), strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("kind", KINDS)
def test_channels_last_changes_nothing(kind: str) -> None:
    config = with_all(kind)
    z_BD, y_B, x_BCTHW = batch(config, 3)
    plain, last = pair(config), pair(config)
    for network in last:
        _run_channels_last(network)
    for generator, critic in (plain, last):
        (critic(generator(z_BD, y_B), y_B).sum() + critic(x_BCTHW, y_B).sum()).backward()
    for one, other in zip(plain, last, strict=True):
        for a, b in zip(gradients(one), gradients(other), strict=True):
            torch.testing.assert_close(a, b, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_is_the_same_clip_to_the_bit_in_any_company(kind: str) -> None:
    config = narrow(kind)
    generator = pair(config)[0].eval()
    z_ND = sampling.latents(range(5), config.model.latent_dim)
    y_N, device = Condition.of(torch.tensor([0, 1, 2, 3, 0])), torch.device("cpu")
    together = sampling.generate(generator, z_ND, y_N, device)
    alone = sampling.generate(generator, z_ND[3:4], y_N.rows(slice(3, 4)), device)
    assert (together[3] == alone[0]).all()


@pytest.mark.parametrize("kind", ["residual", "triplane", "strided"])
def test_with_attention_and_frame_critic_the_penalty_has_its_gradient(kind: str) -> None:
    config = with_all(kind)
    critic = pair(config)[1].double()
    _, y_B, x_BCTHW = batch(config, 2)
    x_BCTHW = x_BCTHW.double()
    weights = list(critic.parameters())
    rng = torch.Generator().manual_seed(2)
    way = [torch.randn(w.shape, generator=rng).double() for w in weights]
    penalty = gradient_penalty(critic, x_BCTHW, y_B)
    slopes = torch.autograd.grad(penalty, weights, allow_unused=True)
    expected = sum((s * d).sum() for s, d in zip(slopes, way, strict=True) if s is not None)

    def moved(step: float) -> torch.Tensor:
        with torch.no_grad():
            for weight, direction in zip(weights, way, strict=True):
                weight.add_(step * direction)
        return gradient_penalty(critic, x_BCTHW, y_B).detach()

    step = 1e-7
    above, below = moved(step), moved(-2 * step)
    torch.testing.assert_close(expected, (above - below) / (2 * step), rtol=1e-3, atol=1e-6)


def test_the_frame_critic_adds_what_it_sees_in_its_frames() -> None:
    config = with_all("strided")
    torch.manual_seed(0)
    critic = build_critic(config.model, config.data, CLASSES)
    assert isinstance(critic, JointCritic)
    _, y_B, x_BCTHW = batch(config, 2)
    seen, unseen = x_BCTHW.clone(), x_BCTHW.clone()
    seen[:, :, 2] += 0.1  # the middles of two halves of 8 frames: 2 and 6
    unseen[:, :, 3] += 0.1
    frame = critic.frame
    assert not torch.allclose(frame(seen, y_B), frame(x_BCTHW, y_B))
    assert torch.equal(frame(unseen, y_B), frame(x_BCTHW, y_B))
    torch.testing.assert_close(
        critic(x_BCTHW, y_B), critic.clip(x_BCTHW, y_B) + frame(x_BCTHW, y_B)
    )


def test_attention_has_weights_of_its_own_in_both() -> None:
    plain, attentive = narrow("residual"), with_all("residual")
    for build in (build_generator, build_critic):
        names = dict(build(attentive.model, attentive.data, CLASSES).named_parameters())
        assert any("attention" in name for name in names)
        names = dict(build(plain.model, plain.data, CLASSES).named_parameters())
        assert not any("attention" in name for name in names)
