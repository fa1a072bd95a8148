"""The judge against clips whose truth is known, the distances against closed forms."""

import math
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from raygen.config import EvaluateConfig
from raygen.data import synthetic
from raygen.errors import DataError
from raygen.metrics import Evaluation, Judge, judge
from raygen.metrics.classifier import Clips, Labels, split_videos
from raygen.metrics.frechet import frechet_distance, gaussian_distance, moments
from raygen.metrics.motion import motion, motion_ratio, neighbour_ssim

WEIZMANN = Path(__file__).parents[2] / "shared" / "data" / "weizmann"
# Two classes that differ by direction alone, one by shape, one by everything.
SHAPES = ["red-circle-left", "red-circle-right", "red-square-right", "green-triangle-spin"]


def shapes(per_class: int, seed: int) -> tuple[Clips, Labels]:
    """Rendered clips of SHAPES, 16x32x32, and their labels."""
    clips, labels = [], []
    for label, name in enumerate(SHAPES):
        colour, shape, way = name.split("-")
        for number in range(per_class):
            rng = np.random.default_rng((seed, label, number))
            path = synthetic.path(way, 16, rng)
            clips.append(synthetic.render(shape, colour, path, 32, rng))
            labels.append(label)
    return np.stack(clips), np.array(labels)


@pytest.fixture(scope="module")
def real() -> tuple[Clips, Labels]:
    return shapes(24, seed=0)


@pytest.fixture(scope="module")
def judged(real: tuple[Clips, Labels]) -> Judge:
    return Judge(*real, np.arange(len(real[0])), SHAPES, EvaluateConfig(judge_steps=150), seed=0)


@pytest.fixture(scope="module")
def perfect(judged: Judge) -> Evaluation:
    """A generator that draws from the true distribution."""
    return judged(*shapes(24, seed=1)).evaluation


def test_the_judge_passes_its_own_examination(perfect: Evaluation) -> None:
    assert perfect.judge_accuracy > 0.95
    assert perfect.class_accuracy > 0.95
    assert set(perfect.class_accuracies) == set(SHAPES)


def test_fresh_clips_of_the_same_kind_are_as_near_as_real_ones(perfect: Evaluation) -> None:
    assert perfect.frechet < 2 * perfect.frechet_real
    assert perfect.motion_ratio == pytest.approx(1, abs=0.05)
    assert perfect.ssim_fake == pytest.approx(perfect.ssim_real, abs=0.02)
    assert (perfect.clips, perfect.real_clips) == (96, 96)


def test_fresh_clips_are_as_varied_as_real_ones_and_no_copies(perfect: Evaluation) -> None:
    assert perfect.kernel < 3 * abs(perfect.kernel_real) + 0.01
    assert min(perfect.precision, perfect.recall, perfect.coverage) > 0.6
    assert perfect.density == pytest.approx(1, abs=0.35)
    assert perfect.warp_ratio == pytest.approx(1, abs=0.1)
    assert perfect.diversity_pixels_ratio == pytest.approx(1, abs=0.15)
    assert perfect.diversity_features_ratio == pytest.approx(1, abs=0.3)
    assert perfect.nearest_pixels == pytest.approx(perfect.nearest_pixels_real, rel=0.2)
    assert perfect.memorised < 0.03


def test_what_a_distance_notices_is_in_order(perfect: Evaluation) -> None:
    of = {name: each["frechet"] for name, each in perfect.controls.items()}
    noticed = ("shuffled in time", "frozen", "blurred", "half the classes missing")
    assert min(of[name] for name in noticed) > 2 * perfect.frechet_real
    # Left and right are both among the classes: mirrored or backwards, all clips together look
    # nearly as before.
    assert max(of["mirrored"], of["backwards"]) < min(of[name] for name in noticed)
    for name in noticed:
        assert perfect.controls[name]["kernel"] > 2 * abs(perfect.kernel_real), name


def test_wrong_classes_and_broken_clips_are_told_apart(judged: Judge, perfect: Evaluation) -> None:
    clips, labels = shapes(24, seed=1)
    swapped = judged(clips, (labels + 1) % 4).evaluation
    assert swapped.class_accuracy < 0.05
    assert swapped.frechet == perfect.frechet  # blind to labels
    # Time runs backwards: right turns to left.
    backwards = judged(clips[:, ::-1].copy(), labels).evaluation
    assert backwards.class_accuracies["red-circle-left"] < 0.1
    grainy = np.clip(clips + np.random.default_rng(0).normal(0, 30, clips.shape), 0, 255)
    noisy = judged(grainy.astype(np.uint8), labels).evaluation
    assert noisy.frechet > 3 * perfect.frechet
    assert noisy.motion_ratio > 1.5
    assert noisy.ssim_fake < noisy.ssim_real - 0.2
    assert noisy.jerk_ratio > noisy.motion_ratio
    assert noisy.warp_ratio > 2


