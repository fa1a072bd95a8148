"""What a search may try: a YAML file over Config's own dotted keys, checked before it costs.

    space = Space.load("tune/spaces/tiny.yaml", ["data.uri=s3://bucket/clips"])
    values = space.sample(np.random.default_rng(0))     # {"optim.generator.lr": 0.0007, ...}
    config = space.config(values)                       # a raygen Config
    unit_D = space.encode(values)                       # [0, 1]^D, and back: space.decode(unit_D)

The file says where it starts (`base`, `overrides`), what varies (`space`), what a configuration
must keep to (`constraints`), what is wanted (`metric`, `mode`) and when trials are judged
(`levels`). Every key and both ends of every range are tried on Config when it is loaded.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from pydantic import Field, model_validator
from torch.overrides import TorchFunctionMode

from raygen import tree
from raygen.config import Config, SuperresConfig
from raygen.errors import ConfigError
from raygen.metrics import Evaluation
from raygen.models import build_critic, build_generator, parameter_count
from tune.dimensions import Choice, Dimension, Vector, dimension

TRIES = 2000
NEAR = 50  # places that are tried around one that is not allowed
MIXTURES = 256  # of options that are tried when a space is loaded
# With these, two trials would not be measured alike.
_ALIKE = (
    "name", "storage", "seed", "data.", "evaluate.", "tracking.", "budget.", "train.steps",
    "train.workers", "train.cpus_per_worker", "train.gpus_per_worker", "train.node",
)  # fmt: skip
# What may change while a search goes on.
_MAY_CHANGE = (
    "name", "storage", "data.uri", "data.cache", "data.decoders", "data.prefetch", "data.ahead_mb",
    "tracking.", "budget.", "evaluate.every", "evaluate.cpus", "train.workers", "train.cpus",
    "train.gpus", "train.max_failures", "train.stall_s", "train.node", "train.checkpoint_every",
    "train.snapshot_every", "train.sample_every", "train.keep_checkpoints",
)  # fmt: skip
FIGURES = (
    "score",
    *(f.name for f in fields(Evaluation) if f.type == "float" and not f.name.endswith("_real")),
)
"""What a search can be after: the single figures of the judge on generated clips."""


class Constraints(tree.Section):
    """What a configuration must keep to, or it is not trained."""

    parameters: float | None = Field(None, gt=0, description="most of both networks together")
    memory_gb: float | None = Field(None, gt=0, description="peak memory of one worker, GB")
    latency_ms: float | None = Field(None, gt=0, description="one clip drawn by a worker, ms")
    dollars_per_clip: float | None = Field(
        None, gt=0, description="the same at the price of a worker's share of train.node, dollars"
    )

    @property
    def profiled(self) -> bool:
        """Whether some can only be known by running."""
        return any((self.memory_gb, self.latency_ms, self.dollars_per_clip))


class SpaceFile(tree.Section):
    """The file as it is written."""

    base: str = Field(min_length=1, description="a preset's name or a .yaml file")
    overrides: dict[str, Any] = Field({}, description="dotted keys fixed for all trials")
    space: dict[str, Any] = Field(description="dotted keys to a range or a choice")
    constraints: Constraints = Field(Constraints(), description="")
    metric: str = Field("score", description="figure of the judge")
    mode: Literal["min", "max"] = Field("min", description="whether less or more is better")
    levels: int = Field(9, ge=1, le=100, description="times that a whole trial is judged")
    trials: int = Field(256, ge=1, description="most configurations that are tried")

    @model_validator(mode="after")
    def _metric_exists(self) -> Self:
        if self.metric not in FIGURES:
            hint = tree.nearest(self.metric, FIGURES)
            raise ConfigError(
                f"metric: no trial ever reports {self.metric!r}{hint}; the judge reports "
                f"{', '.join(FIGURES)}",
                "metric",
            )
        if not self.space:
            raise ConfigError("space: nothing to search; give it a key and a range", "space")
        return self


class _Undrawn(TorchFunctionMode):
    """Initial weights are not drawn: on the meta device that takes seconds, for nothing."""

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if getattr(function, "__name__", "").endswith(("normal_", "uniform_", "orthogonal_")):
            return args[0] if args else kwargs["tensor"]
        return function(*args, **(kwargs or {}))


@dataclass(frozen=True)
class Space:
    """A checked search space; `base` is the Config in which nothing has been varied."""

    base: Config
    dimensions: tuple[Dimension, ...]
    constraints: Constraints
    metric: str
    mode: Literal["min", "max"]
    levels: tuple[int, ...]  # steps at which a trial is judged, ascending; the last is the whole
    trials: int
    _parameters: dict[str, int] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def load(cls, path: str | Path, overrides: Iterable[str] = ()) -> Space:
        """The space of a YAML file; `overrides` are key=value of Config, for all trials.

        Raises ConfigError: one line that names the key, what is wrong with it and the fix.
        """
        path = Path(path)
        if path.suffix not in (".yaml", ".yml"):
            raise ConfigError(f"{path}: a space is a .yaml file, as in tune/spaces/tiny.yaml")
        written = tree.read_yaml(path)
        for key in ("base", "space"):
            if key not in written:
                raise ConfigError(f"{path}: {key} is missing; see tune/spaces/tiny.yaml", key)
        file = tree.validated(SpaceFile, written, ())
        beside = path.parent / file.base
        config = Config.load(beside if beside.suffix in (".yaml", ".yml") else file.base)
        config = Config.parse(config.dump(), file.overrides)
        whole = Config.parse(config.dump(), list(overrides))
        for key in ("storage", "name"):
            if getattr(whole, key) != getattr(config, key):
                raise ConfigError(f"{key}: a search keeps its trials itself; give --storage", key)
        for key in ("minutes", "dollars", "steps"):
            if getattr(whole.budget, key) is not None:
                lower = "give --budget" if key == "dollars" else "lower train.steps instead"
                key = f"budget.{key}"
                raise ConfigError(f"{key}: a trial ends where the search says; {lower}", key)
        return cls.of(file, whole)

    @classmethod
    def of(cls, file: SpaceFile, base: Config) -> Space:
        """The space that `file` makes of `base`. Raises ConfigError."""
        for key in file.space:
            _check_key(key)
        dimensions = tuple(dimension(key, written) for key, written in file.space.items())
        steps = base.train.steps
        levels = sorted({max(1, round(steps * (k + 1) / file.levels)) for k in range(file.levels)})
        space = cls(
            base, dimensions, file.constraints, file.metric, file.mode, tuple(levels), file.trials
        )
        space._check()
        return space

    @property
    def keys(self) -> list[str]:
        """What varies."""
        return [each.key for each in self.dimensions]

    @property
    def width(self) -> int:
        """D, the coordinates of the unit cube."""
        return sum(each.width for each in self.dimensions)

    @property
    def document(self) -> dict[str, Any]:
        """What makes two searches the same search: JSON types.

        Where clips and storage lie and how the work is spread may change while it goes on.
        """
        flat = sorted(self.base.flat().items())
        return {
            "base": {key: value for key, value in flat if not key.startswith(_MAY_CHANGE)},
            "space": {
                each.key: {"is": type(each).__name__, **vars(each)} for each in self.dimensions
            },
            "constraints": self.constraints.model_dump(mode="json"),
            "metric": self.metric,
            "mode": self.mode,
            "levels": list(self.levels),
        }

    @property
    def digest(self) -> str:
        """Of `document`."""
        text = json.dumps(self.document, sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def sample(self, rng: np.random.Generator) -> dict[str, Any]:
        """A configuration drawn as the space says, which Config takes and which is small enough.

        Raises ConfigError where none of TRIES is.
        """
        for _ in range(TRIES):
            values = self.decode(rng.random(self.width))
            if self.refusal(values) is None:
                return values
        raise ConfigError(
            f"space: none of {TRIES} configurations is allowed; the last: {self.refusal(values)}"
        )

    def encode(self, values: Mapping[str, Any]) -> Vector:
        """Values to their place in [0, 1]^D."""
        return np.concatenate([each.encode(values[each.key]) for each in self.dimensions])

    def decode(self, unit_D: Vector) -> dict[str, Any]:
        """The configuration at a place in [0, 1]^D, allowed or not (see `refusal`)."""
        ends = list(itertools.accumulate(each.width for each in self.dimensions))
        parts = np.split(np.asarray(unit_D, float), ends[:-1])
        return {each.key: each.decode(p) for each, p in zip(self.dimensions, parts, strict=True)}

    def config(self, values: Mapping[str, Any]) -> Config:
        """The raygen Config of a trial. Raises ConfigError where it refuses the combination."""
        config = Config.parse(self.base.dump(), values)
        if isinstance(config.model, SuperresConfig):
            why = "a stage of super-resolution is not searched; search the model under it"
            raise ConfigError(f"model.kind: {why}", "model.kind")
        return config

    def refusal(self, values: Mapping[str, Any]) -> str | None:
        """Why these values are not to be trained, as far as it is known without running."""
        try:
            config = self.config(values)
        except ConfigError as error:
            return str(error)
        most = self.constraints.parameters
        if most is not None and (count := self.parameters(config)) > most:
            return f"constraints.parameters: {count:,} of both networks are more than {most:,.0f}"
        return None

    def parameters(self, config: Config, classes: int = 4) -> int:
        """Trained scalars of both networks, counted on the meta device."""
        key = config.model.model_dump_json() + config.data.model_dump_json()
        if key not in self._parameters:
            shape = (config.model, config.data, classes, config.conditions)
            with torch.device("meta"), _Undrawn():
                networks = build_generator(*shape), build_critic(*shape)
            self._parameters[key] = sum(map(parameter_count, networks))
        return self._parameters[key]

    def better(self, one: float, other: float) -> bool:
        """Whether a figure is better than another."""
        return one < other if self.mode == "min" else one > other

    def _check(self) -> None:
        """Tries each end of each range beside every mixture of options. Raises ConfigError."""
        choices = [each for each in self.dimensions if isinstance(each, Choice)]
        ranges = [each for each in self.dimensions if not isinstance(each, Choice)]
        middle = {each.key: each.middle for each in self.dimensions}
        ends: list[str | None] = []
        for options in itertools.islice(itertools.product(*(c.options for c in choices)), MIXTURES):
            mixture = dict(zip((c.key for c in choices), options, strict=True))
            tried = [{each.key: end} for each in ranges for end in each.corners]
            for change in tried or [{}]:
                self._try(middle | mixture | change, mixture)
            # If the smallest is too large, nothing is small enough.
            for end in (0, -1):
                extreme = {each.key: each.corners[end] for each in ranges}
                ends.append(self.refusal(middle | mixture | extreme))
        if all(ends):
            raise ConfigError(f"space: neither end of it is allowed; {ends[0]}", "constraints")

    def _try(self, values: Mapping[str, Any], mixture: Mapping[str, Any]) -> None:
        try:
            self.config(values)
        except ConfigError as error:
            beside = ", ".join(f"{k}={v}" for k, v in mixture.items() if k != error.key)
            where = f" (with {beside})" if beside else ""
            at = "space." if str(error).startswith(error.key) else "space: "
            raise ConfigError(f"{at}{error}{where}", error.key) from None


@dataclass(frozen=True)
class Allowed:
    """A space as a picker sees it: whatever it asks for, it gets what may be trained."""

    space: Space

    def sample(self, rng: np.random.Generator) -> dict[str, Any]:
        """A configuration drawn as the space says."""
        return self.space.sample(rng)

    def encode(self, values: Mapping[str, Any]) -> Vector:
        """Values to their place in [0, 1]^D."""
        return self.space.encode(values)

    def decode(self, unit_D: Vector) -> dict[str, Any]:
        """The configuration at a place; where that is not allowed, one near it, always the same."""
        centre_D = np.asarray(unit_D, float)
        rng = np.random.default_rng(np.round(centre_D * 1e6).astype(np.uint64))
        for spread in np.linspace(0, 1, NEAR):
            moved_D = centre_D + spread * rng.standard_normal(len(centre_D))
            values = self.space.decode(np.clip(moved_D, 0, 1))
            if self.space.refusal(values) is None:
                return values
        return self.space.sample(rng)


def _check_key(key: str) -> None:
    if key.startswith(_ALIKE):
        raise ConfigError(
            f"space.{key}: is the same for all trials, or they would not compare; fix it under "
            "overrides",
            key,
        )
