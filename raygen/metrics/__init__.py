"""What generated clips are worth, beside real ones: class, distance, motion, smoothness.

    evaluation = judge(real, labels, videos, fake, fake_labels, classes, config.evaluate, seed=0)
    run.write_json("evaluation.json", evaluation.as_dict())

Pure numpy and torch; no Ray. Clips are uint8 [N,T,H,W,3], decoded or generated, never re-encoded.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from raygen.config import EvaluateConfig
from raygen.metrics.classifier import (
    Clips,
    Labels,
    examine,
    split_videos,
    train_classifier,
)
from raygen.metrics.frechet import frechet_distance
from raygen.metrics.motion import motion_ratio, neighbour_ssim

__all__ = ["Evaluation", "judge"]

HELD_OUT = 0.25  # of each class's real clips: the judge's own examination
FRECHET = "embedded Fréchet distance (not FVD)"


@dataclass(frozen=True)
class Evaluation:
    """The judge's findings. None of it compares with figures from another data set."""

    clips: int  # generated clips judged
    real_clips: int
    judge_accuracy: float  # on real videos that the judge was not trained on, 0 to 1
    class_accuracy: float  # of the generated clips, 0 to 1
    class_accuracies: Mapping[str, float]  # the same, class by class, where any were generated
    frechet: float  # generated to all real clips, in the judge's features
    frechet_real: float  # one half of the real videos to the other: as near as one can come
    motion_ratio: float  # generated to real: 1 is right, 0 frozen
    jerk_ratio: float  # the same of second differences: above motion_ratio is jitter
    ssim_fake: float  # of neighbouring frames
    ssim_real: float

    @property
    def score(self) -> float:
        """The less the better: the distance, times how far the motion is off, either way.

        The distance alone hardly notices motion (CVPR 2024, "On the Content Bias in Frechet Video
        Distance"): frozen or flickering clips must not win by it.
        """
        motion = self.motion_ratio
        return math.inf if motion <= 0 else self.frechet * max(motion, 1 / motion)

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON types; an infinite ratio is null."""
        return {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in asdict(self).items()
        }

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Evaluation:
        """What `as_dict` gave."""
        values: dict[str, Any] = {k: math.inf if v is None else v for k, v in document.items()}
        return cls(**values)

    def rows(self) -> list[tuple[str, str, str]]:
        """A table: what was measured, of the generated clips, of the real ones."""
        return [
            ("clips", f"{self.clips}", f"{self.real_clips}"),
            ("class accuracy", f"{self.class_accuracy:.3f}", f"{self.judge_accuracy:.3f} held out"),
            (FRECHET, f"{self.frechet:.3g}", f"{self.frechet_real:.3g} between halves"),
            ("motion ratio", f"{self.motion_ratio:.2f}", "1"),
            ("second-difference ratio", f"{self.jerk_ratio:.2f}", "1"),
            ("SSIM of neighbouring frames", f"{self.ssim_fake:.3f}", f"{self.ssim_real:.3f}"),
        ]


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
    """Train the judge on real clips and let it judge the generated ones, deterministically.

    `real_videos_N` is the video that each real clip was cut from: whole videos are held out. With
    a single class the judge learns nothing and its features are random projections, fit for the
    distance only. Raises DataError where a class has fewer than two videos.
    """
    held_N = split_videos(real_labels_N, real_videos_N, classes, HELD_OUT, seed)
    model = train_classifier(
        real_NTHWC[~held_N],
        real_labels_N[~held_N],
        len(classes),
        config.judge_steps,
        config.batch_size,
        seed,
    )
    real = examine(model, real_NTHWC, config.batch_size)
    fake = examine(model, fake_MTHWC, config.batch_size)
    half_N = split_videos(real_labels_N, real_videos_N, classes, 0.5, seed)
    right_M = fake.correct(fake_labels_M)
    return Evaluation(
        clips=len(fake_MTHWC),
        real_clips=len(real_NTHWC),
        judge_accuracy=float(real.correct(real_labels_N)[held_N].mean()),
        class_accuracy=float(right_M.mean()),
        class_accuracies={
            name: float(right_M[fake_labels_M == label].mean())
            for label, name in enumerate(classes)
            if np.any(fake_labels_M == label)
        },
        frechet=frechet_distance(fake.features_ND, real.features_ND),
        frechet_real=frechet_distance(real.features_ND[half_N], real.features_ND[~half_N]),
        motion_ratio=motion_ratio(fake_MTHWC, real_NTHWC),
        jerk_ratio=motion_ratio(fake_MTHWC, real_NTHWC, order=2),
        ssim_fake=neighbour_ssim(fake_MTHWC),
        ssim_real=neighbour_ssim(real_NTHWC),
    )
