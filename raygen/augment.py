"""Differentiable augmentation of what the critic sees, drawn once a clip.

    draw = augment.draw(config.augment, len(x_BCTHW), rng)
    logit_B = critic(augment.apply(x_BCTHW, draw, probability), y_B)

DiffAugment (arXiv 2006.10738) in the way of StyleGAN-V (arXiv 2112.14683): all
frames of a clip are changed alike, or the generator would learn to flicker. Hue stays as it is,
since colour may be the class; saturation, which may take all colour away, is a kind of its own
beside brightness and contrast. What is drawn does not depend on the probability, which may move in
training (`adapted`). Names carry shapes: B clips, C channels, T frames, H height, W width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from raygen.config import AugmentConfig


@dataclass(frozen=True)
class Draw:
    """One draw a clip, on the CPU; None where the config's strength is 0.

    The first column of each kind is U(0, 1): clips where it is below the probability get that
    kind. The others say how much.
    """

    colour_B3: Tensor | None  # brightness added, in units of the [-1, 1] range; contrast less 1
    shift_B3: Tensor | None  # down, right: fractions of height and width
    box_B4: Tensor | None  # centre row, centre column, side: fractions
    saturation_B2: Tensor | None  # saturation less 1

    def __getitem__(self, rows: slice) -> Draw:
        """The draw of some of the clips, as a rank takes its share of a global batch."""
        return Draw(*(None if t is None else t[rows] for t in vars(self).values()))


def draw(config: AugmentConfig, count: int, rng: torch.Generator) -> Draw:
    """Draws for `count` clips from a CPU generator; strength 0 draws nothing."""

    def uniform(columns: int) -> Tensor:
        """U(-1, 1)."""
        return torch.rand((count, columns), generator=rng) * 2 - 1

    def chance() -> Tensor:
        return torch.rand((count, 1), generator=rng)

    colour_B3 = shift_B3 = box_B4 = saturation_B2 = None
    if config.colour:
        # At strength 1, DiffAugment's own ranges.
        chance_B1, strength = chance(), 0.5 * config.colour
        colour_B3 = torch.cat([chance_B1, strength * uniform(1), strength * uniform(1)], 1)
    if config.translate:
        shift_B2 = config.translate * uniform(2)
        shift_B3 = torch.cat([chance(), shift_B2], 1)
    if config.cutout:
        centre_B2 = (uniform(2) + 1) / 2
        side_B1 = torch.full((count, 1), config.cutout)
        box_B4 = torch.cat([chance(), centre_B2, side_B1], 1)
    if config.saturation:
        saturation_B2 = torch.cat([chance(), config.saturation * uniform(1)], 1)
    return Draw(colour_B3, shift_B3, box_B4, saturation_B2)


def apply(x_BCTHW: Tensor, draw: Draw, probability: Tensor | float) -> Tensor:
    """Clips in [-1, 1] -> clips of the same shape, a little outside that range after `colour`.

    Each kind is applied to a clip with `probability`, a scalar. Differentiable in x. Values are
    not clamped: that would hide the gradient where it clips.
    """

    def chosen(drawn_BN: Tensor) -> Tensor:
        """What was drawn, 0 where it is not applied."""
        drawn_BN = drawn_BN.to(x_BCTHW.device)
        return drawn_BN[:, 1:] * (drawn_BN[:, :1] < probability)

    if draw.colour_B3 is not None:
        mean_B1111 = x_BCTHW.mean((1, 2, 3, 4), keepdim=True)
        brightness_B, contrast_B = chosen(draw.colour_B3).unbind(1)
        contrast_B1111 = _spread(1 + contrast_B, x_BCTHW)
        brightness_B1111 = _spread(brightness_B, x_BCTHW)
        x_BCTHW = (x_BCTHW - mean_B1111) * contrast_B1111 + (mean_B1111 + brightness_B1111)
    if draw.saturation_B2 is not None:
        grey_B1THW = x_BCTHW.mean(1, keepdim=True)
        factor_B1111 = _spread(1 + chosen(draw.saturation_B2)[:, 0], x_BCTHW)
        x_BCTHW = (x_BCTHW - grey_B1THW) * factor_B1111 + grey_B1THW
    if draw.shift_B3 is not None:
        x_BCTHW = _translate(x_BCTHW, chosen(draw.shift_B3))
    if draw.box_B4 is not None:
        x_BCTHW = _cut(x_BCTHW, chosen(draw.box_B4))
    return x_BCTHW


def adapted(
    probability: Tensor, sureness: Tensor, *, target: float, most: float, by: float
) -> Tensor:
    """The probability after a step: up `by` where the critic is too sure of real clips, or down.

    ADA (arXiv 2006.06676, section 3.1): `sureness` is its r_t, the mean sign of the critic's
    output for real clips, -1 to 1: near 0 where it cannot tell them from fakes, 1 where it never
    errs. Stays from 0 to `most`.
    """
    return (probability + by * torch.sign(sureness - target)).clamp(0.0, most)


def _spread(value_B: Tensor, like_BCTHW: Tensor) -> Tensor:
    return value_B.to(like_BCTHW)[:, None, None, None, None]


def _translate(x_BCTHW: Tensor, shift_B2: Tensor) -> Tensor:
    # Whole pixels, the edge repeated. Mirroring would show motion the wrong way round in the
    # margin, and zeros a hard frame.
    count, _, _, height, width = x_BCTHW.shape
    pixels_B2 = (shift_B2 * shift_B2.new_tensor([height, width])).round().long()
    row_BH = _shifted(height, pixels_B2[:, :1])
    column_BW = _shifted(width, pixels_B2[:, 1:])
    clip_B11 = torch.arange(count, device=x_BCTHW.device)[:, None, None]
    # Advanced indices around slices come to the front.
    x_BHWCT = x_BCTHW[clip_B11, :, :, row_BH[:, :, None], column_BW[:, None, :]]
    return x_BHWCT.permute(0, 3, 4, 1, 2)


def _shifted(length: int, shift_B1: Tensor) -> Tensor:
    return (torch.arange(length, device=shift_B1.device) - shift_B1).clamp(0, length - 1)


def _cut(x_BCTHW: Tensor, box_B3: Tensor) -> Tensor:
    row_B1, column_B1, side_B1 = box_B3[:, :, None].unbind(1)
    outside_BH = _distance(x_BCTHW.shape[3], row_B1) >= side_B1 / 2
    outside_BW = _distance(x_BCTHW.shape[4], column_B1) >= side_B1 / 2
    kept_BHW = outside_BH[:, :, None] | outside_BW[:, None, :]
    return x_BCTHW * kept_BHW[:, None, None].to(x_BCTHW.dtype)


def _distance(length: int, centre_B1: Tensor) -> Tensor:
    position_L: Tensor = (torch.arange(length, device=centre_B1.device) + 0.5) / length
    return (position_L - centre_B1).abs()
