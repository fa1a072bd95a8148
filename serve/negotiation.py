"""What a client would rather have: `Accept` (RFC 9110, section 12.5.1) and `Prefer` (RFC 7240)."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from typing import NamedTuple

from raygen import video

_WAIT = re.compile(r"wait\s*=\s*\"?(\d{1,6})\"?")


class Preference(NamedTuple):
    """Of a client that asks for work: an answer before it is done, and how long it would wait."""

    respond_async: bool = False
    wait_s: int | None = None

    def __str__(self) -> str:
        """What is told to it as `Preference-Applied`; empty where it had none."""
        if self.respond_async:
            return "respond-async"
        return "" if self.wait_s is None else f"wait={self.wait_s}"


def preference(header: str | None) -> Preference:
    """What `Prefer` says; what is not known is left out, as it asks for."""
    tokens = [token.split(";")[0].strip().lower() for token in (header or "").split(",")]
    waits = [match[1] for token in tokens if (match := _WAIT.fullmatch(token))]
    return Preference("respond-async" in tokens, int(waits[0]) if waits else None)


@functools.lru_cache(256)
def accepted(header: str | None, known: Sequence[str] = tuple(video.MEDIA_TYPES)) -> str | None:
    """Of the `known` formats the one that `Accept` weighs highest, the first of equals; or None.

    The most specific range that names a format weighs it. AV1 must be named by its codec.
    """
    if not header or not header.strip():
        return known[0]
    ranges = [_range(part) for part in header.split(",")]

    def weight(format: str) -> float:
        essence = video.MEDIA_TYPES[format].split(";")[0]
        major = essence.split("/")[0]
        for name in (essence, f"{major}/*", "*/*"):
            fits = [q for kind, av1, q in ranges if kind == name and av1 is (format == "av1")]
            if fits:
                return max(fits)
        return 0.0

    best = max(known, key=weight)
    return best if weight(best) > 0 else None


def _range(part: str) -> tuple[str, bool, float]:
    """One media range: its name, whether it names AV1, and its weight."""
    kind, *parameters = (piece.strip().lower() for piece in part.split(";"))
    weights = [p.removeprefix("q=") for p in parameters if p.startswith("q=")]
    av1 = any(p.startswith(("codecs=av01", 'codecs="av01')) for p in parameters)
    try:
        return kind, av1, float(weights[0]) if weights else 1.0
    except ValueError:
        return kind, av1, 0.0
