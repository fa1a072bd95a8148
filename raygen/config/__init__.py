"""The one typed tree that describes a run; every other module takes it, or a branch of it.

    raygen config tiny                          # the resolved preset, described key by key
    raygen train tiny optim.generator.lr=1e-4   # a dotted path is the key everywhere

A dotted path is the YAML key, the command-line override, the key of a search space and the name
in an error. The tree is frozen; a changed copy comes from `Config.load`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Self

from pydantic import Field, model_validator

from raygen import tree
from raygen.config.data import (
    CacheConfig,
    DataConfig,
    LimitsConfig,
)
from raygen.config.model import (
    KINDS,
    ConditionsConfig,
    Conv3dConfig,
    DcganConfig,
    MlpConfig,
    ModelConfig,
    ResidualConfig,
    StridedConfig,
    SuperresConfig,
    TriplaneConfig,
    TwoStreamConfig,
    UpsamplingConfig,
    families,
)
from raygen.config.objective import (
    AdamConfig,
    AugmentConfig,
    LossConfig,
    OptimConfig,
)
from raygen.config.run import (
    Budget,
    EvaluateConfig,
    HealthConfig,
    TrackingConfig,
    TrainConfig,
)
from raygen.errors import ConfigError
from raygen.tree import Section

__all__ = [
    "KINDS",
    "AdamConfig",
    "AugmentConfig",
    "Budget",
    "CacheConfig",
    "ConditionsConfig",
    "Config",
    "Conv3dConfig",
    "DataConfig",
    "DcganConfig",
    "EvaluateConfig",
    "HealthConfig",
    "LimitsConfig",
    "LossConfig",
    "MlpConfig",
    "ModelConfig",
    "OptimConfig",
    "ResidualConfig",
    "StridedConfig",
    "SuperresConfig",
    "TrackingConfig",
    "TrainConfig",
    "TriplaneConfig",
    "TwoStreamConfig",
    "UpsamplingConfig",
    "families",
    "presets",
]

PRESETS = Path(__file__).parents[1] / "presets"


class Config(Section):
    """A whole run: `Config.load("tiny", {"optim.generator.lr": 1e-4})`."""

    name: str = Field(
        "run", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="run name; the same resumes"
    )
    storage: str = Field("runs", min_length=1, description="where runs are kept: folder or s3://")
    seed: int = Field(0, ge=0, lt=2**31, description="seed of weights, order, latents")
    data: DataConfig = Field(DataConfig(), description="")
    model: ModelConfig = Field(StridedConfig(), description="")
    conditions: ConditionsConfig = Field(ConditionsConfig(), description="")
    loss: LossConfig = Field(LossConfig(), description="")
    augment: AugmentConfig = Field(AugmentConfig(), description="")
    optim: OptimConfig = Field(OptimConfig(), description="")
    train: TrainConfig = Field(TrainConfig(), description="")
    budget: Budget = Field(Budget(), description="")
    health: HealthConfig = Field(HealthConfig(), description="")
    tracking: TrackingConfig = Field(TrackingConfig(), description="")
    evaluate: EvaluateConfig = Field(EvaluateConfig(), description="")

    @property
    def exact_penalty(self) -> bool:
        """Whether R1 and R2 are exact (a double backward) or by finite differences."""
        if self.loss.penalty == "auto":
            return self.train.critic_zero_stage < 3
        return self.loss.penalty == "exact"

    @model_validator(mode="after")
    def _engines_can(self) -> Self:
        # What no single key is to blame for; a ConfigError passes through pydantic as it is.
        train, model = self.train, self.model
        if self.exact_penalty and train.critic_zero_stage == 3:
            raise ConfigError(
                "loss.penalty=exact is wrong at train.critic_stage=3; take critic_stage=2, "
                "or loss.penalty=finite",
                "loss.penalty",
            )
        if train.offload and 0 in (train.zero_stage, train.critic_zero_stage):
            raise ConfigError(
                "train.offload moves sharded optimizer state; take train.zero_stage and "
                "train.critic_stage of 1 to 3",
                "train.offload",
            )
        if self.conditions.crossed and not self.loss.contrast:
            raise ConfigError(
                "conditions.crossed asks for texts that only loss.contrast tells the generator "
                "of; take loss.contrast=1",
                "loss.contrast",
            )
        if self.augment.adaptive and not self.augment.kinds:
            raise ConfigError(
                "augment.adaptive has nothing to apply; give augment.colour, saturation, "
                "translate or cutout a strength",
                "augment.adaptive",
            )
        if not model.any_aspect and self.data.height != self.data.width:
            raise ConfigError(
                f"model.kind={model.kind} draws squares alone, and data.size={self.data.size}; "
                f"take data.size={min(self.data.height, self.data.width)}, or another kind",
                "data.size",
            )
        if isinstance(model, SuperresConfig):
            self._enlarges(model)
        elif self.loss.pixels:
            raise ConfigError(
                f"loss.pixels needs a real clip for each generated one; model.kind={model.kind} "
                "draws from a latent: take loss.pixels=0",
                "loss.pixels",
            )
        if train.recompute and model.batch_statistics:
            raise ConfigError(
                f"train.recompute would show model.kind={model.kind}'s batch norm each batch "
                "twice; take another kind, or a smaller train.micro_batch",
                "train.recompute",
            )
        return self

    def _enlarges(self, model: SuperresConfig) -> None:
        data, factor = self.data, model.factor
        if any(side % (16 * factor) for side in (data.height, data.width)):
            raise ConfigError(
                f"model.factor={factor} enlarges clips whose sides are multiples of 16: "
                f"data.size={data.size} must be multiples of {16 * factor}",
                "model.factor",
            )
        if "image" in self.conditions.kinds:
            raise ConfigError(
                "model.kind=superres takes no first frame; take image out of conditions.kinds",
                "conditions.kinds",
            )

    @classmethod
    def load(cls, preset: str | Path, overrides: Mapping[str, Any] | Iterable[str] = ()) -> Config:
        """A preset's name or a YAML file, with dotted overrides on top.

        `overrides` is a mapping of dotted paths or an iterable of `key=value` strings, whose
        values are read as YAML. Raises ConfigError naming the key, the rule and the value.
        """
        return cls.parse(_read_preset(preset), overrides)

    @classmethod
    def parse(
        cls, nested: Mapping[str, Any], overrides: Mapping[str, Any] | Iterable[str] = ()
    ) -> Config:
        """A nested tree, as `dump` gives it, with dotted overrides on top."""
        return tree.validated(cls, nested, overrides)

    def dump(self) -> dict[str, Any]:
        """The nested tree in plain JSON types; `Config.parse` takes it back."""
        return self.model_dump(mode="json")

    def flat(self) -> dict[str, Any]:
        """Dotted path to value, for every leaf."""
        return dict(tree.leaves(self.dump()))

    def to_yaml(self) -> str:
        """YAML that `load` reads back, each key followed by its description."""
        return "\n".join(tree.describe(self)) + "\n"


def presets() -> list[str]:
    """The names of the presets that ship with raygen."""
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def _read_preset(preset: str | Path) -> dict[str, Any]:
    path = Path(preset)
    if path.suffix not in (".yaml", ".yml"):
        path = PRESETS / f"{preset}.yaml"
        if not path.is_file():
            hint = tree.nearest(str(preset), presets())
            raise ConfigError(
                f"no preset {str(preset)!r}{hint}; there are {', '.join(presets())}, "
                "or give a .yaml file"
            )
    return tree.read_yaml(path)
