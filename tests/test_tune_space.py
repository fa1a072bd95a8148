"""Search spaces: what is drawn from them, and what is wrong with them, said before it costs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from raygen.errors import ConfigError
from tune.dimensions import dimension
from tune.space import Allowed, Space

SPACES = Path(__file__).parents[1] / "tune" / "spaces"
RATES = {"optim.generator.lr": {"loguniform": [1e-4, 1e-2]}}


def written(folder: Path, **keys: object) -> Path:
    document = {"base": "tiny", "space": RATES} | keys
    path = folder / "space.yaml"
    path.write_text(yaml.safe_dump({k: v for k, v in document.items() if v is not None}))
    return path


@pytest.mark.parametrize("name", ["tiny", "small"])
def test_shipped_spaces_draw_configurations_that_config_takes(name: str) -> None:
    space, rng = Space.load(SPACES / f"{name}.yaml"), np.random.default_rng(0)
    for _ in range(5):
        values = space.sample(rng)
        config = space.config(values).flat()
        assert {key: config[key] for key in space.keys} == values
        unit_D = space.encode(values)
        assert unit_D.shape == (space.width,)
        assert unit_D.min() >= 0
        assert unit_D.max() <= 1
        assert space.decode(unit_D) == values
    assert space.levels[-1] == space.base.train.steps


@given(low=st.floats(1e-6, 1e3), factor=st.floats(1.001, 1e4), unit=st.floats(0, 1))
@settings(max_examples=60)
def test_a_log_range_is_uniform_in_the_logarithm(low: float, factor: float, unit: float) -> None:
    made = dimension("x", {"loguniform": [low, low * factor]})
    value = made.decode(np.array([unit]))
    assert low <= value <= low * factor
    assert value == pytest.approx(low * factor**unit, rel=1e-4)
    assert made.decode(made.encode(value)) == pytest.approx(value, rel=1e-4)


@given(
    low=st.integers(-20, 20), count=st.integers(1, 9), step=st.integers(1, 5), unit=st.floats(0, 1)
)
def test_whole_numbers_keep_their_steps(low: int, count: int, step: int, unit: float) -> None:
    made = dimension("x", {"int": [low, low + count * step], "step": step})
    value = made.decode(np.array([unit]))
    assert low <= value <= low + count * step
    assert (value - low) % step == 0
    assert made.decode(made.encode(value)) == value


def test_draws_keep_to_the_number_of_parameters(tmp_path: Path) -> None:
    widths = {"model.generator_width": {"int": [8, 64]}, "model.critic_width": {"int": [8, 64]}}
    path = written(tmp_path, space=widths, constraints={"parameters": 1.0e6})
    space, rng = Space.load(path), np.random.default_rng(0)
    drawn = [space.config(space.sample(rng)) for _ in range(8)]
    assert max(map(space.parameters, drawn)) <= 1e6
    assert space.parameters(space.config(dict.fromkeys(widths, 64))) > 1e6


def test_the_command_line_overrides_the_file(tmp_path: Path) -> None:
    path = written(tmp_path, overrides={"train.steps": 90, "loss.gamma": 2.0}, levels=3)
    assert Space.load(path).levels == (30, 60, 90)
    changed = Space.load(path, ["train.steps=30"])
    assert changed.levels == (10, 20, 30)
    assert changed.base.loss.gamma == 2.0


def test_a_search_is_another_where_space_metric_or_base_differ(tmp_path: Path) -> None:
    digests = {
        Space.load(written(tmp_path, **keys)).digest
        for keys in (
            {},
            {"metric": "frechet"},
            {"space": {"optim.generator.lr": {"loguniform": [1e-4, 2e-2]}}},
            {"overrides": {"loss.gamma": 2.0}},
        )
    }
    assert len(digests) == 4
    same = Space.load(written(tmp_path), ["data.uri=elsewhere", "train.workers=2"])
    assert same.digest in digests


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"space": {"optim.generatr.lr": {"uniform": [0, 1]}}},
            "space: unknown key optim.generatr; did you mean optim.generator.lr?",
        ),
        (
            {"space": {"loss.gamma": {"uniform": [2, 2]}}},
            "space.loss.gamma: the range from 2 to 2 is empty; fix it under overrides as "
            "loss.gamma: 2",
        ),
        (
            {"space": {"loss.gamma": {"uniform": [5, 2]}}},
            "space.loss.gamma: the lowest, 5, is above the highest, 2; write uniform: [2, 5]",
        ),
        (
            {"space": {"loss.gamma": {"loguniform": [0, 2]}}},
            "space.loss.gamma: loguniform must begin above 0 (got 0)",
        ),
        (
            {"space": {"loss.gamma": {"lognormal": [1, 2]}}},
            "space.loss.gamma: no 'lognormal'; did you mean loguniform?; there are loguniform, "
            "uniform, int, choice",
        ),
        (
            {"space": {"optim.generator.lr": {"loguniform": [0.1, 3]}}},
            "space.optim.generator.lr: must be less than or equal to 1 (got 3.0)",
        ),
        (
            {
                "overrides": {"data.size": 64},
                "space": {"model.kind": {"choice": ["strided", "superres"]}},
            },
            "space.model.kind: a stage of super-resolution is not searched; search the model "
            "under it",
        ),
        (
            {"space": {"model.kind": {"choice": ["strided", "vgan"]}}},
            "space.model.kind: must be one of strided, twostream, upsampling, residual, triplane, "
            "superres, conv3d, dcgan, mlp (got 'vgan')",
        ),
        (
            {
                "space": {
                    "model.attention": {"choice": [True, False]},
                    "model.kind": {"choice": ["residual", "strided"]},
                }
            },
            "space: unknown key model.attention; did you mean model.latent_dim? (with "
            "model.kind=strided)",
        ),
        (
            {"space": {"data.frames": {"choice": [8, 16]}}},
            "space.data.frames: is the same for all trials, or they would not compare; fix it "
            "under overrides",
        ),
        (
            {"constraints": {"parameters": 1000}},
            "space: neither end of it is allowed; constraints.parameters: 2,",
        ),
        ({"constraints": {"latency": 1}}, "unknown key constraints.latency; did you mean "),
        ({"metric": "fvd"}, "metric: no trial ever reports 'fvd'; the judge reports score, "),
        ({"metric": "frechett"}, "metric: no trial ever reports 'frechett'; did you mean frechet?"),
        ({"space": {}}, "space: nothing to search; give it a key and a range"),
        ({"base": None}, "space.yaml: base is missing; see tune/spaces/tiny.yaml"),
        ({"base": "tyni"}, "no preset 'tyni'; did you mean tiny?"),
        ({"budget": 3}, "unknown key budget"),
    ],
)
def test_what_is_wrong_with_a_space_is_one_line(
    keys: dict[str, object], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as caught:
        Space.load(written(tmp_path, **keys))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_picker_gets_only_what_may_be_trained(tmp_path: Path) -> None:
    widths = {"model.generator_width": {"int": [8, 64]}, "model.critic_width": {"int": [8, 64]}}
    space = Space.load(written(tmp_path, space=widths, constraints={"parameters": 1.0e6}))
    allowed, far_2 = Allowed(space), np.ones(2)
    assert space.refusal(space.decode(far_2)) is not None
    near = allowed.decode(far_2)
    assert space.refusal(near) is None
    assert allowed.decode(far_2) == near
    assert allowed.decode(np.zeros(2)) == space.decode(np.zeros(2))
