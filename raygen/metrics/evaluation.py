"""The judge's findings as figures: a table, JSON, one score.

A document that an earlier raygen wrote lacks some of them: those are NaN, and no row shows them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

NAN = math.nan


@dataclass(frozen=True)
class Evaluation:
    """The judge's findings. None of it compares with figures from another data set.

    Figures in `_real` are those of one half of the real videos against the other, as near as one
    can come; `_ratio` is generated over real, 1 is right.
    """

    clips: int  # generated clips judged
    real_clips: int
    judge_accuracy: float  # on real videos that the judge was not trained on, 0 to 1
    class_accuracy: float  # of the generated clips, 0 to 1
    class_accuracies: Mapping[str, float]  # the same, class by class, where any were generated
    frechet: float  # generated to all real clips, in the extractor's features
    frechet_real: float
    motion_ratio: float  # 0 is frozen
    jerk_ratio: float  # of second differences: above motion_ratio is jitter
    ssim_fake: float  # of neighbouring frames
    ssim_real: float
    distance: str = "embedded Fréchet distance (not FVD)"  # what `frechet` is, and in what
    kernel: float = NAN  # squared MMD with the cubic kernel, in the same features
    kernel_real: float = NAN
    precision: float = NAN
    precision_real: float = NAN
    recall: float = NAN
    recall_real: float = NAN
    density: float = NAN
    density_real: float = NAN
    coverage: float = NAN
    coverage_real: float = NAN
    warp_ratio: float = NAN  # of what is left once motion is undone: above 1 is flicker or grain
    diversity_pixels_ratio: float = NAN  # of the mean distance between clips of a class
    diversity_features_ratio: float = NAN
    nearest_pixels: float = NAN  # grey levels to the nearest real clip, the median
    nearest_pixels_real: float = NAN  # the same of real clips to those of other videos
    memorised: float = NAN  # share that copies a video pixel by pixel, 0 to 1: see nearest.py
    memorised_features: float = NAN  # share that does so in features
    controls: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    # Real clips spoilt on purpose, one half to the other: treatment to frechet and kernel.

    @property
    def score(self) -> float:
        """The less the better: the distance, times how far the motion is off, either way.

        The distance alone hardly notices motion (CVPR 2024, "On the Content Bias in Frechet Video
        Distance"): frozen or flickering clips must not win by it.
        """
        motion = self.motion_ratio
        return math.inf if motion <= 0 else self.frechet * max(motion, 1 / motion)

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON types; an infinite figure is null, one that was not measured is left out."""
        return {
            key: None if value == math.inf else value
            for key, value in asdict(self).items()
            if value == value
        }

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Evaluation:
        """What `as_dict` gave, in this version or another."""
        known = {each.name for each in fields(cls)}
        values: dict[str, Any] = {
            key: math.inf if value is None else value
            for key, value in document.items()
            if key in known
        }
        return cls(**values)

    def rows(self) -> list[tuple[str, str, str]]:
        """A table: what was measured, of the generated clips, of the real ones."""
        rows = [
            ("clips", f"{self.clips}", f"{self.real_clips}"),
            ("class accuracy", f"{self.class_accuracy:.3f}", f"{self.judge_accuracy:.3f} held out"),
            (self.distance, f"{self.frechet:.3g}", f"{self.frechet_real:.3g} between halves"),
            ("kernel distance", f"{self.kernel:.3g}", f"{self.kernel_real:.3g} between halves"),
            *(
                (name, f"{getattr(self, name):.2f}", f"{getattr(self, f'{name}_real'):.2f}")
                for name in ("precision", "recall", "density", "coverage")
            ),
            ("motion ratio", f"{self.motion_ratio:.2f}", "1"),
            ("second-difference ratio", f"{self.jerk_ratio:.2f}", "1"),
            ("warping error ratio", f"{self.warp_ratio:.2f}", "1"),
            ("SSIM of neighbouring frames", f"{self.ssim_fake:.3f}", f"{self.ssim_real:.3f}"),
            ("diversity within a class, pixels", f"{self.diversity_pixels_ratio:.2f}", "1"),
            ("diversity within a class, features", f"{self.diversity_features_ratio:.2f}", "1"),
            (
                "grey levels to the nearest video",
                f"{self.nearest_pixels:.1f}",
                f"{self.nearest_pixels_real:.1f}",
            ),
            ("memorised, by pixels", f"{self.memorised:.3f}", "0"),
            ("memorised, by features", f"{self.memorised_features:.3f}", "0"),
        ]
        return [row for row in rows if row[1] != "nan"]

    def control_rows(self) -> list[tuple[str, str, str]]:
        """What spoiling does to the distances: how clips were spoilt, Fréchet, kernel."""
        if not self.controls:
            return []
        untouched = ("untouched", self.frechet_real, self.kernel_real)
        spoilt = [(name, each["frechet"], each["kernel"]) for name, each in self.controls.items()]
        return [
            (n, f"{frechet:.3g}", f"{kernel:.3g}") for n, frechet, kernel in [untouched, *spoilt]
        ]
