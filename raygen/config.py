"""The one typed tree that describes a run; every other module takes it, or a branch of it.

    raygen config tiny                          # the resolved preset, described key by key
    raygen train tiny optim.generator.lr=1e-4   # a dotted path is the key everywhere

A dotted path is the YAML key, the command-line override, the key of a search space and the name
in an error. The tree is frozen; a changed copy comes from `Config.load`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from raygen.errors import ConfigError

PRESETS = Path(__file__).parent / "presets"


class Section(BaseModel):
    """A branch of the tree: frozen, and closed to unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class DataConfig(Section):
    """Which clips, and the shape in which they reach the networks."""

    uri: str = Field("", description="clips: a folder, s3://bucket/prefix, or a catalogue.parquet")
    frames: int = Field(16, ge=4, le=256, multiple_of=4, description="frames of a clip (T)")
    size: int = Field(32, ge=16, le=512, multiple_of=16, description="height and width, pixels")
    fps: float = Field(16.0, gt=0, le=240, description="frames per second sampled from the source")
    decoders: int = Field(1, ge=1, le=64, description="decode actors per worker")
    cache_mb: int = Field(256, ge=0, description="decoded short videos kept per decode actor, MB")


class _Family(Section):
    kind: str
    latent_dim: int = Field(64, ge=1, le=1024, description="dimension of the latent z")
    class_dim: int = Field(64, ge=1, le=1024, description="dimension of the class embedding")
    generator_width: int = Field(32, ge=4, le=1024, description="channels of the last hidden layer")
    critic_width: int = Field(32, ge=4, le=1024, description="channels of the critic's first layer")

    @property
    def batch_statistics(self) -> bool:
        """Whether a layer's output depends on the other clips of its batch."""
        return False


class StridedConfig(_Family):
    """4x4x4 transposed convolutions, group norm: texture and pose."""

    kind: Literal["strided"] = Field("strided", description="model family")


class UpsamplingConfig(_Family):
    """Trilinear upsampling, convolutions modulated by (latent, class), pixel norm: clean motion."""

    kind: Literal["upsampling"] = Field("upsampling", description="model family")


class Conv3dConfig(_Family):
    """The literal baseline: 3D transposed convolutions and batch norm (VGAN, arXiv 1609.02612)."""

    kind: Literal["conv3d"] = Field("conv3d", description="model family")

    @property
    def batch_statistics(self) -> bool:
        """Batch norm: true."""
        return True


ModelConfig = Annotated[
    StridedConfig | UpsamplingConfig | Conv3dConfig, Field(discriminator="kind")
]


class LossConfig(Section):
    """The adversarial objective and its gradient penalties."""

    kind: Literal["relativistic", "bce"] = Field("relativistic", description="pairing loss or BCE")
    gamma: float = Field(4.0, ge=0, description="weight of R1 and R2 at the start, 0: none")
    gamma_decay: float = Field(0.1, gt=0, le=1, description="that weight at the end, as a fraction")
    penalty_every: int = Field(4, ge=1, le=64, description="steps between lazy R1 and R2")


class AugmentConfig(Section):
    """Differentiable augmentation of what the critic sees, drawn once a clip."""

    colour: float = Field(0.0, ge=0, le=1, description="strength of brightness and contrast")
    translate: float = Field(0.0, ge=0, le=0.5, description="largest shift, fraction of the size")
    cutout: float = Field(0.0, ge=0, le=0.75, description="side of the erased box, fraction")
    probability: float = Field(1.0, ge=0, le=1, description="share of clips augmented, each kind")


class AdamConfig(Section):
    """Adam for one network."""

    lr: float = Field(5e-4, gt=0, le=1, description="learning rate at the start of its cosine")
    beta1: float = Field(0.0, ge=0, lt=1, description="Adam's beta1")
    beta2: float = Field(0.99, ge=0, lt=1, description="Adam's beta2")


class OptimConfig(Section):
    """Both optimizers, and what follows the same schedule."""

    generator: AdamConfig = Field(AdamConfig(), description="")
    critic: AdamConfig = Field(AdamConfig(), description="")
    lr_decay: float = Field(0.1, gt=0, le=1, description="learning rates at the end, as a fraction")
    clip_norm: float = Field(0.0, ge=0, description="gradient norm to clip at, 0: none")
    ema_halflife: float = Field(500.0, ge=0, description="half-life of the generator's EMA, clips")


