"""The plan's positions to decoded clips, with substitutes for the ones that cannot be decoded.

Knows neither torch nor Ray: a decode actor starts as fast as these imports.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from raygen.config import DataConfig
from raygen.data import decode, store
from raygen.data.cache import ClipCache
from raygen.data.catalog import Catalogue
from raygen.data.plan import Plan
from raygen.errors import DataError, StorageError

SUBSTITUTES = 32


class Decoder:
    """Positions to clips; holds the catalogue, the plan and a cache of short videos."""

    def __init__(self, catalogue: Catalogue, plan: Plan, config: DataConfig) -> None:
        self.table = catalogue.table
        classes = {name: i for i, name in enumerate(catalogue.classes)}
        self.labels = [classes[label] for label in self.table["label"].to_pylist()]
        self.plan = plan
        self.config = config
        self.cache = ClipCache(config.cache_mb << 20)

    def __call__(self, batch: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Column `position` to columns clip, label, planned and reason, as `row` gives them."""
        rows = [self.row(int(position)) for position in batch["position"]]
        clips, labels, planned, reasons = zip(*rows, strict=True)
        return {
            "clip": np.stack(clips),
            "label": np.array(labels, np.int64),
            "planned": np.array(planned, np.int64),
            "reason": np.array(reasons, dtype=object),
        }

    def row(self, position: int) -> tuple[decode.Clip, int, int, str]:
        """(clip, its label, the row that was planned, why that one was refused or "")."""
        planned, refusal = self.plan.span(position).index, ""
        for attempt in range(SUBSTITUTES):
            span = self.plan.span(position + attempt)
            try:
                return self.clip(span.index, span.start), self.labels[span.index], planned, refusal
            except (DataError, StorageError) as error:
                refusal = refusal or str(error)
        raise DataError(
            f"{SUBSTITUTES} clips in a row cannot be decoded, the first: "
            f"{self.table['uri'][planned].as_py()} {refusal}"
        )

    def clip(self, index: int, start: float) -> decode.Clip:
        """The clip of row `index` that begins at `start` in [0, 1) of its spare time.

        Raises DataError or StorageError.
        """
        config = self.config
        uri, seconds = (self.table[name][index].as_py() for name in ("uri", "duration"))
        total = decode.frame_count(seconds, config.fps)
        first = int(start * (total - config.frames + 1))
        if total * config.size * config.size * 3 > self.cache.limit // 8:
            return decode.decode(
                store.read_bytes(uri),
                start=first / config.fps,
                frames=config.frames,
                fps=config.fps,
                size=config.size,
            )
        whole = self.cache.get(
            uri,
            lambda: decode.decode_all(
                store.read_bytes(uri), fps=config.fps, size=config.size, seconds=seconds
            ),
        )
        if len(whole) < config.frames:
            raise DataError(f"holds {len(whole)} frames of the {total} that its header promises")
        first = min(first, len(whole) - config.frames)
        return whole[first : first + config.frames]
