"""Conditions that clips are told from, and captions crossed of two."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed
from torch.nn import functional as F

from raygen import losses
from raygen.conditioning import Conditioner
from raygen.conditions import Condition, tokens
from raygen.config import ConditionsConfig, Config, DataConfig, TwoStreamConfig, families
from raygen.errors import ConfigError
from raygen.matching import REMEMBERED, Crossing, Heard, contrast
from raygen.models import build_critic

CPU = torch.device("cpu")
CONDITIONS = ConditionsConfig(kinds=("class", "text", "vector"), text_length=6, vector_dim=2)
TEXTS = ["a red circle moves right", "a blue square spins", "yellow", "a red circle spins"]


@pytest.fixture(autouse=True)
def _one_rank(tmp_path: Path) -> Iterator[None]:
    distributed.init_process_group("gloo", f"file://{tmp_path}/meeting", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def said(texts: Sequence[str | None], labels: Sequence[int | None] = ()) -> Condition:
    vectors = [None if text is None else [len(text), 0.1] for text in texts]
    labels = [*labels] or [None] * len(texts)
    return Conditioner(CONDITIONS, 16)(labels, texts=texts, vectors=vectors)


def same(a: Condition, b: Condition) -> bool:
    pairs = zip(a[:3], b[:3], strict=True)
    return all(torch.equal(x, y) for x, y in pairs if x is not None and y is not None)


def test_the_loss_is_cross_entropy_among_what_counts_and_nothing_where_nothing_does() -> None:
    rng = torch.Generator().manual_seed(0)
    own_B, other_BK = torch.rand(3, generator=rng), torch.rand(3, 5, generator=rng)
    counts_BK = torch.ones(3, 5, dtype=torch.bool)
    counts_BK[1, 2:] = counts_BK[2] = False
    value = losses.contrastive(own_B.requires_grad_(), other_BK, counts_BK, temperature=0.5)
    target = torch.zeros(1, dtype=torch.long)
    by_hand = [
        F.cross_entropy(torch.cat([own_B[b, None], other_BK[b, :k]])[None] / 0.5, target)
        for b, k in ((0, 5), (1, 2))
    ]
    assert value.item() == pytest.approx(sum(by_hand).item() / 3)  # type: ignore[union-attr]
    (slope_B,) = torch.autograd.grad(value, own_B)
    assert slope_B[2] == 0
    assert (slope_B[:2] < 0).all()


def test_the_last_conditions_are_remembered_as_they_were_and_in_a_checkpoint() -> None:
    heard = Heard(CONDITIONS, CPU)
    heard.settle()
    assert heard.conditions(torch.float32) is None
    first, second = said([TEXTS[0], None], [3, None]), said(TEXTS[1:3], [None, 1])
    for y_B in (first, second):
        heard.add(y_B)
    heard.settle()
    resumed = Heard(CONDITIONS, CPU)
    resumed.load(json.loads(json.dumps(heard.state())))
    for memory in (heard, resumed):
        found = memory.conditions(torch.float32)
        assert found is not None
        assert found.text is not None
        assert found.vector_BV is not None
        assert found.given_BK.tolist() == [*first.given_BK.tolist(), *second.given_BK.tolist()]
        assert found.labels_B.tolist() == [3, 0, 0, 1]
        assert found.text[0].tolist() == tokens(TEXTS[0], 6)
        assert found.vector_BV[3].tolist() == pytest.approx([len(TEXTS[2]), 0.1])
    for number in range(REMEMBERED):
        resumed.add(said([str(number)]))
    resumed.settle()
    late = resumed.conditions(torch.float32)
    assert late is not None
    assert late.text is not None
    assert late.text[:, 0].tolist() == [tokens(str(n), 6)[0] for n in range(REMEMBERED)]


def test_a_crossed_text_begins_as_one_caption_and_ends_as_another() -> None:
    y_B = said([TEXTS[0]] * 400)
    heard_K = said(TEXTS[1:2])
    crossing = Crossing.draw(0.5, 400, torch.Generator().manual_seed(0))
    asked_B, told_B = crossing.of(y_B, heard_K)
    assert asked_B.text is not None
    assert y_B.text is not None
    ours, theirs = tokens(TEXTS[0], 6), tokens(TEXTS[1], 6)
    possible = {
        (*first[:cut], *last[cut:])
        for first, last in ((ours, theirs), (theirs, ours))
        for cut in range(1, len(TEXTS[0].split()))
    }
    assert tuple(tokens("a blue square moves right", 6)) in possible
    crossed_B = ~told_B.given_BK.any(1)
    assert 150 < int(crossed_B.sum()) < 250
    assert {tuple(row) for row in asked_B.text[crossed_B].tolist()} == possible
    assert torch.equal(asked_B.text[~crossed_B], y_B.text[~crossed_B])
    assert asked_B.given_BK[crossed_B].tolist()[0] == [False, True, False, False]
    assert torch.equal(told_B.given_BK[~crossed_B], y_B.given_BK[~crossed_B])


def test_nothing_is_crossed_without_a_text_or_a_memory() -> None:
    crossing = Crossing.draw(0.9, 4, torch.Generator().manual_seed(0))
    y_B = said([None, *TEXTS[:3]])
    assert crossing.of(y_B, None) == (y_B, y_B)
    asked_B, told_B = crossing.of(y_B, said([None]))
    assert same(asked_B, y_B)
    assert same(told_B, y_B)
    asked_B, _ = crossing.of(y_B, said([TEXTS[3]]))
    assert same(asked_B.rows(slice(0, 1)), y_B.rows(slice(0, 1)))


def test_clips_are_told_kind_by_kind_from_what_says_something_else() -> None:
    y_B = said([TEXTS[0], None], [0, 1])
    heard_K = said([TEXTS[0], TEXTS[1], TEXTS[3], None], [0, 0, None, 1])
    seen: list[Tensor] = []

    def cosines(own_B: Condition, other_K: Condition) -> tuple[Tensor, Tensor]:
        assert int(own_B.given_BK.sum(1).max()) == 1
        seen.append(other_K.given_BK)
        return torch.zeros(2), torch.zeros(2, 4)

    # The first clip's class has one alternative, its text two; the second clip's class two.
    expected = {"class": (math.log(2) + math.log(3)) / 2, "text": math.log(3) / 2}
    for kind, value in expected.items():
        assert contrast(cosines, y_B, heard_K, [kind]).item() == pytest.approx(value)
    both = contrast(cosines, y_B, heard_K, ["class", "text"]).item()
    assert both == pytest.approx(sum(expected.values()) / 2)


def test_a_critic_learns_to_tell_what_clips_show() -> None:
    torch.manual_seed(0)
    data = DataConfig(frames=4, size=16)
    model = TwoStreamConfig(generator_width=8, critic_width=8, class_dim=16)
    critic = build_critic(model, data, 2, CONDITIONS)
    x_BCTHW, y_B = torch.randn(4, 3, 4, 16, 16), said(TEXTS)

    def value() -> Tensor:
        entered = critic.layers(x_BCTHW)  # type: ignore[operator]
        return contrast(lambda *of: critic.head.cosines(entered, *of), y_B, y_B, ["text"])  # type: ignore[union-attr,operator]

    before = value().item()
    adam = torch.optim.Adam(critic.parameters(), lr=1e-3)
    for _ in range(30):
        adam.zero_grad()
        value().backward()  # type: ignore[no-untyped-call]
        adam.step()
    assert before > 0.5
    assert value().item() < before / 10


@pytest.mark.parametrize("kind", families())
def test_every_critic_says_how_well_conditions_fit(kind: str) -> None:
    config = Config.load("tiny", {"model.kind": kind, "data.frames": 8, "data.size": 16})
    critic = build_critic(config.model, config.data, 2, CONDITIONS)
    head: Any = critic.head
    entered: list[Tensor] = []
    head.register_forward_pre_hook(lambda _, given: entered.append(given[0]))
    critic(torch.randn(3, 3, 8, 16, 16), said(TEXTS[:3]))
    own_B, other_BK = head.cosines(entered[0], said(TEXTS[:3]), said(TEXTS))
    assert torch.allclose(own_B, other_BK.diagonal(), atol=1e-5)
    assert other_BK.shape == (3, 4)
    assert other_BK.abs().max() < 1 + 1e-5


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"conditions.crossed": 0.5}, "crossed crosses texts"),
        ({"conditions.crossed": 0.5, "conditions.kinds": ["text"]}, "take loss.contrast=1"),
    ],
)
def test_crossing_what_cannot_be_is_refused(overrides: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Config.load("tiny", {"loss.contrast": 0.0} | overrides)
