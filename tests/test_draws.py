"""What chance decides of a clip depends on its place in the global batch alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from raygen.config import Config
from raygen.draws import Draws, noise_like

CONFIG = Config.load(
    "tiny",
    {
        "train.batch_size": 6,
        "loss.critic_steps": 2,
        "augment.colour": 0.5,
        "augment.translate": 0.2,
        "augment.cutout": 0.3,
        "augment.saturation": 0.1,
        "conditions.kinds": ["class", "text"],
    },
)
ENLARGING = Config.parse(
    CONFIG.dump(), {"model.kind": "superres", "model.factor": 2, "data.size": 32}
)
DROPPING = Config.parse(CONFIG.dump(), {"conditions.drop": 0.3})


def tensors(draws: Draws) -> list[Tensor]:
    """All that was drawn, in a fixed order."""
    parts = [*draws.critic, draws.generator]
    augmentations = [value for part in parts for value in vars(part).values() if value is not None]
    drawn: list[Tensor] = []
    for value in augmentations:
        drawn += [value] if isinstance(value, Tensor) else vars(value).values()
    return drawn


@pytest.mark.parametrize(("config", "lows"), [(CONFIG, 0), (ENLARGING, 2)])
@pytest.mark.parametrize("shares", [1, 2, 3, 6])
def test_shares_make_up_the_global_batch(shares: int, config: Config, lows: int) -> None:
    length = 6 // shares
    split = [Draws.at(config, 7, slice(n * length, (n + 1) * length)) for n in range(shares)]
    whole = tensors(Draws.at(config, 7, slice(0, 6)))
    assert len(whole) == 2 * (1 + 4 + 4 + 1 + 1 + lows) + (1 + 4 + 1 + lows)
    for expected, *pieces in zip(whole, *map(tensors, split), strict=True):
        assert torch.equal(torch.cat(pieces), expected)


def test_no_two_draws_are_the_same() -> None:
    latents = []
    for step in range(3):
        draws = Draws.at(CONFIG, step, slice(0, 6))
        latents += [*(critic.z_BD for critic in draws.critic), draws.generator.z_BD]
    seeds = Draws.at(CONFIG, 0, slice(0, 6)).critic[0].noise_B2
    assert len({row.tobytes() for z_BD in latents for row in z_BD.numpy()}) == 9 * 6
    assert len(set(seeds.flatten().tolist())) == 12


def test_each_kind_of_condition_is_dropped_by_itself_and_as_often_as_asked() -> None:
    dropped = [
        part.dropped_BK
        for step in range(400)
        for part in Draws.at(DROPPING, step, slice(0, 6)).critic
    ]
    flags_NK = torch.cat([part for part in dropped if part is not None]).float()
    assert len(flags_NK) == 2 * 400 * 6
    torch.testing.assert_close(flags_NK.mean(0), torch.full((4,), 0.3), atol=0.03, rtol=0)
    correlation_KK = torch.corrcoef(flags_NK.T)
    assert (correlation_KK - torch.eye(4)).abs().max() < 0.06


def test_nothing_is_dropped_of_classes_alone() -> None:
    draws = Draws.at(Config.load("tiny"), 0, slice(0, 6))
    assert draws.generator.dropped_BK is None


def test_noise_is_each_clips_own_and_standard_normal() -> None:
    seed_B = Draws.at(CONFIG, 0, slice(0, 6)).critic[0].noise_B2[:, 0]
    x_BCTHW = torch.zeros(6, 3, 4, 16, 16)
    noise_BCTHW = noise_like(x_BCTHW, seed_B)
    assert torch.equal(noise_like(x_BCTHW[2:4], seed_B[2:4]), noise_BCTHW[2:4])
    assert noise_BCTHW.mean().abs() < 0.03
    assert noise_BCTHW.std().item() == pytest.approx(1, abs=0.03)
