"""What the engines cannot do together is refused by key, before anything starts."""

from __future__ import annotations

import pytest

from raygen.config import Config
from raygen.errors import ConfigError


@pytest.mark.parametrize(
    ("zero_stage", "critic_stage", "taken"),
    [(0, None, 0), (1, None, 1), (2, None, 2), (3, None, 2), (3, 3, 3), (0, 3, 3), (3, 0, 0)],
)
def test_the_critics_stage(zero_stage: int, critic_stage: int | None, taken: int) -> None:
    config = Config.load(
        "tiny", {"train.zero_stage": zero_stage, "train.critic_stage": critic_stage}
    )
    assert config.train.critic_zero_stage == taken
    assert config.exact_penalty == (taken < 3)


@pytest.mark.parametrize(
    ("overrides", "key", "said"),
    [
        (("loss.penalty=exact", "train.critic_stage=3"), "loss.penalty", "train.critic_stage=3"),
        (("train.offload=true", "train.zero_stage=0"), "train.offload", "train.zero_stage"),
        (("train.offload=true", "train.critic_stage=0"), "train.offload", "train.critic_stage"),
        (("train.recompute=true", "model.kind=conv3d"), "train.recompute", "model.kind=conv3d"),
    ],
)
def test_a_contradiction_is_one_line_with_the_key(
    overrides: tuple[str, ...], key: str, said: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        Config.load("tiny", overrides)
    assert caught.value.key == key
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_finite_form_can_be_chosen() -> None:
    assert not Config.load("tiny", {"loss.penalty": "finite"}).exact_penalty
