"""Distances and shares against sums written out, closed forms and sets counted by hand."""

import math

import numpy as np
import pytest
import torch

from raygen.metrics.diversity import diversity
from raygen.metrics.kernel import kernel_distance
from raygen.metrics.manifold import compare, radii
from raygen.metrics.pairs import psnr, ssim
from raygen.metrics.warping import warping_error, warping_ratio


def test_kernel_distance_is_the_double_sum_of_the_article() -> None:
    generator = torch.Generator().manual_seed(0)
    a_ND, b_MD = torch.randn(7, 5, generator=generator), torch.rand(4, 5, generator=generator)

    def k(x: torch.Tensor, y: torch.Tensor) -> float:
        return (sum(float(p) * float(q) for p, q in zip(x, y, strict=True)) / 5 + 1) ** 3

    within_a = sum(k(a_ND[i], a_ND[j]) for i in range(7) for j in range(7) if i != j) / (7 * 6)
    within_b = sum(k(b_MD[i], b_MD[j]) for i in range(4) for j in range(4) if i != j) / (4 * 3)
    between = sum(k(x, y) for x in a_ND for y in b_MD) / (7 * 4)
    expected = within_a + within_b - 2 * between
    assert kernel_distance(a_ND, b_MD) == pytest.approx(expected, rel=1e-6)


def test_kernel_distance_is_unbiased() -> None:
    generator = torch.Generator().manual_seed(1)
    draws = [
        kernel_distance(*torch.randn(2, 20, 3, generator=generator).unbind()) for _ in range(300)
    ]
    error = np.std(draws) / math.sqrt(len(draws))
    assert abs(np.mean(draws)) < 4 * error
    assert min(draws) < 0
    apart = kernel_distance(*(torch.randn(2, 20, 3, generator=generator) + 1).unbind())
    moved = torch.randn(20, 3, generator=generator)
    assert kernel_distance(moved, moved + 2) > 10 * abs(apart)


def on_a_line(*places: float) -> torch.Tensor:
    return torch.tensor(places, dtype=torch.float64)[:, None]


def test_precision_recall_density_coverage_of_a_set_counted_by_hand() -> None:
    # With k = 1 each real sample's neighbourhood reaches to the nearest other real one:
    # 0: 1, 1: 1, 3: 2, 7: 4; of the fakes 0.5: 0.75, 1.25: 0.75, 9: 7.75.
    real, fake = on_a_line(0, 1, 3, 7), on_a_line(0.5, 1.25, 9)
    assert radii(real, 1).tolist() == [1, 1, 2, 4]
    assert radii(fake, 1).tolist() == [0.75, 0.75, 7.75]
    found = compare(real, fake, precision_k=1, density_k=1)
    # 0.5 lies with 0 and 1; 1.25 with 1 and 3; 9 with 7.
    assert (found.precision, found.coverage) == (1, 1)
    assert found.density == pytest.approx(5 / 3)
    # 0 is within 0.75 of 0.5; 1 of 0.5 and of 1.25; 3 and 7 within 7.75 of 9.
    assert found.recall == 1
    far = compare(real, on_a_line(20, 21, 22), precision_k=1, density_k=1)
    assert vars(far) == {"precision": 0, "recall": 0, "density": 0, "coverage": 0}
    # One mode of two: all that is drawn is real, half of what is real is drawn.
    modes = on_a_line(0, 0.1, 0.2, 10, 10.1, 10.2)
    half = compare(modes, on_a_line(0, 0.1, 0.16), precision_k=1, density_k=1)
    assert (half.precision, half.recall, half.coverage) == (1, 3 / 6, 3 / 6)


def test_an_outlier_fools_precision_and_not_density() -> None:
    generator = torch.Generator().manual_seed(2)
    real = torch.cat([torch.randn(50, 2, generator=generator), torch.tensor([[40.0, 40.0]])])
    noise = torch.rand(50, 2, generator=generator) * 30 + 3
    found = compare(real, noise)
    assert found.precision > 0.9
    assert found.density < 0.3


def wang(a_HW: np.ndarray, b_HW: np.ndarray) -> float:
    """Equation 13 of Wang et al. 2004, window by window, as scikit-image's gaussian_weights."""
    taps = np.exp(-0.5 * (np.arange(-5, 6) / 1.5) ** 2)
    window = np.outer(taps, taps) / taps.sum() ** 2
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    values = []
    for top in range(a_HW.shape[0] - 10):
        for left in range(a_HW.shape[1] - 10):
            a, b = (x[top : top + 11, left : left + 11].astype(float) for x in (a_HW, b_HW))
            mean_a, mean_b = (window * a).sum(), (window * b).sum()
            var_a, var_b = (window * a * a).sum() - mean_a**2, (window * b * b).sum() - mean_b**2
            both = (window * a * b).sum() - mean_a * mean_b
            values.append(
                (2 * mean_a * mean_b + c1)
                * (2 * both + c2)
                / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))
            )
    return float(np.mean(values))


def test_ssim_is_that_of_its_article_and_psnr_its_definition() -> None:
    rng = np.random.default_rng(3)
    a = rng.integers(0, 256, (2, 2, 16, 18, 3)).astype(np.uint8)
    b = np.clip(a + rng.normal(0, 40, a.shape), 0, 255).astype(np.uint8)
    for found, left, right in zip(ssim(a, b), a, b, strict=True):
        planes = [wang(left[t, :, :, c], right[t, :, :, c]) for t in range(2) for c in range(3)]
        assert found == pytest.approx(np.mean(planes), abs=2e-5)
    squares = ((a.astype(float) - b) ** 2).mean((1, 2, 3, 4))
    assert psnr(a, b) == pytest.approx(10 * np.log10(255**2 / squares), rel=1e-5)
    assert ssim(a, a) == pytest.approx(1)
    assert np.isinf(psnr(a, a)).all()


def test_warping_error_undoes_motion_and_leaves_flicker() -> None:
    rng = np.random.default_rng(4)
    scene = rng.integers(0, 256, (48, 48, 3)).astype(np.uint8)
    # Two pixels a frame to the right: all but what enters at the edge is in the frame before.
    steady = np.stack([scene[8:40, 14 - 2 * t : 46 - 2 * t] for t in range(6)])[None]
    assert warping_error(steady) < 0.15 * np.abs(np.diff(steady.astype(float), axis=1)).mean()
    assert warping_error(np.repeat(steady[:, :1], 6, axis=1)) == 0
    flicker = np.clip(steady + 20 * (np.arange(6) % 2)[:, None, None, None], 0, 255)
    assert warping_ratio(flicker.astype(np.uint8), steady) > 2
    assert warping_ratio(steady, np.repeat(steady[:, :1], 6, axis=1)) == math.inf


def test_diversity_is_the_mean_over_classes() -> None:
    real, labels = on_a_line(0, 1, 10, 14), np.array([0, 0, 1, 1])
    # Class 0: 2 over 1; class 1: 1 over 4; class 2 has no real sample.
    fake, fake_labels = on_a_line(0, 2, 10, 11, 5, 6), np.array([0, 0, 1, 1, 2, 2])
    assert diversity(real, labels, fake, fake_labels) == pytest.approx((2 + 0.25) / 2)
    assert diversity(real, labels, on_a_line(3, 3), np.array([1, 1])) == 0
    assert math.isnan(diversity(real, labels, on_a_line(3, 4), np.array([0, 1])))
