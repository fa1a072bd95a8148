"""Copies among generated clips: planted ones are found, fresh ones are not taken for copies."""

import numpy as np
import pytest
import torch

from raygen.data import synthetic
from raygen.metrics.classifier import Clips
from raygen.metrics.nearest import Nearest, copied, nearest, pixel_distances, same_videos


def films(count: int, seed: int, frames: int = 32) -> Clips:
    """`count` videos of moving shapes, [N, frames, 32, 32, 3]."""
    made = []
    for number in range(count):
        rng = np.random.default_rng((seed, number))
        colour = list(synthetic.COLOURS)[number % 4]
        path = synthetic.path(synthetic.MOTIONS[number % 5], frames, rng)
        made.append(synthetic.render(synthetic.SHAPES[number % 3], colour, path, 32, rng))
    return np.stack(made)


@pytest.fixture(scope="module")
def long() -> Clips:
    return films(48, seed=0)


@pytest.fixture(scope="module")
def among_real(long: Clips) -> Nearest:
    real, videos = long[:, 8:24], np.arange(len(long))
    return nearest(pixel_distances(real, real), videos, own_M=videos)


def test_a_copy_is_found_shifted_in_time_mirrored_and_grainy(
    long: Clips, among_real: Nearest
) -> None:
    real, videos = long[:, 8:24], np.arange(len(long))
    rng = np.random.default_rng(1)
    planted = {
        "shifted": long[:, 3:19],
        "mirrored": real[:, :, :, ::-1],
        "both": long[:, 12:28, :, ::-1],
        "grainy": np.clip(real + rng.normal(0, 6, real.shape), 0, 255).astype(np.uint8),
    }
    for name, clips in planted.items():
        found = nearest(pixel_distances(clips, real), videos)
        assert np.array_equal(found.index_M, videos), name
        assert copied(found, among_real).mean() > 0.9, name


def test_fresh_clips_and_held_out_ones_are_no_copies(long: Clips, among_real: Nearest) -> None:
    fresh = films(48, seed=7)[:, 8:24]
    found = nearest(pixel_distances(fresh, long[:, 8:24]), np.arange(len(long)))
    assert copied(found, among_real).mean() < 0.03
    assert copied(among_real, among_real).mean() < 0.03
    # Nor is what is near to everything: the mean of all clips.
    mean = np.repeat(long[:, 8:24].mean(0, keepdims=True), 2, axis=0).astype(np.uint8)
    found = nearest(pixel_distances(mean, long[:, 8:24]), np.arange(len(long)))
    assert np.median(found.distance_M) < np.median(among_real.distance_M)
    assert not copied(found, among_real).any()


def test_the_nearest_video_and_what_it_must_not_look_at() -> None:
    distances = np.array([[5.0, 1.0, 4.0, 3.0, 9.0], [2.0, 8.0, 6.0, 7.0, 0.0]])
    videos = np.array([0, 0, 1, 1, 2])
    found = nearest(torch.from_numpy(distances), videos)
    assert found.index_M.tolist() == [1, 4]
    assert found.ratio_M.tolist() == [1 / 6, 0]  # 1 over the mean of 3 and 9
    apart = nearest(torch.from_numpy(distances), videos, own_M=np.array([0, 2]))
    assert apart.index_M.tolist() == [3, 0]
    assert apart.ratio_M.tolist() == [3 / 9, 2 / 6]


def test_distance_is_root_mean_square_where_clips_overlap() -> None:
    a = np.full((1, 8, 16, 16, 3), 100, np.uint8)
    b = np.full((1, 8, 16, 16, 3), 130, np.uint8)
    assert pixel_distances(a, b).item() == pytest.approx(30, abs=0.1)
    b[0, 4:] = 100  # laid over the other by half its length
    assert pixel_distances(a, b).item() < 0.5  # of rounding


def test_mirrored_takes_are_one_video(long: Clips) -> None:
    takes = long[:12, 8:24]
    clips = np.concatenate([takes, takes[:6, :, :, ::-1]])
    clips = np.clip(clips + np.random.default_rng(0).normal(0, 2, clips.shape), 0, 255)
    found = same_videos(clips.astype(np.uint8), np.arange(18))
    assert len(np.unique(found)) == 12
    assert np.array_equal(found[:6], found[12:])