def test_copies_and_lost_variety_are_told(
    real: tuple[Clips, Labels], judged: Judge, perfect: Evaluation
) -> None:
    clips, labels = real
    copying = judged(np.ascontiguousarray(clips[:, :, :, ::-1]), labels)
    assert copying.evaluation.memorised > 0.9
    assert copying.pixels.index_M.tolist() == list(range(len(clips)))
    # One clip a class, again and again.
    first = np.searchsorted(labels, labels)
    collapsed = judged(clips[first], labels).evaluation
    assert collapsed.diversity_pixels_ratio == pytest.approx(0, abs=1e-6)
    assert collapsed.coverage < perfect.coverage / 2


def test_one_half_of_the_real_clips_against_the_other(judged: Judge, perfect: Evaluation) -> None:
    half = judged.real_half().evaluation
    assert half.frechet == pytest.approx(perfect.frechet_real)
    assert half.memorised < 0.05
    assert half.precision == pytest.approx(perfect.precision_real)


@pytest.mark.skipif(not WEIZMANN.is_dir(), reason="needs ../shared/data/weizmann")
def test_the_judge_knows_real_actions_of_actors_it_never_saw() -> None:
    classes = sorted(path.name for path in WEIZMANN.iterdir() if path.is_dir())
    rng = np.random.default_rng(0)
    clips, labels, actors = [], [], []
    for label, name in enumerate(classes):
        for path in sorted((WEIZMANN / name).glob("*.mp4")):
            with av.open(str(path), "r") as container:
                frames = [
                    frame.reformat(32, 32, format="rgb24").to_ndarray()
                    for frame in container.decode(video=0)
                ]
            for start in rng.integers(0, len(frames) - 24, size=6):
                times = np.round(start + np.arange(16) * 1.5).astype(int)
                clips.append(np.stack(frames)[times])
                labels.append(label)
                actors.append(int(path.stem) // 8)  # eight files an actor, mirrored ones included
    real = np.stack(clips), np.array(labels)
    found = judge(*real, np.array(actors), *real, classes, EvaluateConfig(), seed=0)
    assert found.judge_accuracy > 0.95
    assert found.frechet == pytest.approx(0, abs=1e-6)
    assert found.motion_ratio == 1


def test_evaluation_survives_json(perfect: Evaluation) -> None:
    assert Evaluation.from_dict(perfect.as_dict()) == perfect
    still = Evaluation(**{**vars(perfect), "motion_ratio": math.inf})
    assert still.as_dict()["motion_ratio"] is None
    assert Evaluation.from_dict(still.as_dict()) == still
    assert all(len(row) == 3 for row in perfect.rows())


def test_a_document_of_an_earlier_raygen_is_still_read() -> None:
    old = {
        "clips": 96,
        "real_clips": 96,
        "judge_accuracy": 1.0,
        "class_accuracy": 0.9,
        "class_accuracies": {"red": 0.9},
        "frechet": 2.0,
        "frechet_real": 0.5,
        "motion_ratio": 2.0,
        "jerk_ratio": None,
        "ssim_fake": 0.9,
        "ssim_real": 0.95,
        "score": 4.0,
    }
    found = Evaluation.from_dict(old)
    assert found.score == 4
    assert found.jerk_ratio == math.inf
    assert "memorised" not in found.as_dict()
    assert len(found.rows()) == 6
    assert found.control_rows() == []


def test_one_class_still_has_a_distance(real: tuple[Clips, Labels]) -> None:
    clips = real[0][:24]
    labels = np.zeros(24, np.int64)
    config = EvaluateConfig(judge_steps=10)
    found = judge(clips, labels, np.arange(24), clips, labels, ["all"], config, seed=0)
    assert found.judge_accuracy == 1
    assert found.frechet < found.frechet_real


def test_whole_videos_are_held_out_of_every_class() -> None:
    labels_N = np.repeat([0, 1, 2], [40, 20, 8])
    videos_N = np.arange(68) // 4
    held_N = split_videos(labels_N, videos_N, ["a", "b", "c"], 0.25, seed=3)
    assert not set(videos_N[held_N]) & set(videos_N[~held_N])
    for label, count in enumerate((40, 20, 8)):
        held = int(held_N[labels_N == label].sum())
        assert 0.25 * count <= held <= 0.25 * count + 4
    again_N = split_videos(labels_N, videos_N, ["a", "b", "c"], 0.25, seed=3)
    assert np.array_equal(held_N, again_N)


def test_a_class_of_one_video_cannot_be_held_out() -> None:
    with pytest.raises(DataError, match="class 'b' has 1 readable videos"):
        split_videos(np.array([0, 0, 1, 1]), np.array([0, 1, 2, 2]), ["a", "b"], 0.25, seed=0)


def test_frechet_distance_of_commuting_gaussians() -> None:
    mean_a_D, mean_b_D = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.0, 2.0, 5.0])
    deviation_a_D, deviation_b_D = torch.tensor([1.0, 2.0, 0.0]), torch.tensor([3.0, 0.5, 1.0])
    rotation_DD = torch.linalg.qr(torch.randn(3, 3, generator=torch.manual_seed(0)).double())[0]

    def covariance(deviation_D: torch.Tensor) -> torch.Tensor:
        scaled_DD: torch.Tensor = rotation_DD * deviation_D.double()
        return scaled_DD @ scaled_DD.T

    expected = (mean_a_D - mean_b_D).square().sum() + (deviation_a_D - deviation_b_D).square().sum()
    distance = gaussian_distance(
        mean_a_D.double(), covariance(deviation_a_D), mean_b_D.double(), covariance(deviation_b_D)
    )
    assert distance == pytest.approx(float(expected), rel=1e-7)


