"""Height and width of clips, as data.size says them: 64 for a square, 64x96 for anything else.

sides("64x96")          # (64, 96)
written(64, 64)         # 64

Imports nothing, so that a process which only decodes can have it.
"""

from __future__ import annotations

Size = int | str
"""A side of a square, or HEIGHTxWIDTH; pixels."""


def sides(size: Size) -> tuple[int, int]:
    """Height and width. Raises ValueError where a text is not HEIGHTxWIDTH."""
    if isinstance(size, int):
        return size, size
    height, width = size.split("x")
    return int(height), int(width)


def written(height: int, width: int) -> Size:
    """The shortest way to say it: the inverse of `sides`."""
    return height if height == width else f"{height}x{width}"


def in_full(size: Size) -> str:
    """For people: 64x64, 64x96."""
    height, width = sides(size)
    return f"{height}x{width}"
