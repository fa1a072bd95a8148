"""Differentiable augmentation of what the critic sees, drawn once a clip.

    draw = augment.draw(config.augment, len(x_BCTHW), rng)
    logit_B = critic(augment.apply(x_BCTHW, draw), y_B)

DiffAugment (arXiv 2006.10738) in the way of StyleGAN-V (arXiv 2112.14683): all
frames of a clip are changed alike, or the generator would learn to flicker. Hue stays as it is,
since colour may be the class. Names carry shapes: B clips, C channels, T frames, H height, W width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from raygen.config import AugmentConfig


@dataclass(frozen=True)
class Draw:
    """One draw a clip, on the CPU; None where the config's strength is 0."""

    brightness_B: Tensor | None  # added, in units of the [-1, 1] range
    contrast_B: Tensor | None  # factor about the clip's mean
    shift_B2: Tensor | None  # (down, right), fraction of height and width
    box_B3: Tensor | None  # (centre row, centre column, side), fractions; side 0: none

    def __getitem__(self, rows: slice) -> Draw:
        """The draw of some of the clips, as a rank takes its share of a global batch."""
        return Draw(*(None if t is None else t[rows] for t in vars(self).values()))


def draw(config: AugmentConfig, count: int, rng: torch.Generator) -> Draw:
    """Draws for `count` clips from a CPU generator; strength 0 draws nothing."""

    def uniform(*shape: int) -> Tensor:
        """U(-1, 1)."""
        return torch.rand(shape, generator=rng) * 2 - 1

    def chosen() -> Tensor:
        """1 for the clips that get this kind, 0 for the others."""
        return (torch.rand(count, generator=rng) < config.probability).float()

    brightness_B = contrast_B = shift_B2 = box_B3 = None
    if config.colour:
        # At strength 1, DiffAugment's own ranges.
        strength_B = 0.5 * config.colour * chosen()
        brightness_B = strength_B * uniform(count)
        contrast_B = 1 + strength_B * uniform(count)
    if config.translate:
        shift_B2 = config.translate * uniform(count, 2) * chosen()[:, None]
    if config.cutout:
        centre_B2 = (uniform(count, 2) + 1) / 2
        box_B3 = torch.cat([centre_B2, config.cutout * chosen()[:, None]], 1)
    return Draw(brightness_B, contrast_B, shift_B2, box_B3)


def apply(x_BCTHW: Tensor, draw: Draw) -> Tensor:
    """Clips in [-1, 1] -> clips of the same shape, a little outside that range after `colour`.

    Differentiable in x. Values are not clamped: that would hide the gradient where it clips.
    """
    if draw.brightness_B is not None and draw.contrast_B is not None:
        mean_B1111 = x_BCTHW.mean((1, 2, 3, 4), keepdim=True)
        contrast_B1111 = _spread(draw.contrast_B, x_BCTHW)
        brightness_B1111 = _spread(draw.brightness_B, x_BCTHW)
        x_BCTHW = (x_BCTHW - mean_B1111) * contrast_B1111 + (mean_B1111 + brightness_B1111)
    if draw.shift_B2 is not None:
        x_BCTHW = _translate(x_BCTHW, draw.shift_B2)
    if draw.box_B3 is not None:
        x_BCTHW = _cut(x_BCTHW, draw.box_B3)
    return x_BCTHW


def _spread(value_B: Tensor, like_BCTHW: Tensor) -> Tensor:
    return value_B.to(like_BCTHW)[:, None, None, None, None]


def _translate(x_BCTHW: Tensor, shift_B2: Tensor) -> Tensor:
    # Whole pixels, the edge repeated. Mirroring would show motion the wrong way round in the
    # margin, and zeros a hard frame.
    count, _, _, height, width = x_BCTHW.shape
    pixels_B2 = (shift_B2 * torch.tensor([height, width])).round().long().to(x_BCTHW.device)
    row_BH = _shifted(height, pixels_B2[:, :1])
    column_BW = _shifted(width, pixels_B2[:, 1:])
    clip_B11 = torch.arange(count, device=x_BCTHW.device)[:, None, None]
    # Advanced indices around slices come to the front.
    x_BHWCT = x_BCTHW[clip_B11, :, :, row_BH[:, :, None], column_BW[:, None, :]]
    return x_BHWCT.permute(0, 3, 4, 1, 2)


def _shifted(length: int, shift_B1: Tensor) -> Tensor:
    return (torch.arange(length, device=shift_B1.device) - shift_B1).clamp(0, length - 1)


def _cut(x_BCTHW: Tensor, box_B3: Tensor) -> Tensor:
    row_B1, column_B1, side_B1 = box_B3.to(x_BCTHW.device)[:, :, None].unbind(1)
    outside_BH = _distance(x_BCTHW.shape[3], row_B1) >= side_B1 / 2
    outside_BW = _distance(x_BCTHW.shape[4], column_B1) >= side_B1 / 2
    kept_BHW = outside_BH[:, :, None] | outside_BW[:, None, :]
    return x_BCTHW * kept_BHW[:, None, None].to(x_BCTHW.dtype)


def _distance(length: int, centre_B1: Tensor) -> Tensor:
    position_L: Tensor = (torch.arange(length, device=centre_B1.device) + 0.5) / length
    return (position_L - centre_B1).abs()
