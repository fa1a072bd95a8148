"""Generators whose frames are functions of time: longer clips, other rates, no seam, no drift."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from raygen import sampling
from raygen.conditions import Condition
from raygen.models import Timed
from raygen.models.path import moving, timeline
from tests.test_models import KINDS, narrow, pair

TIMED = [kind for kind in KINDS if isinstance(pair(narrow(kind))[0], Timed)]
FRAMES = 8
LONG = 8 * FRAMES
CLIPS = 24


def draw(kind: str, times: list[float] | None = None, count: int = CLIPS) -> Tensor:
    config = narrow(kind, FRAMES)
    generator, _ = pair(config)
    z_BD = torch.stack([sampling.latent(seed, config.model.latent_dim) for seed in range(count)])
    with torch.no_grad():
        x_BCTHW: Tensor = generator(z_BD, torch.arange(count) % 4, times)
    return x_BCTHW


def test_residual_and_triplane_are() -> None:
    assert TIMED == ["residual", "triplane"]


def test_a_moving_latent_keeps_its_length_for_ever() -> None:
    z_BD = torch.stack([sampling.latent(seed, 64) for seed in range(4)])
    times_T = torch.tensor([0.0, 1.0, 7.5, 1e3, 1e5])
    z_BTD = moving(z_BD, times_T, 16)
    assert torch.equal(z_BTD[:, 0], z_BD)
    length_BT = z_BTD.norm(dim=2)
    torch.testing.assert_close(length_BT, length_BT[:, :1].expand(-1, 5))
    assert torch.equal(z_BTD[:, 3, :32], z_BD[:, :32])
    assert (z_BTD[:, 1:, 32:] - z_BD[:, None, 32:]).abs().mean((0, 2)).min() > 0.05


@pytest.mark.parametrize("step", [1, 2, 4])
def test_knots_of_a_straight_line_read_as_that_line(step: int) -> None:
    times = [0.0, 0.25, 3.0, 7.5, 7.9]
    line = timeline(times, step, reach=2)
    # B-splines sum to 1 and reproduce what is linear.
    read_T = line.read(line.knots_K[None, 2:-2, None])[0, :, 0]
    torch.testing.assert_close(read_T, torch.tensor(times))
    torch.testing.assert_close(line.weight_TK.sum(1), torch.ones(len(times)))


@pytest.mark.parametrize("kind", TIMED)
def test_a_long_clip_begins_with_the_trained_one_and_may_be_drawn_in_pieces(kind: str) -> None:
    trained, long = draw(kind, count=4), draw(kind, list(range(LONG)), count=4)
    piece = draw(kind, list(range(27, 41)), count=4)
    assert long.shape[2] == LONG
    torch.testing.assert_close(long[:, :, :FRAMES], trained, atol=1e-5, rtol=0)
    torch.testing.assert_close(long[:, :, 27:41], piece, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", TIMED)
def test_another_frame_rate_is_the_same_motion(kind: str) -> None:
    trained = draw(kind, count=4)
    twice = draw(kind, [t / 2 for t in range(2 * FRAMES)], count=4)
    torch.testing.assert_close(twice[:, :, ::2], trained, atol=1e-5, rtol=0)
    between = (trained[:, :, 1:] + trained[:, :, :-1]) / 2
    step = (trained[:, :, 1:] - trained[:, :, :-1]).abs().mean()
    assert (twice[:, :, 1:-1:2] - between).abs().mean() < 0.5 * step


@pytest.mark.parametrize("kind", TIMED)
def test_eight_times_the_length_has_no_drift_and_no_rerun(kind: str) -> None:
    x_BCTHW = draw(kind, list(range(LONG)))
    windows = x_BCTHW.chunk(8, 2)
    motion = torch.stack([w.diff(dim=2).abs().mean() for w in windows])
    spread = torch.stack([w.std(0).mean() for w in windows])
    level = torch.stack([w.mean() for w in windows])
    assert motion.max() / motion.min() < 1.3
    assert spread.max() / spread.min() < 1.15
    assert level.max() - level.min() < 0.3 * spread.mean()
    # No later frame is the first one again.
    apart_T = (x_BCTHW[:, :, FRAMES:] - x_BCTHW[:, :, :1]).abs().mean((0, 1, 3, 4))
    assert apart_T.min() > motion.mean()


@pytest.mark.parametrize("kind", TIMED)
def test_no_seam_at_knots_nor_where_the_trained_clip_ended(kind: str) -> None:
    rate = 4  # frames drawn for one
    x_BCTHW = draw(kind, [t / rate for t in range(3 * FRAMES * rate)])
    bend_T = x_BCTHW.diff(2, dim=2).abs().mean((0, 1, 3, 4))
    phase = bend_T[: 2 * FRAMES * rate].view(-1, 2 * rate).mean(0)  # about knots 2 frames apart
    assert phase.max() / phase.min() < 1.5
    around_the_end = bend_T[FRAMES * rate - 4 : FRAMES * rate + 2]
    assert around_the_end.max() < 1.5 * bend_T.mean()


def test_a_seed_gives_the_same_motion_at_any_length() -> None:
    config = narrow("triplane", FRAMES)
    generator, device = pair(config)[0].eval(), torch.device("cpu")
    z_ND, y_N = sampling.latents([3], config.model.latent_dim), Condition.of(torch.tensor([1]))
    short, long = (
        sampling.generate(generator, z_ND, y_N, device, times)
        for times in (None, list(range(LONG)))
    )
    assert long.shape == (1, LONG, 16, 16, 3)
    # Rounded to 256 levels: one that lies between two may fall to either.
    assert abs(long[:, :FRAMES].astype(int) - short).max() <= 1
