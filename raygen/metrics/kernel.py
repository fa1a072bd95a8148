"""The kernel distance between two sets of features: no Gaussian assumed, no bias at few samples.

Bińkowski et al., "Demystifying MMD GANs", 2018 (arXiv 1801.01401), section 4: the squared maximum
mean discrepancy with the cubic kernel of KID, (x.y / D + 1)^3. Over features of video this is
called KVD. Shapes: N and M samples, D feature dimensions.
"""

from __future__ import annotations

from torch import Tensor


def kernel_distance(a_ND: Tensor, b_MD: Tensor) -> float:
    """The unbiased estimate of MMD^2, in float64; around 0, or below it, for sets of one kind.

    Each set holds at least two samples. `U` of Gretton et al., 2012, eq. 3: the mean of the
    kernel within either set, each sample with itself left out, less twice that between the sets.
    """
    a_ND, b_MD = a_ND.double(), b_MD.double()
    within = _mean_of_others(_cubic(a_ND, a_ND)) + _mean_of_others(_cubic(b_MD, b_MD))
    return within - 2 * float(_cubic(a_ND, b_MD).mean())


def _cubic(a_ND: Tensor, b_MD: Tensor) -> Tensor:
    return (a_ND @ b_MD.T / a_ND.shape[1] + 1) ** 3


def _mean_of_others(kernel_NN: Tensor) -> float:
    count = len(kernel_NN)
    return float((kernel_NN.sum() - kernel_NN.trace()) / (count * (count - 1)))
