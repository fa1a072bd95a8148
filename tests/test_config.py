from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from raygen.config import Config, presets
from raygen.errors import ConfigError


@pytest.mark.parametrize("preset", presets())
def test_a_printed_preset_reads_back_the_same(preset: str, tmp_path: Path) -> None:
    config = Config.load(preset)
    path = tmp_path / "printed.yaml"
    path.write_text(config.to_yaml())
    assert Config.load(path) == config
    assert Config.parse(config.dump()) == config


@given(lr=st.floats(1e-8, 1.0), workers=st.sampled_from([1, 2, 4, 8]))
def test_overrides_as_mapping_and_as_strings_agree(lr: float, workers: int) -> None:
    tree = {"optim.generator.lr": lr, "train.workers": workers}
    config = Config.load("tiny", tree)
    assert config.optim.generator.lr == lr
    assert config == Config.load("tiny", [f"{key}={value}" for key, value in tree.items()])


def test_scientific_notation_without_a_dot_is_a_number() -> None:
    assert Config.load("tiny", ["optim.generator.lr=1e-4"]).optim.generator.lr == 1e-4


def test_another_family_drops_nothing_that_it_knows() -> None:
    config = Config.load("tiny", ["model.latent_dim=16", "model.kind=conv3d"])
    assert (config.model.kind, config.model.latent_dim) == ("conv3d", 16)


@pytest.mark.parametrize(
    ("override", "key", "said"),
    [
        ("optim.generater.lr=1", "optim.generater", "did you mean optim.generator.lr?"),
        ("optim.generator.rl=1", "optim.generator.rl", "did you mean optim.generator.lr?"),
        ("model.generator_with=8", "model.generator_with", "did you mean model.generator_width?"),
        ("lr=1", "lr", "did you mean optim."),
        ("optim.generator.lr=-1", "optim.generator.lr", "greater than 0 (got -1)"),
        ("data.size=33", "data.size", "multiple of 16 (got 33)"),
        ("model.kind=vgan", "model.kind", "conv3d, dcgan, mlp (got 'vgan')"),
        ("train.workers=3", "train", "cannot be split over 3 workers"),
        ("optim=3", "optim", "section"),
        ("steps", "", "is not key=value"),
    ],
)
def test_a_wrong_override_is_one_line_with_the_key(override: str, key: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Config.load("tiny", [override])
    assert caught.value.key == key
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_preset_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean tiny"):
        Config.load("tinny")


@pytest.mark.parametrize("text", ["- a\n- b", "{a: [", "3"])
def test_a_file_that_is_no_tree_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"bad\.yaml"):
        Config.load(path)


def test_every_key_is_described() -> None:
    described = Config.load("tiny").to_yaml().splitlines()
    assert all(line.partition("#")[2].strip() for line in described)
    assert yaml.safe_load("\n".join(described)) == Config.load("tiny").dump()
