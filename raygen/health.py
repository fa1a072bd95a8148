"""Whether an adversarial training is still one: figures in, a reason to go back out.

    every look, each rank           moments(real), moments(fake)
    summed and averaged over ranks  health.look(step, figures, spread(real), spread(fake))

All ranks see the same figures, so all decide alike. Three things end a training without an error:
something is not finite (bad at once); the critic's logits of real and fake clips part by so much
that one network has left the other behind; the fakes are all alike. The last two are bad after
`health.patience` looks in a row: either may flare up, and early fakes are all grey.

Seen in healthy trainings: logits at most 3.5 apart (relativistic) and 12.4 (bce without penalty),
and from 2,000 clips on fakes of 0.3 of the real clips' spread or more. With learning rates of 0.5,
or the critic's times 100 without penalty: apart by 10^4 and more.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from raygen.config import Config

CELLS = 4  # a clip is pooled to so many cells along T, H and W each
DIVERSE = 2.0  # fakes of this many times `health.diversity` have come out of the grey
_CHECKED = ("loss/", "logit/", "grad/")


def moments(x_BCTHW: Tensor) -> Tensor:
    """What `spread` needs of clips in [-1, 1], on their device, without waiting for it.

    [1 + 2F] in fp32: the number of clips, and the sum and the sum of squares of F = 64 C pooled
    features each. Those of parts of a batch add up to those of the batch.
    """
    features_BF = F.adaptive_avg_pool3d(x_BCTHW.detach().float(), CELLS).flatten(1)
    count = features_BF.new_full((1,), len(features_BF))
    return torch.cat([count, features_BF.sum(0), features_BF.square().sum(0)])


def spread(moments: Tensor) -> float:
    """The standard deviation over the batch, averaged over the features: 0 where all are alike."""
    count, sums = moments[0].double(), moments[1:].double()
    mean_F, square_F = (sums / count).chunk(2)
    # NaN is not clamped: it has to be seen.
    return float((square_F - mean_F.square()).clamp(min=0).sqrt().mean())


class Health:
    """Looks at a training now and then; `state` is what `resumed` takes after an interruption.

    `onset` is the step after the last look at which nothing was wrong: a checkpoint from before it
    is good to go back to, and nothing since is.
    """

    def __init__(self, config: Config, resumed: Mapping[str, Any] | None = None) -> None:
        self._config, self._batch = config.health, config.train.batch_size
        state = {"onset": 1, "saturated": 0, "alike": 0, "diverse": False, **(resumed or {})}
        self.onset: int = state["onset"]
        self._saturated: int = state["saturated"]
        self._alike: int = state["alike"]
        self._diverse: bool = state["diverse"]

    def state(self) -> dict[str, Any]:
        """In plain JSON types, for a checkpoint."""
        return {
            "onset": self.onset,
            "saturated": self._saturated,
            "alike": self._alike,
            "diverse": self._diverse,
        }

    def look(
        self,
        step: int,
        figures: Mapping[str, float],
        real: float,
        fake: float,
        *,
        parameters_finite: bool = True,
    ) -> str | None:
        """What is wrong after `step` steps, in one line, or None.

        `figures` as `Pair.step` names them, means over the ranks; `real` and `fake` are spreads of
        the same number of clips. What other figures there are is not looked at.
        """
        broken = [
            f"{name} is {value}"
            for name, value in figures.items()
            if name.startswith(_CHECKED) and not math.isfinite(value)
        ]
        broken += [] if math.isfinite(fake) else [f"the fakes' spread is {fake}"]
        broken += [] if parameters_finite else ["a parameter is not finite"]
        if broken:
            return f"{broken[0]} at step {step}"
        limits, gap = self._config, figures["logit/real"] - figures["logit/fake"]
        # Fakes of real clips that are all alike may be so, too.
        ratio = fake / real if real else 1.0
        self._diverse |= ratio >= DIVERSE * limits.diversity
        # With the relativistic loss the generator's is about the gap. Either sign: networks that
        # run away overtake each other.
        self._saturated = self._saturated + 1 if abs(gap) > limits.saturation else 0
        self._alike = self._alike + 1 if ratio < limits.diversity else 0
        if not self._saturated and not self._alike:
            self.onset = step + 1
        since = f"since step {self.onset} (health.patience={limits.patience})"
        if self._saturated >= limits.patience:
            return (
                f"the critic is saturated: its logits of real and fake clips are {abs(gap):.3g} "
                f"apart, above health.saturation={limits.saturation:g} {since}"
            )
        warm = self._diverse or step * self._batch >= limits.warmup
        if self._alike >= limits.patience and warm:
            return (
                f"the generator has collapsed: its clips' spread is {ratio:.2g} of the real ones', "
                f"below health.diversity={limits.diversity:g} {since}"
            )
        return None
