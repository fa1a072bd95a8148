"""Seeds and class ids to clips: the one way in which raygen asks a generator for them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn


def latent(seed: int, dim: int) -> Tensor:
    """The latent [dim] of a seed (0 to 2**63 - 1), the same on every machine."""
    return torch.randn(dim, generator=torch.Generator().manual_seed(seed))


@torch.inference_mode()
def generate(
    generator: nn.Module,
    latent_dim: int,
    seeds: Sequence[int],
    labels: Sequence[int],
    device: torch.device,
    times: Sequence[float] | None = None,
) -> npt.NDArray[np.uint8]:
    """One clip a pair of seed and class id: uint8 [N,T,H,W,3], 0 to 255; `generator` in eval mode.

    A clip depends on its own seed and label alone, to the bit, whatever else is asked for with
    it; on another kind of machine a pixel may be off by one. With `times`, in frames of the
    trained rate, for a `raygen.models.Timed` generator alone: those frames instead of the trained.
    """
    # Kernels round differently at different batch sizes, so there is only one size. A GPU fills
    # it up with repeats; on a CPU larger batches gain little or nothing.
    batch = 1 if device.type == "cpu" else 8
    z_ND = torch.stack([latent(seed, latent_dim) for seed in seeds])
    y_N = torch.tensor(labels)
    asked = {} if times is None else {"times": times}
    clips = []
    for start in range(0, len(seeds), batch):
        rows_B = torch.arange(start, start + batch) % len(seeds)
        x_BCTHW = generator(z_ND[rows_B].to(device), y_N[rows_B].to(device), **asked)
        clips.append(to_uint8(x_BCTHW)[: len(seeds) - start])
    return np.concatenate(clips)


def to_uint8(x_BCTHW: Tensor) -> npt.NDArray[np.uint8]:
    """Clips in [-1, 1] -> uint8 [B,T,H,W,C], 0 to 255."""
    levels = ((x_BCTHW + 1) * 127.5).round().to(torch.uint8)
    return np.ascontiguousarray(levels.permute(0, 2, 3, 4, 1).cpu().numpy())