class TrainConfig(Section):
    """How the work is spread and how far it goes."""

    workers: int = Field(1, ge=1, le=1024, description="training workers (ranks)")
    cpus_per_worker: float = Field(1.0, gt=0, description="CPUs that Ray reserves per worker")
    gpus_per_worker: float = Field(0.0, ge=0, description="GPUs that Ray reserves per worker")
    zero_stage: Literal[0, 1, 2, 3] = Field(1, description="ZeRO stage; at 3 the critic takes 2")
    precision: Literal["fp32", "bf16"] = Field("fp32", description="arithmetic of both networks")
    batch_size: int = Field(16, ge=1, description="clips in the global batch, over all workers")
    steps: int = Field(2000, ge=1, description="optimizer steps; the schedules end here")
    checkpoint_every: int = Field(200, ge=1, description="steps between checkpoints")
    sample_every: int = Field(200, ge=1, description="steps between samples in the tracker")
    keep_checkpoints: int = Field(2, ge=1, description="newest checkpoints kept")
    max_failures: int = Field(3, ge=0, description="worker failures survived by restarting")
    node: str = Field("local", description="node type that prices this run (raygen prices)")

    @model_validator(mode="after")
    def _batch_divides(self) -> Self:
        if self.batch_size % self.workers:
            raise ValueError(
                f"batch_size {self.batch_size} cannot be split over {self.workers} workers; "
                f"take {self.batch_size // self.workers * self.workers or self.workers}"
            )
        return self


class Budget(Section):
    """Optional limits; the first one reached ends the run, saved and successful."""

    minutes: float | None = Field(None, gt=0, description="training time; schedules end here too")
    dollars: float | None = Field(None, gt=0, description="price of the nodes while they train")


class TrackingConfig(Section):
    """Where scalars and samples go."""

    kind: Literal["tensorboard", "wandb", "mlflow"] = Field("tensorboard", description="tracker")
    project: str = Field("raygen", min_length=1, description="project or experiment of the tracker")


class EvaluateConfig(Section):
    """The judge, and how much it looks at."""

    clips: int = Field(512, ge=32, description="generated clips that are judged")
    judge_steps: int = Field(300, ge=10, description="training steps of the embedded classifier")
    batch_size: int = Field(32, ge=2, description="clips a batch while judging")


class Config(Section):
    """A whole run: `Config.load("tiny", {"optim.generator.lr": 1e-4})`."""

    name: str = Field(
        "run", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="run name; the same resumes"
    )
    storage: str = Field("runs", min_length=1, description="where runs are kept: folder or s3://")
    seed: int = Field(0, ge=0, lt=2**31, description="seed of weights, order, latents")
    data: DataConfig = Field(DataConfig(), description="")
    model: ModelConfig = Field(StridedConfig(), description="")
    loss: LossConfig = Field(LossConfig(), description="")
    augment: AugmentConfig = Field(AugmentConfig(), description="")
    optim: OptimConfig = Field(OptimConfig(), description="")
    train: TrainConfig = Field(TrainConfig(), description="")
    budget: Budget = Field(Budget(), description="")
    tracking: TrackingConfig = Field(TrackingConfig(), description="")
    evaluate: EvaluateConfig = Field(EvaluateConfig(), description="")

    @classmethod
    def load(cls, preset: str | Path, overrides: Mapping[str, Any] | Iterable[str] = ()) -> Config:
        """A preset's name or a YAML file, with dotted overrides on top.

        `overrides` is a mapping of dotted paths or an iterable of `key=value` strings, whose
        values are read as YAML. Raises ConfigError naming the key, the rule and the value.
        """
        return cls.parse(_read_preset(preset), overrides)

    @classmethod
    def parse(
        cls, tree: Mapping[str, Any], overrides: Mapping[str, Any] | Iterable[str] = ()
    ) -> Config:
        """A nested tree, as `dump` gives it, with dotted overrides on top."""
        merged = _merge({}, tree)
        pairs = overrides.items() if isinstance(overrides, Mapping) else map(_split, overrides)
        # A family's kind goes first: it decides which of the preset's model keys survive.
        for key, value in sorted(pairs, key=lambda pair: pair[0] != "model.kind"):
            _assign(merged, key, value)
        _refuse_unknown(cls, merged)
        try:
            return cls.model_validate(merged)
        except ValidationError as error:
            raise _explain(error) from None

    def dump(self) -> dict[str, Any]:
        """The nested tree in plain JSON types; `Config.parse` takes it back."""
        return self.model_dump(mode="json")

    def flat(self) -> dict[str, Any]:
        """Dotted path to value, for every leaf."""
        return dict(_leaves(self.dump()))

    def to_yaml(self) -> str:
        """YAML that `load` reads back, each key followed by its description."""
        return "\n".join(_describe(self, 0)) + "\n"


