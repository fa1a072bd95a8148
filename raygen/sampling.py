"""Latents and conditions to clips: the one way in which raygen asks a generator for them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from raygen.conditions import Condition

_SPREAD = 0x9E3779B97F4A7C15  # tells the seeds of one network from those of the next


def latent(seed: int, dim: int) -> Tensor:
    """The latent [dim] of a seed (0 to 2**63 - 1), the same on every machine."""
    return torch.randn(dim, generator=torch.Generator().manual_seed(seed))


def latents(seeds: Sequence[int], dims: int | Sequence[int], truncation: float = 1.0) -> Tensor:
    """The latents [N, D] of seeds, scaled by `truncation`: below 1, less varied and more usual.

    D is `dims`, or of a cascade the sum of its networks', the first of which gets the latents that
    it gets alone.

    The scale of Glow's temperature (arXiv 1807.03039, section 5), for the ends that the
    resampling of Brock et al. serves (arXiv 1809.11096, section 3.1): it keeps every seed's
    direction, so that a clip changes gradually with it.
    """
    parts = [
        torch.stack([latent(seed ^ (k * _SPREAD % 2**63), dim) for seed in seeds])
        for k, dim in enumerate([dims] if isinstance(dims, int) else dims)
    ]
    return truncation * torch.cat(parts, 1)


def spherical(first_D: Tensor, last_D: Tensor, share_N: Tensor) -> Tensor:
    """Latents [N, D] from one to the other, at `share_N` of the way, along their great circle.

    White 2016 (arXiv 1609.04468, section 2.1): a straight line would pass through latents shorter
    than any that training has drawn.
    """
    cosine = torch.nn.functional.cosine_similarity(first_D, last_D, 0).clamp(-1, 1)
    angle = torch.acos(cosine)
    if float(torch.sin(angle)) < 1e-4:
        return torch.lerp(first_D, last_D, share_N[:, None])
    weights_N1 = (torch.sin(part * angle)[:, None] for part in (1 - share_N, share_N))
    from_N1, to_N1 = weights_N1
    return (from_N1 * first_D + to_N1 * last_D) / torch.sin(angle)


def at_once(device: torch.device) -> int:
    """How many clips go through the network together where nothing else is said."""
    # Kernels round differently at different batch sizes, so there is only one size. A GPU fills
    # it up with repeats; on a CPU larger batches gain little or nothing.
    return 1 if device.type == "cpu" else 8


@torch.inference_mode()
def generate(
    generator: nn.Module,
    z_ND: Tensor,
    y_N: Condition,
    device: torch.device,
    times: Sequence[float] | None = None,
    size: int | None = None,
) -> npt.NDArray[np.uint8]:
    """One clip a latent and its condition: uint8 [N,T,H,W,3], 0 to 255; `generator` in eval mode.

    A clip depends on its own latent and condition alone, to the bit, whatever else is asked for
    with it; on another kind of machine a pixel may be off by one. With `times`, in frames of the
    trained rate, for a `raygen.models.Timed` generator alone: those frames instead of the trained.
    `size`: how many go through the network at once, fewer being filled up with repeats.
    """
    batch = size or at_once(device)
    dtype = next(generator.parameters()).dtype
    asked = {} if times is None else {"times": times}
    clips = []
    for start in range(0, len(z_ND), batch):
        rows_B = torch.arange(start, start + batch) % len(z_ND)
        z_BD = z_ND[rows_B].to(device, dtype)
        x_BCTHW = generator(z_BD, y_N.rows(rows_B).to(device, dtype), **asked)
        clips.append(to_uint8(x_BCTHW)[: len(z_ND) - start])
    return np.concatenate(clips)


def to_uint8(x_BCTHW: Tensor) -> npt.NDArray[np.uint8]:
    """Clips in [-1, 1] -> uint8 [B,T,H,W,C], 0 to 255."""
    levels = ((x_BCTHW.float() + 1) * 127.5).round().to(torch.uint8)
    return np.ascontiguousarray(levels.permute(0, 2, 3, 4, 1).cpu().numpy())


def to_float(frame_HWC: npt.NDArray[np.uint8]) -> Tensor:
    """A frame, uint8 [H, W, 3], as networks see it: [3, H, W] in [-1, 1]."""
    return torch.from_numpy(frame_HWC.copy()).permute(2, 0, 1).float().div_(127.5).sub_(1)
