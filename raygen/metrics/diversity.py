"""How much the clips of one class differ among themselves, generated beside real ones.

A generator that draws one clip a class has precision and class accuracy, and no diversity.
Shapes: N and M clips, T frames, H, W, C = 3, uint8 0 to 255; D feature dimensions.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from raygen.metrics.classifier import Labels

MOST = 64  # clips of a class that are compared


def spread(samples_ND: Tensor, labels_N: Labels) -> dict[int, float]:
    """The mean distance between two samples of a class, for each class that has two.

    The first MOST samples of a class are compared.
    """
    found = {}
    for label in np.unique(labels_N).tolist():
        of_class_ND = samples_ND[torch.from_numpy(np.flatnonzero(labels_N == label)[:MOST])]
        if len(of_class_ND) > 1:
            found[label] = float(torch.pdist(of_class_ND.float()).mean())
    return found


def diversity(real_ND: Tensor, real_labels_N: Labels, fake_MD: Tensor, labels_M: Labels) -> float:
    """`spread` of the fakes over that of the real samples, the mean over classes: 1 is right.

    NaN where no class has two samples on either side that differ.
    """
    real, fake = spread(real_ND, real_labels_N), spread(fake_MD, labels_M)
    ratios = [fake[label] / real[label] for label in fake if real.get(label)]
    return sum(ratios) / len(ratios) if ratios else math.nan
