"""Adversarial losses and regularisers of the critic's logits and features, and the schedule that
they follow: pure functions.

    losses.critic_loss("hinge", real_logit_B, fake_logit_B)

What a clip's frames say of its motion is in raygen.temporal; raygen.objective weighs it all. Names
carry shapes: B clips, C channels, T frames, H height, W width, K statistics.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

LossKind = Literal["relativistic", "bce", "hinge"]


def critic_loss(kind: LossKind, real_logit_B: Tensor, fake_logit_B: Tensor) -> Tensor:
    """What the critic minimises, a scalar; pass fakes made without a graph to the generator."""
    if kind == "relativistic":
        # RpGAN as in R3GAN (arXiv 2501.05441, eq. 2 and its code): each real against one fake.
        return F.softplus(fake_logit_B - real_logit_B).mean()
    if kind == "hinge":
        # Lim & Ye 2017 (arXiv 1705.02894); Miyato et al. 2018 (arXiv 1802.05957), eq. 16.
        return (F.relu(1 - real_logit_B) + F.relu(1 + fake_logit_B)).mean()
    # Goodfellow et al. 2014 (arXiv 1406.2661), eq. 1, with logits.
    return (F.softplus(-real_logit_B) + F.softplus(fake_logit_B)).mean()


def generator_loss(kind: LossKind, real_logit_B: Tensor, fake_logit_B: Tensor) -> Tensor:
    """What the generator minimises, a scalar; only `relativistic` looks at the real logits."""
    if kind == "relativistic":
        # The same eq. 2 with the roles exchanged, hence non-saturating.
        return F.softplus(real_logit_B - fake_logit_B).mean()
    if kind == "hinge":
        # Miyato et al. 2018, eq. 17.
        return -fake_logit_B.mean()
    # Goodfellow et al. 2014, section 3: maximise log D(G(z)), non-saturating.
    return F.softplus(-fake_logit_B).mean()


def pixel_loss(fake_BCTHW: Tensor, real_BCTHW: Tensor) -> Tensor:
    """The mean absolute difference of each clip from the one that it is to be, a scalar.

    Beside the critic as in SRGAN (arXiv 1609.04802, section 2.2), with L1 for L2, which blurs.
    """
    return (fake_BCTHW - real_BCTHW).abs().mean()


def margin(kind: LossKind, real_logit_B: Tensor, fake_logit_B: Tensor) -> Tensor:
    """How sure the critic is of each real clip, [B]: positive where it is right.

    The logit, where 0 is the boundary; its lead over the paired fake's in the relativistic
    loss, to which a constant added to all logits is nothing.
    """
    return real_logit_B - fake_logit_B if kind == "relativistic" else real_logit_B


def gradient_penalty(
    critic: Callable[[Tensor, Any], Tensor],
    x_BCTHW: Tensor,
    y_B: Any,
    weight_B: Tensor | float = 1.0,
) -> Tensor:
    """Mean over the batch of w |d D(x, y) / dx|^2, a scalar with a graph to the critic's weights.

    On real clips this is R1 (Mescheder et al. 2018, arXiv 1801.04406, eq. 9), on fakes R2
    (eq. 10), both without their gamma / 2. Holds for critics that judge each clip alone. `y_B` is
    whatever conditions the critic takes.
    """
    x_BCTHW = x_BCTHW.detach().requires_grad_(True)
    (gradient_BCTHW,) = torch.autograd.grad(critic(x_BCTHW, y_B).sum(), x_BCTHW, create_graph=True)
    return (weight_B * gradient_BCTHW.square().sum((1, 2, 3, 4))).mean()


def difference_penalty(
    logit_B: Tensor, noisy_logit_B: Tensor, sigma: float, weight_B: Tensor | float = 1.0
) -> Tensor:
    """Mean over the batch of w ((D(x + sigma e, y) - D(x, y)) / sigma)^2, e ~ N(0, 1), a scalar.

    Seaweed-APT's approximated R1 (arXiv 2501.08316): a single backward, and for
    small sigma |d D / dx|^2 in expectation. Divided by sigma^2, which the paper leaves to its
    weight, so that it goes by the weight of `gradient_penalty`.
    """
    return (weight_B * ((noisy_logit_B - logit_B) / sigma).square()).mean()


def lecam(
    real_logit_B: Tensor, fake_logit_B: Tensor, real_anchor: Tensor, fake_anchor: Tensor
) -> Tensor:
    """LeCam regularisation (arXiv 2104.03310, eq. 4), a scalar, without its weight.

    Keeps the logits of either side near where those of the other have been: the anchors are
    their moving averages.
    """
    return ((real_logit_B - fake_anchor).square() + (fake_logit_B - real_anchor).square()).mean()


def contrastive(
    own_B: Tensor, other_BK: Tensor, counts_BK: Tensor, temperature: float = 0.1
) -> Tensor:
    """InfoNCE (arXiv 1807.03748, eq. 4), a scalar: how surely a clip's own condition is told.

    Of cosines of a critic's features with embedded conditions, as XMC-GAN's sentence loss (arXiv
    2101.04702) has them, in both turns: the critic learns from real clips what shows what, the
    generator is to draw what the critic recognises. Bool `counts_BK`: the alternatives; a clip
    with none adds 0.
    """
    other_BK = other_BK.masked_fill(~counts_BK, -math.inf)
    score_BN = torch.cat([own_B[:, None], other_BK], 1) / temperature
    return (score_BN.logsumexp(1) - score_BN[:, 0]).mean()


def mean_gap(fake_BK: Tensor, fake_mean_K: Tensor, real_mean_K: Tensor) -> Tensor:
    """Half the squared distance of two means of K statistics, a scalar.

    The means are moving averages, without a graph; the gradient is what theirs would be,
    (fake mean - real mean) . d fake / dx, clip by clip. So it matches the mean over many batches,
    not that of each, leaves the spread about it alone, and does not depend on how a batch is
    split. The objective is Salimans et al.'s (arXiv 1606.03498, eq. 1), for any statistics.
    """
    gap_K = fake_mean_K - real_mean_K
    moving_B = ((fake_BK - fake_BK.detach()) * gap_K).sum(1)
    return gap_K.square().sum() / 2 + moving_B.mean()


def cosine(progress: float, start: float, end: float) -> float:
    """Half a cosine from `start` at progress 0 to `end` at 1 (arXiv 1608.03983, eq. 5)."""
    return end + (start - end) * (1 + math.cos(math.pi * min(progress, 1.0))) / 2


def scheduled(progress: float, start: float, end: float | None) -> float:
    """`cosine`, or `start` throughout where there is no `end`.

    R3GAN (arXiv 2501.05441, appendix) has its learning rate, gamma, beta2, half-life of the EMA and
    share of augmented images follow such cosines.
    """
    return start if end is None else cosine(progress, start, end)
