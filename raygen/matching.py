"""What clips are to be told from: other clips' conditions, and captions crossed of two.

A critic that only tells real from generated looks at a condition no more closely than that takes.
Asked which of many conditions a clip shows, it has to (see `losses.contrastive`). And a generator
that is asked for captions of two clips in one, which nobody has filmed, cannot know them by heart.

What a clip is compared with is the same on every rank, however a batch is split: the conditions of
the clips before, of all ranks, not those of the batch at hand. Names carry shapes: B clips, K
remembered conditions, D numbers that say one, L words.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, distributed

from raygen import losses
from raygen.conditions import CLASS, TEXT, Condition
from raygen.config import KINDS, ConditionsConfig

REMEMBERED = 64  # conditions that a clip is told from


class Heard:
    """The conditions of the last REMEMBERED clips, those of all ranks: alike on every rank.

    A queue of what to be told from, as MoCo keeps one (arXiv 1911.05722, section 3.2): the number
    of alternatives is not that of the clips in a batch.
    """

    def __init__(self, config: ConditionsConfig, device: torch.device) -> None:
        self._config, self._device = config, device
        self._rows_KD: Tensor | None = None
        self._fresh: list[Tensor] = []

    def add(self, y_B: Condition) -> None:
        """What this rank's clips were given, in the order of the batch."""
        self._fresh.append(_numbers(y_B).to(self._device))

    def settle(self) -> None:
        """After a step: what all ranks heard in it is remembered. Collective."""
        for heard_BD in self._fresh:  # batch by batch: in the order of the global one
            every = [torch.empty_like(heard_BD) for _ in range(distributed.get_world_size())]
            distributed.all_gather(every, heard_BD)
            before = [] if self._rows_KD is None else [self._rows_KD]
            self._rows_KD = torch.cat(before + every)[-REMEMBERED:]
        self._fresh.clear()

    def conditions(self, dtype: torch.dtype) -> Condition | None:
        """What is remembered, floating point as `dtype`; None before the first step."""
        if self._rows_KD is None:
            return None
        given_KN, labels_K1, rest_KD = self._rows_KD.tensor_split([len(KINDS), len(KINDS) + 1], 1)
        text = vector_KV = None
        if "text" in self._config.kinds:
            words = self._config.encoder == "tokens"
            length = self._config.text_length if words else self._config.text_dim
            text, rest_KD = rest_KD.tensor_split([length], 1)
            text = text.long() if words else text.to(dtype)
        if "vector" in self._config.kinds:
            vector_KV = rest_KD.to(dtype)
        return Condition(given_KN.bool(), labels_K1[:, 0].long(), text, vector_BV=vector_KV)

    def state(self) -> list[list[float]]:
        """In plain JSON types, for a checkpoint."""
        return [] if self._rows_KD is None else self._rows_KD.tolist()

    def load(self, state: list[list[float]]) -> None:
        """Takes up what `state` gave."""
        self._fresh.clear()
        self._rows_KD = (
            torch.tensor(state, dtype=torch.float64, device=self._device) if state else None
        )


Cosines = Callable[[Condition, Condition], tuple[Tensor, Tensor]]
"""Of what clips show with their own conditions, [B], and with those of others, [B, K]."""


def contrast(cosines: Cosines, y_B: Condition, others_K: Condition, kinds: Sequence[str]) -> Tensor:
    """`losses.contrastive` of each of `kinds` by itself, their mean: a scalar.

    Kind by kind, since clips are not all given the same ones; those that say the same are no
    alternatives.
    """
    values = []
    for kind in kinds:
        own_B, other_K = y_B.only(kind), others_K.only(kind)
        k = KINDS.index(kind)
        given_BK = own_B.given_BK[:, k, None] & other_K.given_BK[None, :, k]
        differ_BK = (_numbers(own_B)[:, None] != _numbers(other_K)[None]).any(2)
        values.append(losses.contrastive(*cosines(own_B, other_K), given_BK & differ_BK))
    return torch.stack(values).mean()


@dataclass(frozen=True)
class Crossing:
    """Which clips' texts are crossed, and how: uniform in [0, 1) but for bool crossed_B.

    with_B: which remembered text with; at_B: after which share of the words; order_B: which of
    the two begins.
    """

    crossed_B: Tensor
    with_B: Tensor
    at_B: Tensor
    order_B: Tensor

    @classmethod
    def draw(cls, share: float, count: int, rng: torch.Generator) -> Crossing:
        """For `count` clips, of which `share` are to be crossed."""
        crossed_B, with_B, at_B, order_B = torch.rand(4, count, generator=rng)
        return cls(crossed_B < share, with_B, at_B, order_B)

    def __getitem__(self, rows: slice) -> Crossing:
        return Crossing(
            self.crossed_B[rows], self.with_B[rows], self.at_B[rows], self.order_B[rows]
        )

    def of(self, y_B: Condition, others_K: Condition | None) -> tuple[Condition, Condition]:
        """What a generator is asked for, and what a critic is told of it.

        Some texts are the first words of one caption and what follows those of another (one-point
        crossover), and nothing else is asked for then. As no real clip shows them, the critic is
        told nothing of these clips, but for `contrast`. Token ids only; as it is, both times,
        where nothing is remembered or a text is not given.
        """
        if others_K is None or y_B.text is None or others_K.text is None:
            return y_B, y_B
        text_BL, device = y_B.text, y_B.text.device
        crossed_B, with_B, at_B, order_B = (
            part[: len(text_BL)].to(device)
            for part in (self.crossed_B, self.with_B, self.at_B, self.order_B)
        )
        partner_B = (with_B * len(others_K.text)).long()
        crossed_B = crossed_B & y_B.given_BK[:, TEXT] & others_K.given_BK[partner_B, TEXT]
        words_B = (text_BL > 0).sum(1)
        cut_B1 = (1 + at_B * (words_B - 1)).long()[:, None]
        first_BL = torch.arange(text_BL.shape[1], device=device) < cut_B1
        ours_BL = first_BL ^ (order_B < 0.5)[:, None]
        mixed_BL = torch.where(ours_BL, text_BL, others_K.text[partner_B])
        crossed_B1 = crossed_B[:, None]
        asked_B = y_B._replace(
            text=torch.where(crossed_B1, mixed_BL, text_BL),
            given_BK=torch.where(crossed_B1, y_B.only("text").given_BK, y_B.given_BK),
        )
        return asked_B, y_B.without(crossed_B1)


def _numbers(y_B: Condition) -> Tensor:
    """Float64 [B, D]: kinds that are given, and what they say, 0 where they are not.

    Exact: token ids have 24 bits. Not the first frame, which is no part of a critic's embedding.
    """
    given_BK = y_B.given_BK
    parts = [given_BK.double(), torch.where(given_BK[:, CLASS], y_B.labels_B, 0)[:, None].double()]
    for kind, said in (("text", y_B.text), ("vector", y_B.vector_BV)):
        if said is not None:
            given_B1 = given_BK[:, KINDS.index(kind), None]
            parts.append(torch.where(given_B1, said, 0).double())
    return torch.cat(parts, 1)
