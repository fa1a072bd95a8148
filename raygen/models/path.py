"""Latents that move: from one latent, a value for every moment, smooth and without end.

    z_BTD = moving(z_BD, times_T, frames=16)         # each z_BTD[:, t] is N(0, 1) if z_BD is
    line = timeline(range(16), step=2, reach=3)      # knots under those frames, and how to read

Times are in frames of the trained rate: 0, 1, 2, ... is the trained clip, 0, 0.5, 1, ... twice the
frame rate. Names carry shapes: B clips, D latent dimension, T frames, K knots.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

SLOWEST, FASTEST = 4.0, 0.5  # periods, in trained clips


def moving(z_BD: Tensor, times_T: Tensor, frames: int) -> Tensor:
    """The latent at every moment [B, T, D]: half of it constant, half turning in D / 4 planes.

    A rotation by an angle in proportion to the time. Where z is N(0, 1), so is its value at every
    moment, whatever the time before: no knots, no seam, no drift. The planes' periods are spread
    geometrically, so that the whole does not repeat. (StyleGAN-V, arXiv 2112.14683, section 3.1,
    asks the same of its motion codes: smooth, endless, not periodic.)
    """
    planes = _planes(z_BD)
    share_P = (torch.arange(planes, device=z_BD.device) + 0.5) / max(planes, 1)
    period_P = frames * SLOWEST * (FASTEST / SLOWEST) ** share_P
    # In fp32 whatever the weights are: bf16 has no room for an angle of many turns.
    angle_TP = 2 * math.pi * times_T[:, None].float() / period_P
    a_BP, b_BP = z_BD.narrow(1, z_BD.shape[1] - 2 * planes, 2 * planes).chunk(2, 1)
    cos_TP, sin_TP = angle_TP.cos().to(z_BD.dtype), angle_TP.sin().to(z_BD.dtype)
    a_BTP = a_BP[:, None] * cos_TP - b_BP[:, None] * sin_TP
    b_BTP = a_BP[:, None] * sin_TP + b_BP[:, None] * cos_TP
    constant_BTD = constant(z_BD)[:, None].expand(-1, len(times_T), -1)
    return torch.cat([constant_BTD, a_BTP, b_BTP], 2)


def constant(z_BD: Tensor) -> Tensor:
    """The part of the latent that does not move: its first half, or a little more."""
    return z_BD[:, : z_BD.shape[1] - 2 * _planes(z_BD)]


def _planes(z_BD: Tensor) -> int:
    return z_BD.shape[1] // 4


class Timeline(NamedTuple):
    """Frames, and the evenly spaced knots that they are read from."""

    times_T: Tensor  # of the frames
    knots_K: Tensor  # times of all knots
    weight_TK: Tensor  # of the knots that are left when `reach` at either end are used up

    def read(self, x_BKCHW: Tensor) -> Tensor:
        """What knots hold -> frames [B, T, ...]; the first axis after B is the knots'."""
        frames_BTN = self.weight_TK.to(x_BKCHW.dtype) @ x_BKCHW.flatten(2)
        return frames_BTN.view(*frames_BTN.shape[:2], *x_BKCHW.shape[2:])


def timeline(
    times: Sequence[float], step: int, reach: int, device: torch.device | None = None
) -> Timeline:
    """Knots every `step` frames around `times`, and `reach` more on either side.

    Layers between the knots and the frames that look at neighbours in time use one up at either
    end, and so see no end of the clip: a frame does not depend on how long the clip is. Knots lie
    at multiples of `step`, so neither does their place. They are read through the quadratic
    B-spline, whose first derivative has no jumps.
    """
    first = math.floor(min(times) / step + 0.5) - 1
    last = math.floor(max(times) / step + 0.5) + 1
    times_T = torch.tensor(list(times), dtype=torch.float32, device=device)
    knots_K = torch.arange(first - reach, last + reach + 1, device=device) * float(step)
    inner_K = torch.arange(first, last + 1, device=device)
    distance_TK = (times_T[:, None] / step - inner_K).abs()
    # The quadratic B-spline as a sum of truncated powers (de Boor 1978, chapter IX).
    outer_TK, core_TK = (1.5 - distance_TK).clamp(min=0), (0.5 - distance_TK).clamp(min=0)
    return Timeline(times_T, knots_K, 0.5 * outer_TK.square() - 1.5 * core_TK.square())
