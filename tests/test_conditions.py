"""Conditions of every kind and mixture, their one embedding, and the first frame that is kept."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

from raygen.conditioning import Conditioner
from raygen.conditions import Condition, ConditionEmbedding, keep_frame, tokens
from raygen.config import KINDS, ConditionsConfig, Config, families
from raygen.errors import ConfigError
from raygen.losses import gradient_penalty
from raygen.models import build_critic, build_generator

CLASSES, SIZE, DIM = 3, 16, 8
ALL = ConditionsConfig(kinds=KINDS, vector_dim=3, text_length=6)
FRAMES_BCHW = torch.rand(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0)) * 2 - 1
WHOLE = {
    "class": ([1, 2], [2, 1]),
    "text": (["a red circle", "a blue square spins"], ["a green circle", "up"]),
    "image": (list(FRAMES_BCHW), [-frame for frame in FRAMES_BCHW]),
    "vector": ([[1.0, 0.0, -1.0], [0.5, 0.5, 0.5]], [[0.0, 2.0, 0.0], [1.0, 1.0, 1.0]]),
}
"""Two clips' conditions of each kind, and others."""


def made(*kinds: str, other: tuple[str, ...] = ()) -> Condition:
    """Conditions of two clips, given these kinds."""
    said = [WHOLE[k][k in other] if k in kinds else None for k in KINDS]
    labels, texts, frames, vectors = said
    return Conditioner(ALL, SIZE)(
        labels or [None, None],  # type: ignore[arg-type]
        texts=texts,  # type: ignore[arg-type]
        frames=frames,  # type: ignore[arg-type]
        vectors=vectors,  # type: ignore[arg-type]
    )


def embedding(config: ConditionsConfig = ALL) -> ConditionEmbedding:
    torch.manual_seed(0)
    made = ConditionEmbedding(CLASSES, DIM, config, SIZE)
    with torch.no_grad():
        for parameter in made.parameters():
            # Training has moved all of them, those as well that begin at zero.
            parameter.add_(0.1 * torch.randn_like(parameter))
    return made


def test_classes_alone_are_an_ordinary_embedding() -> None:
    torch.manual_seed(0)
    table = nn.Embedding(CLASSES, DIM)
    after = torch.randn(1)
    torch.manual_seed(0)
    ours = ConditionEmbedding(CLASSES, DIM, ConditionsConfig(), SIZE)
    assert torch.equal(torch.randn(1), after)
    assert list(ours.state_dict()) == ["weight"]
    y_B = torch.tensor([2, 0, 2])
    assert torch.equal(ours(y_B), table(y_B))
    assert torch.equal(ours(Condition.of(y_B)), table(y_B))


@pytest.mark.parametrize("kinds", [k for n in range(5) for k in itertools.combinations(KINDS, n)])
def test_every_mixture_is_the_sum_of_what_it_gives(kinds: tuple[str, ...]) -> None:
    module = embedding()
    assert module.absent_KE is not None
    e_BE = module(made(*kinds))
    nothing_E = module.absent_KE.sum(0)
    apart = [module(made(kind)) - nothing_E for kind in kinds]
    torch.testing.assert_close(e_BE, nothing_E + sum(apart, torch.zeros(2, DIM)))
    for kind in KINDS:
        changed = module(made(*kinds, other=(kind,)))
        assert torch.equal(changed, e_BE) == (kind not in kinds)


def test_what_is_dropped_is_as_if_it_had_not_been_given() -> None:
    module = embedding()
    dropped_BK = torch.tensor([[True, False, True, False], [False, True, False, False]])
    e_BE = module(made(*KINDS).without(dropped_BK))
    assert torch.equal(e_BE[:1], module(made("text", "vector"))[:1])
    assert torch.equal(e_BE[1:], module(made("class", "image", "vector"))[1:])


