"""Adversarial losses, the gradient penalty and the schedule they follow: pure functions.

Names carry shapes: B clips, C channels, T frames, H height, W width.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

LossKind = Literal["relativistic", "bce"]


def critic_loss(kind: LossKind, real_logit_B: Tensor, fake_logit_B: Tensor) -> Tensor:
    """What the critic minimises, a scalar; pass fakes made without a graph to the generator."""
    if kind == "relativistic":
        # RpGAN as in R3GAN (arXiv 2501.05441, eq. 2 and its code): each real against one fake.
        return F.softplus(fake_logit_B - real_logit_B).mean()
    # Goodfellow et al. 2014 (arXiv 1406.2661), eq. 1, with logits.
    return (F.softplus(-real_logit_B) + F.softplus(fake_logit_B)).mean()


def generator_loss(kind: LossKind, real_logit_B: Tensor, fake_logit_B: Tensor) -> Tensor:
    """What the generator minimises, a scalar; `bce` ignores the real logits."""
    if kind == "relativistic":
        # The same eq. 2 with the roles exchanged, hence non-saturating.
        return F.softplus(real_logit_B - fake_logit_B).mean()
    # Goodfellow et al. 2014, section 3: maximise log D(G(z)), non-saturating.
    return F.softplus(-fake_logit_B).mean()


def gradient_penalty(critic: Callable[[Tensor, Any], Tensor], x_BCTHW: Tensor, y_B: Any) -> Tensor:
    """Mean over the batch of |d D(x, y) / dx|^2, a scalar with a graph to the critic's weights.

    On real clips this is R1 (Mescheder et al. 2018, arXiv 1801.04406, eq. 9), on fakes R2
    (eq. 10), both without their gamma / 2. Holds for critics that judge each clip alone. `y_B` is
    whatever conditions the critic takes.
    """
    x_BCTHW = x_BCTHW.detach().requires_grad_(True)
    (gradient_BCTHW,) = torch.autograd.grad(critic(x_BCTHW, y_B).sum(), x_BCTHW, create_graph=True)
    return gradient_BCTHW.square().sum((1, 2, 3, 4)).mean()


def difference_penalty(logit_B: Tensor, noisy_logit_B: Tensor, sigma: float) -> Tensor:
    """Mean over the batch of ((D(x + sigma e, y) - D(x, y)) / sigma)^2, e ~ N(0, 1), a scalar.

    Seaweed-APT's approximated R1 (arXiv 2501.08316): a single backward, and for
    small sigma |d D / dx|^2 in expectation. Divided by sigma^2, which the paper leaves to its
    weight, so that it goes by the weight of `gradient_penalty`.
    """
    return ((noisy_logit_B - logit_B) / sigma).square().mean()


def cosine(progress: float, start: float, end: float) -> float:
    """Half a cosine from `start` at progress 0 to `end` at 1 (arXiv 1608.03983, eq. 5)."""
    return end + (start - end) * (1 + math.cos(math.pi * min(progress, 1.0))) / 2
