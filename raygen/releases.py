"""What a registry comes to: versions of a model, which of them is the best, and which is live.

Pure: raygen.registry keeps these events on storage, in one order for everybody. An event is JSON:

    published   name, digest, folder, figures     a version, or the same weights judged again
    ranked      name, by, limits                  what `best` means from here on
    pinned      name, digest                      live whatever is best; "" ends that
    rolled_back name, digest                      live again and pinned, as it was before
    yanked      name, digest, why                 never live again
    canary      name, digest, share               gets this share of what asks for the best

Each carries `at`, seconds since 1970, and `writer`.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from raygen.errors import ConfigError
from raygen.metrics import Evaluation

Event = Mapping[str, Any]

RANKED: Mapping[str, Literal["lower", "higher"]] = {
    "score": "lower",
    "frechet": "lower",
    "kernel": "lower",
    "warp_ratio": "lower",
    "memorised": "lower",
    "clip_ms": "lower",
    "class_accuracy": "higher",
    "precision": "higher",
    "recall": "higher",
    "density": "higher",
    "coverage": "higher",
}
"""Figures that a best can be told by. The others have their best at 1, and can be limits."""

_NUMBERS = {each.name for each in fields(Evaluation) if each.type in ("float", "int")}
FIGURES = tuple(sorted({*_NUMBERS, "score", "clip_ms"}))


@dataclass(frozen=True)
class Version:
    """Weights that were published under `name`."""

    name: str
    digest: str  # first digits of the SHA-256 of the weights
    folder: str  # SHA-256 of config.json, which holds that of the weights
    figures: Mapping[str, float]  # of FIGURES those that are known and finite
    at: float  # seconds since 1970


@dataclass(frozen=True)
class Limit:
    """A figure and its least or most: `Limit.parse("clip_ms<=200")`."""

    figure: str
    least: bool
    bound: float

    @classmethod
    def parse(cls, text: str) -> Limit:
        """`FIGURE<=NUMBER` or `FIGURE>=NUMBER`. Raises ConfigError."""
        for sign in ("<=", ">="):
            figure, found, number = text.partition(sign)
            if found:
                try:
                    return cls(known(figure.strip(), FIGURES), sign == ">=", float(number))
                except ValueError:
                    break
        raise ConfigError(f"{text!r} is no limit; write one as clip_ms<=200", "limit")

    def holds(self, figures: Mapping[str, float]) -> bool:
        """Whether the figure is known and within the limit."""
        value = figures.get(self.figure)
        return value is not None and (value >= self.bound if self.least else value <= self.bound)

    def __str__(self) -> str:
        return f"{self.figure}{'>=' if self.least else '<='}{self.bound:g}"


@dataclass
class Shelf:
    """One model of a registry: its versions and what is live."""

    name: str
    versions: dict[str, Version] = field(default_factory=dict)  # by digest, oldest first
    yanked: dict[str, str] = field(default_factory=dict)  # digest: why
    by: str = "score"
    limits: tuple[Limit, ...] = ()
    pinned: str = ""
    canary: str = ""
    share: float = 0.0  # of requests for the best that the canary gets, 0 to 1
    history: list[str] = field(default_factory=list)  # digests as they went live; the last is

    @property
    def best(self) -> Version | None:
        """The best by `by` of what meets the limits; where none was judged, the newest of those."""
        candidates = [
            version
            for version in self.versions.values()
            if version.digest not in self.yanked
            and all(limit.holds(version.figures) for limit in self.limits)
        ]
        judged = [version for version in candidates if self.by in version.figures]
        if not judged:
            return max(candidates, key=lambda version: version.at, default=None)
        sign = 1 if RANKED[self.by] == "lower" else -1
        # Of equals the older: a change that gains nothing is none.
        return min(judged, key=lambda version: (sign * version.figures[self.by], version.at))

    @property
    def live(self) -> Version | None:
        """What is to be served: the pinned version, or else the best."""
        return self.versions[self.pinned] if self.pinned else self.best

    @property
    def limit_ms(self) -> float:
        """The longest that a clip may take, milliseconds."""
        bounds = [each.bound for each in self.limits if each.figure == "clip_ms"]
        return min(bounds, default=math.inf)

    @property
    def before(self) -> str | None:
        """The digest that a rollback makes live: the last one before that was not yanked since."""
        gone = {*self.yanked, *self.history[-1:]}
        return next((digest for digest in reversed(self.history) if digest not in gone), None)

    def find(self, digest: str) -> Version:
        """The version that `digest`, at least four of its digits, names. Raises ConfigError."""
        found = [version for name, version in self.versions.items() if name.startswith(digest)]
        if len(digest) >= 4 and len(found) == 1:
            return found[0]
        there = ", ".join(self.versions)
        raise ConfigError(f"no version {digest!r} of {self.name}; there are {there}", "digest")

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        live, best = self.live, self.best
        return {
            "name": self.name,
            "live": live and live.digest,
            "best": best and best.digest,
            "by": self.by,
            "limits": [str(limit) for limit in self.limits],
            "pinned": self.pinned or None,
            "canary": {"digest": self.canary, "share": self.share} if self.canary else None,
            "before": self.before,
            "versions": [
                asdict(version) | {"yanked": self.yanked.get(version.digest)}
                for version in self.versions.values()
            ],
        }

    def _settle(self) -> None:
        live = self.live
        if live is not None and self.history[-1:] != [live.digest]:
            self.history.append(live.digest)


class Shelves(Mapping[str, Shelf]):
    """All models of a registry by name, as its events leave them; the first came first."""

    def __init__(self, events: Sequence[Event] = ()) -> None:
        self._shelves: dict[str, Shelf] = {}
        for event in events:
            self.add(event)

    def __getitem__(self, name: str) -> Shelf:
        return self._shelves[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._shelves)

    def __len__(self) -> int:
        return len(self._shelves)

    def named(self, name: str) -> Shelf:
        """The model `name`; where it is empty, the only one. Raises ConfigError."""
        if not name and len(self) == 1:
            return next(iter(self.values()))
        if name in self:
            return self[name]
        there = ", ".join(self)
        if not name:
            raise ConfigError(f"the registry has several models: name one of {there}", "name")
        raise ConfigError(f"no model {name!r} in the registry; there are {there}", "name")

    def add(self, event: Event) -> None:
        """Takes the next event. Raises KeyError or ValueError where it is none."""
        name = event["name"]
        kind = event["event"]
        shelf = self._shelves.setdefault(name, Shelf(name))
        if kind == "published":
            values = {each.name: event[each.name] for each in fields(Version)}
            # Judged again it is the newest, at the end.
            shelf.versions.pop(event["digest"], None)
            shelf.versions[event["digest"]] = Version(**values)
        elif kind == "ranked":
            shelf.by, shelf.limits = event["by"], tuple(map(Limit.parse, event["limits"]))
        elif kind == "pinned":
            shelf.pinned = event["digest"]
        elif kind == "rolled_back":
            shelf.pinned = event["digest"]
            while shelf.history[-1] != shelf.pinned:
                shelf.history.pop()
        elif kind == "yanked":
            shelf.yanked[event["digest"]] = event["why"]
            shelf.pinned = "" if shelf.pinned == event["digest"] else shelf.pinned
            if shelf.canary == event["digest"]:
                shelf.canary, shelf.share = "", 0.0
        elif kind == "canary":
            shelf.canary, shelf.share = event["digest"], event["share"]
        else:
            raise ValueError(f"no event {kind!r}")
        shelf._settle()


def known(name: str, names: Sequence[str]) -> str:
    """`name`, which is one of `names`. Raises ConfigError with the nearest."""
    if name in names:
        return name
    close = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(names)}"
    raise ConfigError(f"no figure {name!r}; {hint}", "figure")


def figures_of(evaluation: Mapping[str, Any] | None, clip_ms: float) -> dict[str, float]:
    """Of FIGURES those that an export's evaluation knows and that are finite, and `clip_ms`."""
    found: dict[str, float] = {"clip_ms": clip_ms}
    if evaluation is not None:
        judged = Evaluation.from_dict(evaluation)
        found |= {name: float(getattr(judged, name)) for name in (*_NUMBERS, "score")}
    return {name: value for name, value in sorted(found.items()) if math.isfinite(value)}
