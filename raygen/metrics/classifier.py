"""The judge: a small 3D convolutional classifier, trained on a run's own real clips.

It answers two questions about generated clips: is the class right (its verdict), and how far are
they from real ones (its features, see frechet.py). It is only as good as its accuracy on real
videos that it has not seen, which is therefore always reported beside.

Shapes: N clips or B in a batch, C channels, T frames, H, W, D features, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raygen.errors import DataError

Clips = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]

SHIFT = 1 / 8  # largest shift while training, of height and width
BRIGHTNESS = 0.3  # largest change of each colour while training, of the range -1 to 1
CONTRAST = 0.3  # largest change of the logarithm of the contrast
MIXUP = 0.4  # of Beta(MIXUP, MIXUP), the share of a clip that another is mixed into
FAINT = 0.02  # root mean square change between frames below which a clip counts as still
PEAK_LR = 4e-3
WIDTH = 16


class Classifier(nn.Module):
    """Clips to K class scores; the D = 64 features beneath them are pooled over time and space.

    The frame difference is an input of its own, at one strength in every clip: with few videos,
    backgrounds and the contrast of clothes would otherwise be learned before motion is.
    """

    features_dim = 4 * WIDTH

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            _block(6, WIDTH, stride=(2, 2, 2)),
            _block(WIDTH, 2 * WIDTH, stride=(2, 2, 2)),
            _block(2 * WIDTH, 4 * WIDTH, stride=(2, 2, 2)),
            _block(4 * WIDTH, 4 * WIDTH, stride=(1, 1, 1)),
        )
        self.head = nn.Linear(self.features_dim, classes)

    def features(self, x_BCTHW: Tensor) -> Tensor:
        """Features [B,D], not negative, of clips in -1 to 1."""
        change_BCTHW = F.pad(x_BCTHW.diff(dim=2), (0, 0, 0, 0, 1, 0))
        strength_B = change_BCTHW.square().mean((1, 2, 3, 4), keepdim=True).sqrt()
        change_BCTHW = change_BCTHW / (strength_B + FAINT)
        hidden_BDTHW: Tensor = self.body(torch.cat([x_BCTHW, change_BCTHW], dim=1))
        return hidden_BDTHW.mean((2, 3, 4))

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        """Class scores [B,K]."""
        scores_BK: Tensor = self.head(self.features(x_BCTHW))
        return scores_BK


@dataclass(frozen=True)
class Verdict:
    """What the judge sees in clips: scores [N,K] and features [N,D], on the CPU."""

    scores_NK: Tensor
    features_ND: Tensor

    def correct(self, labels_N: Labels) -> npt.NDArray[np.bool_]:
        """Where the highest score is the label's."""
        return np.asarray(self.scores_NK.argmax(1).numpy() == labels_N)


def split_videos(
    labels_N: Labels, videos_N: Labels, classes: Sequence[str], share: float, seed: int
) -> npt.NDArray[np.bool_]:
    """Which clips are set apart: whole videos, at least `share` of every class where it can be.

    Each class keeps one video or more on either side. `videos_N` says which video a clip is from;
    mark takes that show the same thing, such as mirrored ones, as one video.

    Raises DataError where a class has fewer than two videos.
    """
    apart_N = np.zeros(len(labels_N), bool)
    generator = np.random.default_rng(seed)
    for label, name in enumerate(classes):
        of_class_N = labels_N == label
        videos = generator.permutation(np.unique(videos_N[of_class_N]))
        if len(videos) < 2:
            raise DataError(
                f"class {name!r} has {len(videos)} readable videos and evaluation holds some out; "
                "give every class at least two"
            )
        for video in videos[:-1]:
            if apart_N[of_class_N].mean() >= share:
                break
            apart_N |= videos_N == video
    return apart_N


def train_classifier(
    clips_NTHWC: Clips, labels_N: Labels, classes: int, steps: int, batch_size: int, seed: int
) -> Classifier:
    """A classifier trained for `steps` batches drawn evenly over the classes.

    Clips are shifted, brightened and mixed (mixup, Zhang et al., 2018, arXiv 1710.09412, eq. 1),
    or the few videos' own backgrounds and clothes are learned; never mirrored: the direction can
    be the class. Deterministic under `seed` at one number of threads.
    """
    generator, rng = torch.Generator().manual_seed(seed), np.random.default_rng(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Classifier(classes)
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_LR, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_LR, total_steps=steps)
    labels = torch.from_numpy(labels_N)
    weight_N = 1 / torch.bincount(labels, minlength=classes)[labels]
    model.train()
    for _ in range(steps):
        rows_B = torch.multinomial(weight_N, batch_size, replacement=True, generator=generator)
        x_BCTHW = _to_tensor(_shift(clips_NTHWC[rows_B.numpy()], generator))
        x_BCTHW = _brighten(x_BCTHW, generator)
        share_B = torch.from_numpy(rng.beta(MIXUP, MIXUP, batch_size)).float()
        x_BCTHW, y_BK = (
            torch.lerp(each.roll(1, 0), each, share_B.view(-1, *[1] * (each.ndim - 1)))
            for each in (x_BCTHW, F.one_hot(labels[rows_B], classes).float())
        )
        loss = F.cross_entropy(model(x_BCTHW), y_BK, label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    return model.eval()


@torch.inference_mode()
def examine(model: Classifier, clips_NTHWC: Clips, batch_size: int) -> Verdict:
    """The judge's scores and features of all clips."""
    features_ND = torch.cat(
        [
            model.features(_to_tensor(clips_NTHWC[start : start + batch_size]))
            for start in range(0, len(clips_NTHWC), batch_size)
        ]
    )
    return Verdict(model.head(features_ND), features_ND)


def _block(inputs: int, outputs: int, stride: tuple[int, int, int]) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv3d(inputs, outputs, 3, stride, padding=1, bias=False),
        nn.BatchNorm3d(outputs),
        nn.ReLU(inplace=True),
    )


def _to_tensor(clips_BTHWC: Clips) -> Tensor:
    return torch.from_numpy(clips_BTHWC).permute(0, 4, 1, 2, 3).float() / 127.5 - 1


def _brighten(x_BCTHW: Tensor, generator: torch.Generator) -> Tensor:
    """Another brightness of each colour and another contrast, drawn once a clip."""
    B, C = x_BCTHW.shape[:2]
    contrast_B = torch.exp(CONTRAST * (2 * torch.rand(B, 1, 1, 1, 1, generator=generator) - 1))
    brightness_BC = BRIGHTNESS * (2 * torch.rand(B, C, 1, 1, 1, generator=generator) - 1)
    return x_BCTHW * contrast_B + brightness_BC


def _shift(clips_BTHWC: Clips, generator: torch.Generator) -> Clips:
    H, W = clips_BTHWC.shape[2:4]
    reach_2 = math.ceil(H * SHIFT), math.ceil(W * SHIFT)
    margins = ((0, 0), (0, 0), (reach_2[0],) * 2, (reach_2[1],) * 2, (0, 0))
    padded_BTHWC = np.pad(clips_BTHWC, margins, mode="edge")
    corners_B2 = zip(
        *(
            torch.randint(2 * reach + 1, (len(clips_BTHWC),), generator=generator).tolist()
            for reach in reach_2
        ),
        strict=True,
    )
    return np.stack(
        [
            clip_THWC[:, top : top + H, left : left + W]
            for clip_THWC, (top, left) in zip(padded_BTHWC, corners_B2, strict=True)
        ]
    )
