"""The watch over a training: its figures against numpy, its verdicts on real small trainings."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from torch import Tensor

from raygen.config import Config
from raygen.health import Health, moments, spread
from raygen.losses import critic_loss, generator_loss, gradient_penalty
from raygen.models import build_critic, build_generator
from tests.small_runs import SMALL

SETTINGS = {**SMALL, "train.batch_size": 8, "loss.roughness": 0, "augment.cutout": 0}
GOOD = {"loss/generator": 1.1, "loss/critic": 0.5, "logit/real": 0.4, "logit/fake": -0.1}


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Two would wait for each other: these networks are small, and the machine is busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def real_clips(shapes: Path) -> tuple[Tensor, Tensor]:
    """All rendered clips [12, 3, 8, 16, 16] in [-1, 1], and their class ids."""
    clips, labels = [], []
    for path in sorted(shapes.rglob("*.mp4")):
        with av.open(str(path)) as container:
            frames = [f.reformat(16, 16, "rgb24").to_ndarray() for f in container.decode(video=0)]
        clips.append(torch.from_numpy(np.stack(frames[:8])))
        labels.append(path.parent.name)
    ids = [sorted(set(labels)).index(label) for label in labels]
    return torch.stack(clips).permute(0, 4, 1, 2, 3).float() / 127.5 - 1, torch.tensor(ids)


def verdicts(
    clips: tuple[Tensor, Tensor], steps: int, overrides: Mapping[str, Any]
) -> tuple[list[str], Health]:
    """What is said of a training that is looked at after each step, up to the first complaint."""
    config = Config.load("tiny", {**SETTINGS, **overrides})
    torch.manual_seed(0)
    generator = build_generator(config.model, config.data, 3)
    critic = build_critic(config.model, config.data, 3)
    adams = [
        torch.optim.Adam(net.parameters(), lr=adam.lr, betas=(adam.beta1, adam.beta2))
        for net, adam in ((generator, config.optim.generator), (critic, config.optim.critic))
    ]
    health, said = Health(config), []
    for step in range(steps):
        rows = torch.randint(len(clips[0]), (8,))
        x, y = clips[0][rows], clips[1][rows]
        fake = generator(torch.randn(8, 8), y)
        real_logit, fake_logit = critic(x, y), critic(fake.detach(), y)
        loss = critic_loss("relativistic", real_logit, fake_logit)
        if config.loss.gamma and step % 4 == 0:
            both = torch.cat([x, fake.detach()]), torch.cat([y, y])
            loss = loss + 4 * config.loss.gamma * gradient_penalty(critic, *both)
        adams[1].zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        adams[1].step()
        play = generator_loss("relativistic", critic(x, y).detach(), critic(fake, y))
        adams[0].zero_grad()
        play.backward()  # type: ignore[no-untyped-call]
        adams[0].step()
        figures = {"loss/generator": play.item(), "loss/critic": loss.item()}
        figures |= {"logit/real": real_logit.mean().item(), "logit/fake": fake_logit.mean().item()}
        reason = health.look(step + 1, figures, spread(moments(x)), spread(moments(fake)))
        if reason is not None:
            said.append(reason)
            break
    return said, health


def test_spread_is_the_standard_deviation_of_the_pooled_clips() -> None:
    x_BCTHW = torch.rand(6, 3, 8, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    pooled = x_BCTHW.numpy().reshape(6, 3, 4, 2, 4, 4, 4, 4).mean((3, 5, 7)).reshape(6, -1)
    assert moments(x_BCTHW).shape == (1 + 2 * pooled.shape[1],)
    assert spread(moments(x_BCTHW)) == pytest.approx(pooled.std(0).mean(), rel=1e-5)


@pytest.mark.parametrize("sizes", [[8], [4, 4], [5, 2, 1]])
def test_a_batch_in_parts_has_the_spread_of_the_whole(sizes: list[int]) -> None:
    x_BCTHW = torch.rand(8, 3, 8, 16, 16, generator=torch.Generator().manual_seed(1))
    parts = torch.stack([moments(part) for part in x_BCTHW.split(sizes)])
    assert spread(parts.sum(0)) == pytest.approx(spread(moments(x_BCTHW)), rel=1e-5)


def test_clips_that_are_alike_have_no_spread() -> None:
    x_BCTHW = torch.rand(1, 3, 8, 32, 32).expand(8, -1, -1, -1, -1)
    assert spread(moments(x_BCTHW)) < 1e-3
    assert spread(moments(x_BCTHW.bfloat16())) < 1e-3
    assert math.isnan(spread(moments(x_BCTHW / 0 * 0)))


def test_a_sound_training_is_left_alone(real_clips: tuple[Tensor, Tensor]) -> None:
    # Every step is a look, few are forgiven, and grey fakes are no excuse after 60 steps.
    strict = {"health.patience": 5, "health.warmup": 480}
    said, health = verdicts(real_clips, 100, strict)
    assert said == []
    assert health.state() == {"onset": 101, "saturated": 0, "alike": 0, "diverse": True}


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        ({"optim.generator.lr": 0.5, "optim.critic.lr": 0.5}, "critic is saturated"),
        ({"loss.gamma": 0, "optim.critic.lr": 0.05}, "critic is saturated"),
        (
            # Stays as it was drawn: 0.13 to 0.16 of the real spread.
            {
                "model.kind": "strided",
                "optim.generator.lr": 1e-9,
                "health.warmup": 100,
                "health.diversity": 0.25,
            },
            "generator has collapsed",
        ),
    ],
)
def test_a_broken_training_is_found_out(
    overrides: Mapping[str, Any], reason: str, real_clips: tuple[Tensor, Tensor]
) -> None:
    said, health = verdicts(real_clips, 60, overrides)
    assert len(said) == 1
    assert reason in said[0]
    assert "\n" not in said[0]
    assert health.onset < 20


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["loss/critic", "logit/fake", "grad/generator"])
def test_what_is_not_finite_is_said_at_once(name: str, value: float) -> None:
    health = Health(Config.load("tiny"))
    assert health.look(10, GOOD, 0.2, 0.1) is None
    reason = health.look(20, GOOD | {name: value}, 0.2, 0.1)
    assert reason == f"{name} is {value} at step 20"
    assert health.onset == 11


def test_parameters_and_fakes_must_be_finite_too() -> None:
    health = Health(Config.load("tiny"))
    # What is not the networks' is not judged: nothing was decoded between two looks.
    assert health.look(10, GOOD | {"data/decode_ms": math.nan}, 0.2, 0.1) is None
    assert health.look(20, GOOD, 0.2, math.nan) == "the fakes' spread is nan at step 20"
    reason = health.look(30, GOOD, 0.2, 0.1, parameters_finite=False)
    assert reason == "a parameter is not finite at step 30"


def test_a_flare_is_forgiven_and_its_end_forgets_it() -> None:
    health = Health(Config.load("tiny", {"health.patience": 3}))
    high = GOOD | {"logit/real": 35.0, "logit/fake": -1.0}
    looks = [GOOD, high, high, GOOD, high, high, high]
    said = [health.look(10 * (k + 1), figures, 0.2, 0.1) for k, figures in enumerate(looks)]
    assert said[:-1] == [None] * 6
    assert said[-1] is not None
    assert "fake clips are 36 apart, above health.saturation=30 since step 41" in said[-1]
    assert health.onset == 41


def test_grey_fakes_are_forgiven_until_they_were_diverse() -> None:
    config = Config.load("tiny", {"health.patience": 2, "health.warmup": 8 * 500})
    young = Health(config)
    assert [young.look(step, GOOD, 0.2, 0.01) for step in range(10, 500, 10)] == [None] * 49
    assert "since step 1 " in str(young.look(500, GOOD, 0.2, 0.01))
    grown = Health(config)
    assert [grown.look(step, GOOD, 0.2, fake) for step, fake in ((10, 0.01), (20, 0.1))] == [
        None
    ] * 2
    assert grown.look(30, GOOD, 0.2, 0.01) is None
    assert "spread is 0.05 of the real ones'" in str(grown.look(40, GOOD, 0.2, 0.01))
    assert grown.onset == 21


def test_real_clips_that_are_all_alike_prove_nothing() -> None:
    health = Health(Config.load("tiny", {"health.patience": 1, "health.warmup": 0}))
    assert health.look(10, GOOD, 0.0, 0.0) is None


def test_an_interrupted_watch_goes_on_where_it_was() -> None:
    config = Config.load("tiny", {"health.patience": 4})
    figures = [GOOD, *[GOOD | {"logit/fake": 99.0}] * 4]
    whole, parted = Health(config), Health(config)
    for k, values in enumerate(figures):
        parted = Health(config, json.loads(json.dumps(parted.state())))
        said = [health.look(10 * k, values, 0.2, 0.1) for health in (whole, parted)]
        assert said[0] == said[1]
    assert said[0] is not None
    assert parted.state() == whole.state()
    assert Health(config, {}).state() == Health(config).state()
