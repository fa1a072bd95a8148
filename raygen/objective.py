"""What a step minimises: weighted terms, and what they remember of the steps before.

    terms = objective.critic(real_logit_B, fake_logit_B, penalty, weight)
    critic.minimise(total(terms))
    ...
    objective.settle(progress)          # once a step, collective

A term is a mean over clips, each judged alone, so that neither the number of workers nor of
micro-batches changes it. What is about a whole batch is not taken from the batch at hand, which is
only a part of it, but from the global batches before: moving averages (LeCam's anchors, the means
that fakes are to match, ADA's probability) and the conditions of the last clips. They are alike on
every rank, and in the checkpoint. Names carry shapes: B clips, C channels, T frames, H height, W
width, K statistics.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, distributed

from raygen import augment, losses, temporal
from raygen.conditions import Condition
from raygen.config import Config
from raygen.losses import scheduled
from raygen.matching import Heard

# Of the old value in each step. LeCam's own (arXiv 2104.03310, section 4); ADA looks at four
# batches (arXiv 2006.06676, section 3.1); what is to be matched moves with the generator.
DECAY = {"logit": 0.99, "sure": 0.75, "roughness": 0.9, "patches": 0.9, "features": 0.9}


class Term(NamedTuple):
    """A part of a loss: `value`, a scalar, times `weight`."""

    name: str
    weight: float
    value: Tensor


def total(terms: Sequence[Term]) -> Tensor:
    """The loss, a scalar."""
    return torch.stack([term.weight * term.value for term in terms]).sum()


@dataclass(frozen=True)
class Judged:
    """Clips, and what the critic said of them when it was shown them augmented.

    feature_BC: what enters its head, averaged over positions.
    """

    x_BCTHW: Tensor
    logit_B: Tensor
    feature_BC: Tensor


class Objective:
    """The terms that `config` gives a weight, and how often clips are augmented.

    `state` is what `load` takes up after an interruption, at any number of workers.
    """

    def __init__(self, config: Config, device: torch.device) -> None:
        self._loss, self._augment = config.loss, config.augment
        self._batch = config.train.batch_size * config.loss.critic_steps
        self._averages = _Averages(device)
        self._heard = Heard(config.conditions, device)
        self._adapted = torch.zeros((), dtype=torch.float64, device=device)

    def probability(self, progress: float) -> Tensor | float:
        """The share of clips that each kind of augmentation is applied to."""
        return self._adapted if self._augment.adaptive else self._most(progress)

    def hear(self, y_B: Condition) -> None:
        """The conditions of a batch of this step, which those of later steps are told from."""
        if self._loss.contrast:
            self._heard.add(y_B)

    def heard(self, dtype: torch.dtype) -> Condition | None:
        """Conditions of steps before; None where there were none, or nothing is told from them."""
        return self._heard.conditions(dtype)

    def critic(
        self,
        real_logit_B: Tensor,
        fake_logit_B: Tensor,
        penalty: Tensor,
        weight: float,
        contrast: Tensor | None = None,
    ) -> list[Term]:
        """The critic's terms; `penalty` is that of R1 and R2, `contrast` that of real clips."""
        loss, averages = self._loss, self._averages
        terms = [
            Term("critic", 1.0, losses.critic_loss(loss.kind, real_logit_B, fake_logit_B)),
            Term("penalty", weight, penalty),
        ]
        if loss.lecam:
            anchors = averages["logit/real"], averages["logit/fake"]
            value = losses.lecam(real_logit_B, fake_logit_B, *anchors)
            terms.append(Term("lecam", loss.lecam, value))
            averages.add("logit/real", real_logit_B[:, None])
            averages.add("logit/fake", fake_logit_B[:, None])
        if self._augment.adaptive:
            sure_B = losses.margin(loss.kind, real_logit_B, fake_logit_B).sign()
            averages.add("sure", sure_B[:, None])
        return terms + self._contrast("contrast/real", contrast)

    def generator(self, real: Judged, fake: Judged, contrast: Tensor | None = None) -> list[Term]:
        """The generator's terms; `contrast` is that of its clips."""
        loss, averages = self._loss, self._averages
        value = losses.generator_loss(loss.kind, real.logit_B, fake.logit_B)
        terms = [Term("generator", 1.0, value)]
        if loss.pixels:
            gap = losses.pixel_loss(fake.x_BCTHW.float(), real.x_BCTHW.float())
            terms.append(Term("pixels", loss.pixels, gap))
        for name, weight, measure in (
            # Of the clips themselves, not as they are shown: augmentation moves nothing.
            ("roughness", loss.roughness, lambda seen: temporal.roughness(seen.x_BCTHW.float())),
            ("patches", loss.patches, lambda seen: temporal.unexplained(seen.x_BCTHW.float())),
            # Feature matching (Salimans et al. 2016, arXiv 1606.03498, section 3.1).
            ("features", loss.features, lambda seen: seen.feature_BC),
        ):
            if weight:
                fake_BK, real_BK = measure(fake), measure(real)
                means = averages[f"{name}/fake"], averages[f"{name}/real"]
                terms.append(Term(name, weight, losses.mean_gap(fake_BK, *means)))
                averages.add(f"{name}/fake", fake_BK)
                averages.add(f"{name}/real", real_BK)
        return terms + self._contrast("contrast/fake", contrast)

    def _contrast(self, name: str, value: Tensor | None) -> list[Term]:
        return [] if value is None else [Term(name, self._loss.contrast, value)]

    def settle(self, progress: float) -> None:
        """After a step: its clips, those of all ranks, enter the averages. Collective."""
        self._averages.settle()
        self._heard.settle()
        if self._augment.adaptive:
            self._adapted = augment.adapted(
                self._adapted,
                self._averages["sure"].squeeze(),
                target=self._augment.target,
                most=self._most(progress),
                by=self._batch / self._augment.span,
            )

    def state(self) -> dict[str, Any]:
        """In plain JSON types, for a checkpoint."""
        return {
            "probability": float(self._adapted),
            "averages": self._averages.state(),
            "heard": self._heard.state(),
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Takes up what `state` gave; what it does not have begins anew."""
        self._adapted.fill_(state.get("probability", 0.0))
        self._averages.load(state.get("averages", {}))
        self._heard.load(state.get("heard", []))

    def _most(self, progress: float) -> float:
        return scheduled(progress, self._augment.probability, self._augment.probability_end)


class _Averages:
    """Moving averages of what clips measure, [K] a name, 0 before the first step.

    At first the plain mean of all steps, until that is slower than the name's DECAY.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._means: dict[str, Tensor] = {}
        self._steps: dict[str, int] = {}
        # Of this step so far: the number of clips, and the sum over them.
        self._sums: dict[str, Tensor] = {}

    def __getitem__(self, name: str) -> Tensor:
        mean_K = self._means.get(name)
        return torch.zeros(1, device=self._device) if mean_K is None else mean_K.float()

    def add(self, name: str, value_BK: Tensor) -> None:
        """What the clips of a micro-batch measure."""
        value_BK = value_BK.detach().double()
        sum_1K = torch.cat([value_BK.new_tensor([len(value_BK)]), value_BK.sum(0)])
        self._sums[name] = self._sums[name] + sum_1K if name in self._sums else sum_1K

    def settle(self) -> None:
        """Sums over all ranks, one reduction for all names, and moves the averages."""
        if not self._sums:
            return
        sums = torch.cat(list(self._sums.values()))
        distributed.all_reduce(sums)
        lengths = [len(sum_1K) for sum_1K in self._sums.values()]
        for name, sum_1K in zip(self._sums, torch.split(sums, lengths), strict=True):
            steps = self._steps[name] = self._steps.get(name, 0) + 1
            mean_K = sum_1K[1:] / sum_1K[0]
            weight = max(1 - DECAY[name.split("/")[0]], 1 / steps)
            self._means[name] = torch.lerp(self._means.get(name, mean_K), mean_K, weight)
        self._sums.clear()

    def state(self) -> dict[str, Any]:
        """Name to the number of steps and the means."""
        return {name: [self._steps[name], mean.tolist()] for name, mean in self._means.items()}

    def load(self, state: Mapping[str, Any]) -> None:
        self._sums.clear()
        self._steps = {name: steps for name, (steps, _) in state.items()}
        self._means = {
            name: torch.tensor(mean, dtype=torch.float64, device=self._device)
            for name, (_, mean) in state.items()
        }
