"""The judge at work: learns the real clips once, then compares any number of generated sets.

    judge = Judge(real, labels, videos, classes, config.evaluate, seed=0)
    judgement = judge(fake, fake_labels)
    judgement.evaluation, judgement.pixels.index_M

Shapes: N real and M generated clips, T frames, H, W, C = 3; D features, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from raygen.config import EvaluateConfig
from raygen.metrics import controls, manifold
from raygen.metrics.classifier import (
    Clips,
    Labels,
    examine,
    split_videos,
    train_classifier,
)
from raygen.metrics.diversity import diversity
from raygen.metrics.evaluation import Evaluation
from raygen.metrics.features import EMBEDDED, extractor, frechet_name
from raygen.metrics.frechet import frechet_distance
from raygen.metrics.kernel import kernel_distance
from raygen.metrics.motion import motion_ratio, neighbour_ssim
from raygen.metrics.nearest import (
    Nearest,
    copied,
    nearest,
    pixel_distances,
    reduced,
    same_videos,
)
from raygen.metrics.warping import warping_ratio

HELD_OUT = 0.25  # of each class's real clips: the judge's own examination
LEAST_VIDEOS = 4  # without which nothing can be said of copies


@dataclass(frozen=True)
class Judgement:
    """An evaluation, and what it says of each of the M clips."""

    evaluation: Evaluation
    pixels: Nearest  # real clips nearest in pixels
    features: Nearest  # and in features
    copied_M: npt.NDArray[np.bool_]  # by pixels


@dataclass(frozen=True)
class _Side:
    """Clips that are compared, and what the extractor sees in them."""

    clips: Clips
    labels: Labels
    right_N: npt.NDArray[np.bool_]  # where the judge sees the class of the label
    features_ND: Tensor

    def __getitem__(self, rows_N: npt.NDArray[np.bool_]) -> _Side:
        features_ND = self.features_ND[torch.from_numpy(rows_N)]
        return _Side(self.clips[rows_N], self.labels[rows_N], self.right_N[rows_N], features_ND)


class Judge:
    """Trained on real clips; judges generated ones, deterministically.

    `videos_N` is the video that each real clip was cut from: whole videos are held out, together
    with those that show the same, such as mirrored takes. With a single class the judge learns
    nothing and its features are random projections, fit for the distance only. Raises DataError
    where a class has fewer than two videos, ConfigError where `config.features` cannot be had.
    """

    def __init__(
        self,
        real_NTHWC: Clips,
        labels_N: Labels,
        videos_N: Labels,
        classes: Sequence[str],
        config: EvaluateConfig,
        seed: int,
    ) -> None:
        self.classes = classes
        self.videos_N = same_videos(real_NTHWC, videos_N)
        held_N = split_videos(labels_N, self.videos_N, classes, HELD_OUT, seed)
        self._batch_size = config.batch_size
        self.model = train_classifier(
            real_NTHWC[~held_N],
            labels_N[~held_N],
            len(classes),
            config.judge_steps,
            config.batch_size,
            seed,
        )
        _, T, H, W, _ = real_NTHWC.shape
        self.extractor = extractor(
            config.features, self.model, config.batch_size, frames=T, size=min(H, W)
        )
        self.real = self._side(real_NTHWC, labels_N)
        self.accuracy = float(self.real.right_N[held_N].mean())
        self._half_N = split_videos(labels_N, self.videos_N, classes, 0.5, seed)

    def __call__(self, fake_MTHWC: Clips, labels_M: Labels) -> Judgement:
        """What generated clips are worth."""
        fake = self._side(fake_MTHWC, labels_M)
        return self._judge(fake, self.real, self.videos_N)

    def real_half(self) -> Judgement:
        """One half of the real videos, judged against the other as if it had been generated.

        Its class accuracy is on clips that the judge was trained on, for the most part.
        """
        ours, other = self._halves
        return self._judge(ours, other, self.videos_N[~self._half_N])

    def _judge(self, fake: _Side, real: _Side, videos_N: Labels) -> Judgement:
        ours, other = self._halves
        halves = manifold.compare(other.features_ND, ours.features_ND)
        against = manifold.compare(real.features_ND, fake.features_ND)
        pixels, features = self._nearest(fake, real, videos_N)
        pixels_real, features_real = self._among_real
        few = len(np.unique(videos_N)) < LEAST_VIDEOS
        copied_M = copied(pixels, pixels_real) & (not few)
        copied_features_M = copied(features, features_real)
        evaluation = Evaluation(
            clips=len(fake.clips),
            real_clips=len(real.clips),
            judge_accuracy=self.accuracy,
            class_accuracy=float(fake.right_N.mean()),
            class_accuracies={
                name: float(fake.right_N[fake.labels == label].mean())
                for label, name in enumerate(self.classes)
                if np.any(fake.labels == label)
            },
            **_distances(fake.features_ND, real.features_ND),
            **{f"{name}_real": value for name, value in self._untouched.items()},
            **vars(against),
            **{f"{name}_real": value for name, value in vars(halves).items()},
            distance=frechet_name(
                self.extractor, min(len(fake.clips), len(real.clips)), fake.clips.shape[1]
            ),
            motion_ratio=motion_ratio(fake.clips, real.clips),
            jerk_ratio=motion_ratio(fake.clips, real.clips, order=2),
            warp_ratio=warping_ratio(fake.clips, real.clips),
            ssim_fake=neighbour_ssim(fake.clips),
            ssim_real=neighbour_ssim(real.clips),
            diversity_pixels_ratio=diversity(
                reduced(real.clips).flatten(1),
                real.labels,
                reduced(fake.clips).flatten(1),
                fake.labels,
            ),
            diversity_features_ratio=diversity(
                real.features_ND, real.labels, fake.features_ND, fake.labels
            ),
            nearest_pixels=float(np.median(pixels.distance_M)),
            nearest_pixels_real=float(np.median(pixels_real.distance_M)),
            memorised=math.nan if few else float(copied_M.mean()),
            memorised_features=math.nan if few else float(copied_features_M.mean()),
            controls=self.controls,
        )
        return Judgement(evaluation, pixels, features, copied_M)

    @cached_property
    def controls(self) -> dict[str, dict[str, float]]:
        """Treatment to the distances of one half of the real clips, so treated, to the other."""
        ours, other = self._halves
        found = {
            name: _distances(self.extractor(treat(ours.clips)), other.features_ND)
            for name, treat in controls.TREATMENTS.items()
        }
        kept = ours[ours.labels < len(self.classes) / 2]
        if len(self.classes) > 1 and len(kept.labels) > 1:
            found[controls.HALF_MISSING] = _distances(kept.features_ND, other.features_ND)
        return found

    @cached_property
    def _untouched(self) -> dict[str, float]:
        ours, other = self._halves
        return _distances(ours.features_ND, other.features_ND)

    @cached_property
    def _halves(self) -> tuple[_Side, _Side]:
        """Two halves of the real videos, none in both."""
        return self.real[self._half_N], self.real[~self._half_N]

    @cached_property
    def _among_real(self) -> tuple[Nearest, Nearest]:
        """Each real clip beside those of other videos: in pixels, in features."""
        return self._nearest(self.real, self.real, self.videos_N, self.videos_N)

    @cached_property
    def _mirrored(self) -> Tensor:
        return self.extractor(controls.mirrored(self.real.clips))

    def _nearest(
        self, fake: _Side, real: _Side, videos_N: Labels, own_M: Labels | None = None
    ) -> tuple[Nearest, Nearest]:
        mirrored_ND = self._mirrored
        if real is not self.real:
            mirrored_ND = mirrored_ND[torch.from_numpy(~self._half_N)]
        apart_MN = torch.minimum(
            torch.cdist(fake.features_ND, real.features_ND),
            torch.cdist(fake.features_ND, mirrored_ND),
        )
        return (
            nearest(pixel_distances(fake.clips, real.clips), videos_N, own_M),
            nearest(apart_MN, videos_N, own_M),
        )

    def _side(self, clips: Clips, labels: Labels) -> _Side:
        verdict = examine(self.model, clips, self._batch_size)
        embedded = self.extractor.name == EMBEDDED
        features_ND = verdict.features_ND if embedded else self.extractor(clips)
        return _Side(clips, labels, verdict.correct(labels), features_ND)


def judge(
    real_NTHWC: Clips,
    real_labels_N: Labels,
    real_videos_N: Labels,
    fake_MTHWC: Clips,
    fake_labels_M: Labels,
    classes: Sequence[str],
    config: EvaluateConfig,
    seed: int,
) -> Evaluation:
    """A `Judge` of the real clips, asked once."""
    judge = Judge(real_NTHWC, real_labels_N, real_videos_N, classes, config, seed)
    return judge(fake_MTHWC, fake_labels_M).evaluation


def _distances(a_ND: Tensor, b_MD: Tensor) -> dict[str, float]:
    return {"frechet": frechet_distance(a_ND, b_MD), "kernel": kernel_distance(a_ND, b_MD)}
