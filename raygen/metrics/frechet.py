"""The Fréchet distance between two sets of features, each taken as a Gaussian.

Dowson and Landau, 1982; Heusel et al., "GANs trained by a two time-scale update rule", 2017
(arXiv 1706.08500), eq. 6. Shapes: N samples, D feature dimensions. Units: squared features.
"""

from __future__ import annotations

import torch
from torch import Tensor


def frechet_distance(a_ND: Tensor, b_MD: Tensor) -> float:
    """|mu_a - mu_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)), in float64; 0 for equal sets.

    The estimate is biased upwards for few samples: compare only at equal numbers, and take at
    least a few times D.
    """
    mean_a_D, covariance_a_DD = moments(a_ND)
    mean_b_D, covariance_b_DD = moments(b_MD)
    return gaussian_distance(mean_a_D, covariance_a_DD, mean_b_D, covariance_b_DD)


def moments(features_ND: Tensor) -> tuple[Tensor, Tensor]:
    """Mean [D] and unbiased covariance [D,D] in float64, of at least two samples."""
    features_ND = features_ND.double()
    return features_ND.mean(0), torch.cov(features_ND.T).reshape(2 * features_ND.shape[1:])


def gaussian_distance(
    mean_a_D: Tensor, covariance_a_DD: Tensor, mean_b_D: Tensor, covariance_b_DD: Tensor
) -> float:
    """The squared 2-Wasserstein distance between two Gaussians."""
    # S_a S_b is not symmetric, but has the eigenvalues of S_a^(1/2) S_b S_a^(1/2), which is; and
    # the trace of a root is the sum of the roots of the eigenvalues.
    values_D, vectors_DD = torch.linalg.eigh(covariance_a_DD)
    root_DD = (vectors_DD * values_D.clamp(min=0).sqrt()) @ vectors_DD.T
    product_D = torch.linalg.eigvalsh(root_DD @ covariance_b_DD @ root_DD)
    cross = product_D.clamp(min=0).sqrt().sum()
    offset = (mean_a_D - mean_b_D).square().sum()
    distance = float(offset + covariance_a_DD.trace() + covariance_b_DD.trace() - 2 * cross)
    return max(distance, 0.0)  # equal Gaussians of low rank end at about -1e-6