def test_a_text_is_its_words_in_their_order_whatever_the_padding() -> None:
    longer = ConditionsConfig(kinds=("text",), text_length=6)
    reads = Conditioner(longer, SIZE)
    texts = ["A red  circle!", "a red circle !", "circle red a !", "a red circle", "", None]
    e_BE = embedding(longer)(reads([None] * 6, texts=texts))
    assert torch.equal(e_BE[0], e_BE[1])
    assert torch.equal(e_BE[4], e_BE[5])
    for one, other in itertools.combinations((0, 2, 3, 4), 2):
        assert (e_BE[one] - e_BE[other]).abs().max() > 1e-3
    # Padding is neither attended to nor averaged.
    module = embedding(longer)
    assert isinstance(module.text, nn.Sequential)
    ids = torch.tensor([tokens("a red circle", 6)])
    before = module(reads([None], texts=["a red circle"]))
    with torch.no_grad():
        module.text[0].places_LD[3:] += 5  # type: ignore[index, operator]
    assert torch.equal(module(reads([None], texts=["a red circle"])), before)
    assert ids[0, 3:].eq(0).all()
    assert ids[0, :3].gt(0).all()


def test_words_do_not_share_ids() -> None:
    words = [f"{a}{b}" for a in "abcdefghijklmnopqrstuvwxyz" for b in range(200)]
    ids = {tokens(word, 1)[0] for word in words}
    assert len(ids) >= len(words) - 5
    assert max(ids) <= 4096**2
    assert tokens("Ein Sprung, bitte", 8)[:4] == tokens("ein sprung , bitte", 4)


def test_the_first_frame_is_kept_to_the_bit_and_left_out_where_it_is_dropped() -> None:
    torch.manual_seed(0)
    x_BCTHW = torch.tanh(torch.randn(2, 6, 5, SIZE, SIZE))
    y_B = made("image").without(torch.tensor([[False] * 4, [True] * 4]))
    clips_BCTHW = keep_frame(x_BCTHW, y_B)
    assert clips_BCTHW.shape == (2, 3, 5, SIZE, SIZE)
    assert torch.equal(clips_BCTHW[0, :, 0], FRAMES_BCHW[0])
    assert torch.equal(clips_BCTHW[1], x_BCTHW[1, :3])
    assert torch.equal(keep_frame(x_BCTHW[:, :3], y_B), x_BCTHW[:, :3])


