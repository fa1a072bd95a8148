"""How much of the real clips' variety the generated ones have, and how many look real.

A sample is within a set's manifold where it is no farther from one of the set's samples than that
one's k-th nearest other sample is. Precision and recall: Kynkäänniemi et al., 2019 (arXiv
1904.06991), eq. 1 and 2, k = 3. Density and coverage: Naeem et al., 2020 (arXiv 2002.09797), eq. 5
and 6, k = 5; unlike the former two they are not fooled by single outliers. Shapes: N real and M
generated samples, D feature dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

PRECISION_K = 3
DENSITY_K = 5


@dataclass(frozen=True)
class Manifold:
    """All 0 to 1 but `density`, which is 1 on average for samples of the real distribution."""

    precision: float  # share of generated samples within the real manifold
    recall: float  # share of real samples within the generated manifold
    density: float  # how many real neighbourhoods hold a generated sample, over k
    coverage: float  # share of real neighbourhoods that hold a generated sample


def compare(
    real_ND: Tensor, fake_MD: Tensor, precision_k: int = PRECISION_K, density_k: int = DENSITY_K
) -> Manifold:
    """All four, from Euclidean distances in float64.

    A set of few samples takes the farthest that there is for the k-th; each has at least two.
    """
    real_ND, fake_MD = real_ND.double(), fake_MD.double()
    apart_NM = torch.cdist(real_ND, fake_MD, compute_mode="donot_use_mm_for_euclid_dist")
    within_NM = apart_NM <= radii(real_ND, precision_k)[:, None]
    recalled_NM = apart_NM <= radii(fake_MD, precision_k)
    dense_NM = apart_NM <= radii(real_ND, density_k)[:, None]
    k = min(density_k, len(real_ND) - 1)
    return Manifold(
        precision=float(within_NM.any(0).double().mean()),
        recall=float(recalled_NM.any(1).double().mean()),
        density=float(dense_NM.double().sum(0).mean() / k),
        coverage=float(dense_NM.any(1).double().mean()),
    )


def radii(features_ND: Tensor, k: int) -> Tensor:
    """The distance [N] of each sample to its k-th nearest other sample."""
    apart_NN = torch.cdist(features_ND, features_ND, compute_mode="donot_use_mm_for_euclid_dist")
    # The nearest of all is the sample itself, so the k-th other one is the (k + 1)-th.
    return apart_NN.kthvalue(min(k, len(features_ND) - 1) + 1, dim=1).values
