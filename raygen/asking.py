"""What the command line asks of an export, as clips and the names of what they show.

clips_NTHWC, names = drawn(generator, Asked(classes=["wave"]), seed=7, count=4)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from raygen import video
from raygen.errors import ConfigError
from raygen.export import Generator

_Item = TypeVar("_Item")


@dataclass(frozen=True)
class Asked:
    """Classes and texts, any number of each; a first frame uint8 [H, W, 3]; a vector; when."""

    classes: Sequence[str] = ()
    texts: Sequence[str] = ()
    image: npt.NDArray[np.uint8] | None = None
    vector: Sequence[float] | None = None
    times: Sequence[float] | None = None


def drawn(
    generator: Generator, asked: Asked, seed: int, count: int, truncation: float
) -> tuple[video.Clips, list[str]]:
    """`count` clips, their seeds counting up from `seed`, the classes and texts in turn.

    Where neither class nor text is said: all classes in turn, if the model knows any.
    """
    labels = [generator.class_id(name) for name in asked.classes]
    if not labels and not asked.texts and "class" in generator.conditions.kinds:
        labels = list(range(len(generator.classes)))
    of_labels, of_texts = _in_turn(labels, count), _in_turn(asked.texts, count)
    clips = generator.generate(
        range(seed, seed + count),
        of_labels,
        text=of_texts if asked.texts else None,
        image=[asked.image] * count,
        vector=[asked.vector] * count,
        truncation=truncation,
        times=asked.times,
    )
    names = [_name(generator, *pair) for pair in zip(of_labels, of_texts, strict=True)]
    return clips, names


def interpolated(
    generator: Generator, asked: Asked, seed: int, count: int, truncation: float
) -> tuple[video.Clips, list[str]]:
    """`count` clips between two classes or texts of one seed, or else from `seed` to the next."""
    for words, option in ((asked.classes, "--class"), (asked.texts, "--text")):
        if len(words) > 2:
            raise ConfigError(f"--interpolate leads from one {option} to another, not {len(words)}")
    ids = [generator.class_id(name) for name in asked.classes]
    if not ids and not asked.texts and "class" in generator.conditions.kinds:
        ids = [0]
    labels, texts = _ends(ids), _ends(asked.texts)
    between = len(asked.classes) == 2 or len(asked.texts) == 2
    clips = generator.interpolate(
        count,
        (seed, seed if between else seed + 1),
        labels,
        text=texts if asked.texts else None,
        image=asked.image,
        vector=None if asked.vector is None else (asked.vector, asked.vector),
        truncation=truncation,
        times=asked.times,
    )
    first, last = (_name(generator, *pair) for pair in zip(labels, texts, strict=True))
    return clips, [first if k < count / 2 else last for k in range(count)]


def read_vector(path: str) -> list[float]:
    """The numbers of a .npy file. Raises ConfigError."""
    try:
        values = np.load(path, allow_pickle=False)
        numbers: list[float] = values.astype(np.float32).reshape(-1).tolist()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "no .npy of numbers"
        raise ConfigError(f"cannot read {path}: {reason}", "vector") from None
    return numbers


def _in_turn(items: Sequence[_Item], count: int) -> list[_Item | None]:
    return [items[k % len(items)] if items else None for k in range(count)]


def _ends(items: Sequence[_Item]) -> tuple[_Item | None, _Item | None]:
    return (items[0], items[-1]) if items else (None, None)


def _name(generator: Generator, label: int | None, text: str | None) -> str:
    said = ([] if label is None else [generator.classes[label]]) + ([text] if text else [])
    return ", ".join(said) or "anything"
