"""What one key of a search space may be: a range or a choice, and its place in a unit cube.

A dimension maps [0, 1]^width to its values: uniform numbers there draw values as the space says,
and a model of what works (the picker) sees distances as they matter: a learning rate's logarithm,
a choice as one coordinate an option.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from raygen.errors import ConfigError
from raygen.tree import nearest

Vector = npt.NDArray[np.float64]
KINDS = ("loguniform", "uniform", "int", "choice")


class Dimension(ABC):
    """One key; `width` coordinates in the unit cube."""

    key: str
    width: int = 1

    @property
    @abstractmethod
    def corners(self) -> tuple[Any, ...]:
        """Values that Config must take: both ends, or all options."""

    @property
    @abstractmethod
    def middle(self) -> Any:
        """A value to hold while others are tried."""

    @abstractmethod
    def encode(self, value: Any) -> Vector:
        """A value's coordinates [width], each in [0, 1]; of a value outside, of the nearest."""

    @abstractmethod
    def decode(self, unit: Vector) -> Any:
        """The value at coordinates [width] in [0, 1], in plain JSON types."""


@dataclass(frozen=True)
class Range(Dimension):
    """A real number, uniform in itself or in its logarithm."""

    key: str
    low: float
    high: float
    log: bool

    @property
    def corners(self) -> tuple[float, ...]:
        """Both ends."""
        return self.low, self.high

    @property
    def middle(self) -> float:
        """Half way, in the logarithm where that is what is uniform."""
        return self.decode(np.array([0.5]))

    def encode(self, value: Any) -> Vector:
        """The share of the way from the lower end to the upper."""
        low, high, at = (self._scaled(v) for v in (self.low, self.high, value))
        return np.array([min(1.0, max(0.0, (at - low) / (high - low)))])

    def decode(self, unit: Vector) -> float:
        """Rounded to six digits: the same configuration has the same text."""
        low, high = self._scaled(self.low), self._scaled(self.high)
        at = low + float(unit[0]) * (high - low)
        return min(self.high, max(self.low, float(f"{math.exp(at) if self.log else at:.6g}")))

    def _scaled(self, value: float) -> float:
        return math.log(value) if self.log else float(value)


@dataclass(frozen=True)
class Whole(Dimension):
    """An integer from `low` to `high`, in steps of `step`."""

    key: str
    low: int
    high: int
    step: int = 1

    @property
    def count(self) -> int:
        """How many values there are."""
        return (self.high - self.low) // self.step + 1

    @property
    def corners(self) -> tuple[int, ...]:
        """The least and the greatest."""
        return self.low, self.low + (self.count - 1) * self.step

    @property
    def middle(self) -> int:
        """The value in the middle."""
        return self.decode(np.array([0.5]))

    def encode(self, value: Any) -> Vector:
        """The middle of the value's cell."""
        cell = min(self.count - 1, max(0, round((value - self.low) / self.step)))
        return np.array([(cell + 0.5) / self.count])

    def decode(self, unit: Vector) -> int:
        """Cells of equal width."""
        return self.low + min(self.count - 1, int(unit[0] * self.count)) * self.step


@dataclass(frozen=True)
class Choice(Dimension):
    """One of some options, no two of which are nearer than others: a coordinate each."""

    key: str
    options: tuple[Any, ...]

    @property
    def width(self) -> int:  # type: ignore[override]
        """As many coordinates as options."""
        return len(self.options)

    @property
    def corners(self) -> tuple[Any, ...]:
        """All of them."""
        return self.options

    @property
    def middle(self) -> Any:
        """The first."""
        return self.options[0]

    def encode(self, value: Any) -> Vector:
        """1 at the option, 0 elsewhere."""
        return np.array([float(option == value) for option in self.options])

    def decode(self, unit: Vector) -> Any:
        """The option of the greatest coordinate."""
        return self.options[int(np.argmax(unit))]


def dimension(key: str, written: Any) -> Dimension:
    """What `{loguniform: [1.0e-4, 1.0e-2]}` and the like mean. Raises ConfigError naming `key`."""
    if not isinstance(written, dict) or not written:
        raise ConfigError(
            f"space.{key}: write a range, as in {{loguniform: [1.0e-4, 1.0e-2]}}, or "
            f"{{choice: [a, b]}} (got {written!r})",
            key,
        )
    kind, *rest = written
    if kind not in KINDS:
        hint = nearest(str(kind), KINDS)
        raise ConfigError(f"space.{key}: no {kind!r}{hint}; there are {', '.join(KINDS)}", key)
    if rest and (kind, rest) != ("int", ["step"]):
        raise ConfigError(f"space.{key}: {kind} takes no {rest[0]!r}", key)
    if kind == "choice":
        return _choice(key, written[kind])
    low, high = _ends(key, kind, written[kind])
    if kind == "int":
        step = written.get("step", 1)
        if not _whole(low) or not _whole(high) or not _whole(step) or step < 1:
            raise ConfigError(f"space.{key}: int takes whole numbers (got {written!r})", key)
        if low + step > high:
            raise ConfigError(f"space.{key}: step {step} leaves {low} alone in the range", key)
        return Whole(key, int(low), int(high), int(step))
    if kind == "loguniform" and low <= 0:
        raise ConfigError(f"space.{key}: loguniform must begin above 0 (got {low:g})", key)
    return Range(key, float(low), float(high), kind == "loguniform")


def _ends(key: str, kind: str, ends: Any) -> tuple[float, float]:
    if not isinstance(ends, Sequence) or isinstance(ends, str) or len(ends) != 2:
        raise ConfigError(f"space.{key}: {kind} takes [lowest, highest] (got {ends!r})", key)
    low, high = (_number(key, end) for end in ends)
    if low == high:
        raise ConfigError(
            f"space.{key}: the range from {low:g} to {high:g} is empty; fix it under overrides "
            f"as {key}: {low:g}",
            key,
        )
    if low > high:
        raise ConfigError(
            f"space.{key}: the lowest, {low:g}, is above the highest, {high:g}; "
            f"write {kind}: [{high:g}, {low:g}]",
            key,
        )
    return low, high


def _number(key: str, end: Any) -> float:
    if isinstance(end, str):  # YAML 1.1 reads 1e-4, without a dot, as a string.
        try:
            end = float(end)
        except ValueError:
            raise ConfigError(f"space.{key}: {end!r} is not a number", key) from None
    if isinstance(end, bool) or not isinstance(end, int | float) or not math.isfinite(end):
        raise ConfigError(f"space.{key}: {end!r} is not a number", key)
    return end


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _choice(key: str, options: Any) -> Choice:
    if not isinstance(options, list) or not options:
        raise ConfigError(f"space.{key}: choice takes a list of options (got {options!r})", key)
    if len({repr(option) for option in options}) < len(options):
        raise ConfigError(f"space.{key}: an option twice in {options!r}", key)
    if len(options) == 1:
        raise ConfigError(
            f"space.{key}: a single option is no choice; fix it under overrides "
            f"as {key}: {options[0]}",
            key,
        )
    return Choice(key, tuple(options))