def test_frechet_distance_of_general_gaussians_in_two_dimensions() -> None:
    generator = torch.Generator().manual_seed(1)
    a_ND = torch.randn(200, 2, generator=generator) @ torch.tensor([[1.0, 0.6], [0.0, 0.8]])
    b_ND = torch.randn(300, 2, generator=generator) @ torch.tensor([[0.3, -0.9], [2.0, 0.1]]) + 1
    (mean_a_D, a_DD), (mean_b_D, b_DD) = moments(a_ND), moments(b_ND)
    # tr sqrt(M) = sqrt(tr M + 2 sqrt(det M)) for any 2x2 M with positive eigenvalues.
    product_DD = a_DD @ b_DD
    root = (product_DD.trace() + 2 * torch.linalg.det(product_DD).sqrt()).sqrt()
    expected = (mean_a_D - mean_b_D).square().sum() + a_DD.trace() + b_DD.trace() - 2 * root
    assert frechet_distance(a_ND, b_ND) == pytest.approx(float(expected), rel=1e-9)
    assert frechet_distance(a_ND, b_ND) == pytest.approx(frechet_distance(b_ND, a_ND), rel=1e-9)
    assert frechet_distance(a_ND, a_ND) == pytest.approx(0, abs=1e-9)


def test_frechet_distance_with_fewer_samples_than_dimensions() -> None:
    features_ND = torch.randn(5, 64, generator=torch.Generator().manual_seed(2))
    assert frechet_distance(features_ND, features_ND) == pytest.approx(0, abs=1e-4)
    assert frechet_distance(features_ND, features_ND + 1) == pytest.approx(64, rel=1e-5)


def test_motion_of_frozen_shuffled_and_steady_clips(real: tuple[Clips, Labels]) -> None:
    clips, _ = real
    frozen = np.repeat(clips[:, :1], 16, axis=1)
    shuffled = clips[:, np.random.default_rng(0).permutation(16)]
    assert motion_ratio(frozen, clips) == 0
    assert motion_ratio(clips, clips) == 1
    assert motion_ratio(shuffled, clips) > 1.5
    assert motion_ratio(clips, frozen) == math.inf
    # A ramp of 3 grey levels a frame: no second difference.
    ramp = np.arange(10, dtype=np.uint8)[None, :, None, None, None] * 3
    ramp = np.broadcast_to(ramp, (1, 10, 16, 16, 3))
    assert motion(ramp) == 3
    assert motion(ramp, order=2) == 0


def test_ssim_of_equal_frames_is_one_and_of_shuffled_ones_less(
    real: tuple[Clips, Labels],
) -> None:
    clips, _ = real
    frozen = np.repeat(clips[:, :1], 16, axis=1)
    shuffled = clips[:, np.random.default_rng(0).permutation(16)]
    assert neighbour_ssim(frozen) == pytest.approx(1, abs=1e-6)
    assert neighbour_ssim(shuffled) < neighbour_ssim(clips) < 1