def presets() -> list[str]:
    """The names of the presets that ship with raygen."""
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def families() -> dict[str, type[Section]]:
    """Model kind to its config class."""
    classes = get_args(get_args(ModelConfig)[0])
    return {get_args(c.model_fields["kind"].annotation)[0]: c for c in classes}


def _read_preset(preset: str | Path) -> dict[str, Any]:
    path = Path(preset)
    if path.suffix not in (".yaml", ".yml"):
        path = PRESETS / f"{preset}.yaml"
        if not path.is_file():
            hint = _nearest(str(preset), presets())
            raise ConfigError(
                f"no preset {str(preset)!r}{hint}; there are {', '.join(presets())}, "
                "or give a .yaml file"
            )
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{path} must hold keys and values, as `raygen config tiny` prints them")
    return tree


def _split(text: str) -> tuple[str, Any]:
    key, separator, value = text.partition("=")
    if not separator or not key:
        raise ConfigError(f"{text!r} is not key=value, as in optim.generator.lr=1e-4")
    try:
        parsed = yaml.safe_load(value) if value else ""
    except yaml.YAMLError:
        return key, value
    # YAML 1.1 reads 1e-4, without a dot, as a string.
    if isinstance(parsed, str):
        try:
            return key, float(parsed)
        except ValueError:
            return key, parsed
    return key, parsed


def _merge(base: dict[str, Any], tree: Mapping[str, Any]) -> dict[str, Any]:
    for key, value in tree.items():
        base[key] = _merge({}, value) if isinstance(value, Mapping) else value
    return base


def _assign(tree: dict[str, Any], key: str, value: Any) -> None:
    *parents, leaf = key.split(".")
    node = tree
    for parent in parents:
        child = node.setdefault(parent, {})
        if not isinstance(child, dict):
            raise ConfigError(f"{key}: {parent} is a value, not a section", key)
        node = child
    if key == "model.kind" and value in families():
        kept = families()[value].model_fields
        for other in [name for name in node if name not in kept]:
            del node[other]
    node[leaf] = value


def _section_of(annotation: Any, value: Any) -> type[BaseModel] | None:
    if get_origin(annotation) is Annotated or annotation is ModelConfig:
        annotation = get_args(annotation)[0]
    if set(families().values()) <= set(get_args(annotation)):
        kind = value.get("kind", "strided") if isinstance(value, dict) else "strided"
        return families().get(kind)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return None


def _refuse_unknown(model: type[BaseModel], tree: Mapping[str, Any], prefix: str = "") -> None:
    fields = model.model_fields
    for key, value in tree.items():
        path = f"{prefix}{key}"
        if key not in fields:
            known = [prefix + name for name in _paths(model)]
            same_leaf = [name for name in known if name.rpartition(".")[2] == key]
            hint = _nearest(path, known) or _nearest(path, same_leaf, cutoff=0.0)
            raise ConfigError(f"unknown key {path}{hint}", path)
        section = _section_of(fields[key].annotation, value)
        if section is None:
            continue
        if not isinstance(value, Mapping):
            raise ConfigError(f"{path}: is a section with keys of its own (got {value!r})", path)
        _refuse_unknown(section, value, f"{path}.")


def _paths(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        section = _section_of(field.annotation, None)
        if section is None:
            yield prefix + name
        else:
            yield from _paths(section, f"{prefix}{name}.")


def _nearest(word: str, known: Iterable[str], cutoff: float = 0.5) -> str:
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=cutoff)
    return f"; did you mean {close[0]}?" if close else ""


def _explain(error: ValidationError) -> ConfigError:
    first = error.errors()[0]
    # A discriminated union puts the variant's tag into the path.
    key = ".".join(str(part) for part in first["loc"] if part not in families())
    rule = first["msg"].removeprefix("Value error, ")
    rule = rule.removeprefix("Input should be ").replace("a valid ", "a ")
    if first["type"] == "value_error":
        return ConfigError(f"{key}: {rule}", key)
    if first["type"] == "union_tag_invalid":
        value = first["input"].get("kind")
        kinds = ", ".join(families())
        return ConfigError(f"model.kind: must be one of {kinds} (got {value!r})", "model.kind")
    return ConfigError(f"{key}: must be {rule} (got {first['input']!r})", key)


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _describe(section: BaseModel, depth: int) -> Iterator[str]:
    indent = "  " * depth
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            summary = (type(value).__doc__ or "").strip().splitlines()[0]
            yield f"{indent}{name}:  # {summary}"
            yield from _describe(value, depth + 1)
        else:
            text = yaml.safe_dump(value, default_flow_style=True).split("\n")[0]
            yield f"{indent}{name}: {text}".ljust(36) + f"  # {field.description}"
