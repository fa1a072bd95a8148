"""Terms only where they are asked for, averages over global batches, a state that goes on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, distributed

from raygen.config import Config
from raygen.errors import ConfigError
from raygen.objective import Judged, Objective, total

CPU = torch.device("cpu")
BATCH = 4
ADAPTIVE = ("augment.colour=0.5", "augment.adaptive=true", "augment.span=40")


@pytest.fixture(autouse=True)
def _one_rank(tmp_path: Path) -> Iterator[None]:
    distributed.init_process_group("gloo", f"file://{tmp_path}/meeting", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def objective(*overrides: str) -> Objective:
    return Objective(
        Config.load("tiny", [f"train.batch_size={BATCH}", "loss.roughness=0", *overrides]), CPU
    )


def judged(seed: int, grain: float) -> Judged:
    rng = torch.Generator().manual_seed(seed)
    x_BCTHW = grain + grain * torch.randn(BATCH, 3, 4, 16, 16, generator=rng)
    return seen(x_BCTHW.requires_grad_())


def seen(x_BCTHW: Tensor) -> Judged:
    return Judged(x_BCTHW, x_BCTHW.mean((1, 2, 3, 4)), x_BCTHW.mean((2, 3, 4)))


def step(of: Objective, real_logit: float, fake_logit: float, progress: float = 0.0) -> None:
    logits = torch.full((BATCH,), real_logit), torch.full((BATCH,), fake_logit)
    of.critic(*logits, torch.zeros(()), 1.0)
    of.settle(progress)


def test_by_default_there_are_the_losses_and_the_penalty_and_nothing_to_remember() -> None:
    plain = objective()
    logits = torch.zeros(BATCH), torch.ones(BATCH)
    terms = plain.critic(*logits, torch.tensor(2.0), 3.0)
    assert [term.name for term in terms] == ["critic", "penalty"]
    assert total(terms).item() == pytest.approx(terms[0].value.item() + 6.0)
    assert [t.name for t in plain.generator(judged(0, 1.0), judged(1, 1.0))] == ["generator"]
    plain.settle(0.0)
    assert plain.state()["averages"] == {}


@pytest.mark.parametrize("name", ["roughness", "patches", "features"])
def test_a_step_down_a_matching_term_brings_fakes_nearer_to_real_clips(name: str) -> None:
    matching = objective(f"loss.{name}=1")
    real, fake = judged(0, 0.1), judged(1, 0.5)
    assert matching.generator(real, fake)[1].value == 0, "nothing is known of either side"
    matching.settle(0.0)
    term = matching.generator(real, fake)[1]
    assert term.name == name
    (slope_BCTHW,) = torch.autograd.grad(term.value, fake.x_BCTHW)
    moved_BCTHW = fake.x_BCTHW.detach() - 0.1 * slope_BCTHW / slope_BCTHW.square().mean().sqrt()
    nearer = objective(f"loss.{name}=1")
    for _ in range(2):
        after = nearer.generator(real, seen(moved_BCTHW))[1]
        nearer.settle(0.0)
    assert 0 < after.value < term.value


def test_averages_are_of_the_whole_batch_however_it_is_split() -> None:
    whole, split = objective("loss.lecam=1"), objective("loss.lecam=1")
    real_B, fake_B = torch.randn(2, BATCH)
    whole.critic(real_B, fake_B, torch.zeros(()), 1.0)
    for rows in (slice(0, 1), slice(1, 4)):
        split.critic(real_B[rows], fake_B[rows], torch.zeros(()), 1.0)
    for one in (whole, split):
        one.settle(0.0)
    (steps, mean), (_, again) = (o.state()["averages"]["logit/real"] for o in (whole, split))
    assert steps == 1
    assert mean == pytest.approx(again)
    assert mean == pytest.approx([real_B.mean().item()], rel=1e-5)


def test_averages_are_plain_means_first_and_move_slowly_then() -> None:
    lecam = objective("loss.lecam=1")
    for value in (1.0, 2.0, 3.0):
        step(lecam, value, 0.0)
    assert lecam.state()["averages"]["logit/real"] == [3, [pytest.approx(2.0)]]
    for _ in range(97):
        step(lecam, 2.0, 0.0)
    step(lecam, 12.0, 0.0)
    # After a hundred steps, LeCam's own 0.99.
    assert lecam.state()["averages"]["logit/real"][1] == [pytest.approx(2.1)]


@pytest.mark.parametrize(
    ("kind", "real", "fake"), [("hinge", 2.0, 3.0), ("relativistic", -2.0, -3.0)]
)
def test_the_probability_follows_the_critic(kind: str, real: float, fake: float) -> None:
    adaptive = objective(f"loss.kind={kind}", *ADAPTIVE)
    assert adaptive.probability(0.0) == 0
    for _ in range(3):
        step(adaptive, real, fake)
    assert float(adaptive.probability(0.0)) == pytest.approx(3 * BATCH / 40)
    for _ in range(20):
        step(adaptive, -real, -fake)
    assert float(adaptive.probability(0.0)) == 0


def test_the_probability_is_capped_by_a_cap_that_moves() -> None:
    adaptive = objective(*ADAPTIVE, "augment.probability=0.5", "augment.probability_end=0.2")
    for _ in range(20):
        step(adaptive, 1.0, 0.0)
    assert float(adaptive.probability(0.0)) == pytest.approx(0.5)
    step(adaptive, 1.0, 0.0, progress=1.0)
    assert float(adaptive.probability(1.0)) == pytest.approx(0.2)


def test_the_probability_can_follow_a_schedule_alone() -> None:
    rising = objective("augment.probability=0", "augment.probability_end=0.3")
    assert [rising.probability(p) for p in (0.0, 0.5, 1.0)] == pytest.approx([0, 0.15, 0.3])


def test_the_state_goes_on_through_json_and_with_terms_that_are_new() -> None:
    overrides = ("loss.lecam=1", *ADAPTIVE)
    first, second = objective(*overrides), objective(*overrides, "loss.roughness=1")
    for value in (0.3, 0.1, 0.7):
        step(first, value, 0.0)
    second.load(json.loads(json.dumps(first.state())))
    assert second.state() == first.state()
    for one in (first, second):
        step(one, 0.9, 0.0)
    assert second.state() == first.state()
    second.generator(judged(0, 1.0), judged(1, 1.0))
    second.settle(0.0)
    assert second.state()["averages"]["roughness/real"][0] == 1


def test_adapting_nothing_is_refused_in_one_line() -> None:
    with pytest.raises(ConfigError, match=r"augment\.adaptive has nothing to apply") as caught:
        Config.load("conv3d", ["augment.adaptive=true"])
    assert caught.value.key == "augment.adaptive"
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "wrong", ["loss.kind=wasserstein", "loss.lecam=-1", "augment.target=1.5", "optim.burn_in=0"]
)
def test_mistakes_are_named_by_key(wrong: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Config.load("tiny", [wrong])
    assert wrong.partition("=")[0] in str(caught.value)
    assert "\n" not in str(caught.value)