def test_later_frames_show_the_first_where_the_mask_says_moved_as_the_shifts_say() -> None:
    torch.manual_seed(0)
    x_BCTHW = torch.tanh(torch.randn(2, 6, 5, SIZE, SIZE))
    x_BCTHW[:, 4:] = 0
    mask = ((1 + x_BCTHW[:, 3:4]) / 2) ** 2
    still = FRAMES_BCHW[:, :, None]
    expected = mask * x_BCTHW[:, :3] + (1 - mask) * still
    clips_BCTHW = keep_frame(x_BCTHW, made("image"))
    torch.testing.assert_close(clips_BCTHW[:, :, 1:], expected[:, :, 1:])
    x_BCTHW[:, 3], x_BCTHW[:, 4], x_BCTHW[:, 5] = -1, 2 / SIZE, -3 / SIZE
    # What differs from pixel to pixel is left out of the shifts.
    x_BCTHW[:, 4:] += torch.tensor([0.1, -0.1]).repeat(SIZE // 2)
    # What lies two pixels to the right and three above.
    moved_BCTHW = keep_frame(x_BCTHW, made("image"))[:, :, 1:, 3:, :-2]
    source = still[:, :, :, :-3, 2:].expand(-1, -1, 4, -1, -1)
    torch.testing.assert_close(moved_BCTHW, source, atol=1e-5, rtol=1e-5)


def networks(kind: str) -> tuple[nn.Module, nn.Module]:
    small = {"frames": 4, "size": SIZE}
    model = {"kind": kind, "latent_dim": DIM, "class_dim": DIM}
    config = Config.parse(
        {
            "data": small,
            "model": model | {"generator_width": 8, "critic_width": 8},
            "conditions": ALL.model_dump(mode="json"),
        }
    )
    torch.manual_seed(0)
    shape = (config.model, config.data, CLASSES, config.conditions)
    return build_generator(*shape).eval(), build_critic(*shape).eval()


@pytest.mark.parametrize("kind", sorted(families()))
def test_every_family_takes_every_kind(kind: str) -> None:
    generator, critic = networks(kind)
    z_BD = torch.randn(2, DIM)
    whole = made(*KINDS)

    def drawn(y_B: Condition) -> Tensor:
        clips_BCTHW: Tensor = generator(z_BD, y_B)
        return clips_BCTHW

    x_BCTHW = drawn(whole)
    assert x_BCTHW.shape == (2, 3, 4, SIZE, SIZE)
    assert torch.equal(x_BCTHW[:, :, 0], FRAMES_BCHW)
    assert x_BCTHW.abs().max() <= 1
    for part in KINDS:
        other = drawn(made(*KINDS, other=(part,)))
        assert (other - x_BCTHW)[:, :, 1:].abs().max() > 1e-4, part
    # The frame is in the clip itself; a critic need not be told.
    logit_B, rest_B = critic(x_BCTHW, whole), critic(x_BCTHW, made("class", "text", "vector"))
    assert torch.equal(logit_B, rest_B)
    assert (critic(x_BCTHW, made("class", "vector")) - logit_B).abs().min() > 1e-5
    penalty = gradient_penalty(critic, x_BCTHW, whole)
    penalty.backward()  # type: ignore[no-untyped-call]
    assert all(
        p.grad is not None and p.grad.isfinite().all()
        for p in critic.head.embedding.parameters()  # type: ignore[union-attr, operator]
    )


def test_a_critic_of_first_frames_alone_sees_them_in_the_clip() -> None:
    alone = ConditionsConfig(kinds=("image",))
    critic = ConditionEmbedding(CLASSES, DIM, alone)
    assert not list(critic.parameters())
    assert torch.equal(critic(made("image")), torch.zeros(2, DIM))


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"texts": ["red"]}, "takes no text; it was trained with class"),
        ({"frames": [FRAMES_BCHW[0]]}, "takes no image"),
        ({"vectors": [[1.0]]}, "takes no vector"),
        ({}, "always needs a class"),
    ],
)
def test_what_a_model_of_classes_does_not_take(said: dict[str, list[object]], words: str) -> None:
    label = None if words.startswith("always") else 1
    with pytest.raises(ConfigError, match=words):
        Conditioner(ConditionsConfig(), SIZE)([label], **said)  # type: ignore[arg-type]


def test_a_vector_of_another_length() -> None:
    with pytest.raises(ConfigError, match="a vector of 2 numbers; this model takes 3"):
        Conditioner(ALL, SIZE)([None], vectors=[[1.0, 2.0]])


@pytest.mark.parametrize(
    ("kinds", "drop", "share"),
    [
        (["class"], None, 0.0),
        (["text"], None, 0.1),
        (["class", "image"], None, 0.1),
        (["class"], 0.2, 0.2),
    ],
)
def test_what_is_dropped_unless_told(kinds: list[str], drop: float | None, share: float) -> None:
    config = Config.load("tiny", {"conditions.kinds": kinds, "conditions.drop": drop})
    assert config.conditions.drop_share == share


def test_a_frame_that_is_never_left_out() -> None:
    with pytest.raises(ConfigError, match=r"take drop=0\.1"):
        Config.load("tiny", {"conditions.kinds": ["image"], "conditions.drop": 0})


@pytest.mark.parametrize("kinds", [[], ["class", "class"], ["sound"]])
def test_kinds_that_there_are_not(kinds: list[str]) -> None:
    with pytest.raises(ConfigError, match="conditions"):
        Config.load("tiny", {"conditions.kinds": kinds})
