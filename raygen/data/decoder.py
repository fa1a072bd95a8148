"""Spans of the catalogue to decoded clips, by way of the cache and of the sandbox.

Knows neither torch nor Ray: a decode actor starts as fast as these imports.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raygen.config import DataConfig
from raygen.data import clipstore, grid
from raygen.data import plan as plans
from raygen.data.catalog import Catalogue
from raygen.data.clipstore import ClipStore
from raygen.data.known import Row
from raygen.data.plan import Span
from raygen.data.sandbox import Refusal, Request, Sandbox

_COLUMNS = ["uri", "etag", "offset", "bytes", "duration", "cuts", "width", "height"]


@dataclass(frozen=True)
class Decoded:
    """What some spans came to: columns of the clips that decoded, rows that did not, and why.

    columns: clip uint8 [n, T, H, W, 3], label int64 [n], position int64 [n], row int64 [n],
    fetch_s and decode_s float32 [n].
    """

    columns: dict[str, NDArray[Any]]
    refused: Mapping[int, str]


class Decoder:
    """Decodes clips of one catalogue; close it to end its child process.

    Fastest where the catalogue's table is one chunk: rows are looked up in each call.
    """

    def __init__(self, catalogue: Catalogue, config: DataConfig) -> None:
        self.videos = catalogue.table.select(_COLUMNS)
        self.labels = catalogue.labels()
        self.config = config
        self.sandbox = Sandbox(config)
        cache = config.cache
        self.kept = ClipStore(cache.uri, int(cache.gb * 1e9)) if cache.uri else None

    def decode(self, wanted: Mapping[int, Span]) -> Decoded:
        """The clips of the spans, each under its position.

        Raises AccessError where the storage as a whole is out of reach.
        """
        requests = self._requests(wanted.values())
        config = self.config
        shape = (len(wanted), config.frames, config.height, config.width, 3)
        clips = np.empty(shape, np.uint8)
        made = self._make(requests, clips)
        good = [i for i, result in enumerate(made) if not isinstance(result, str)]
        seconds = np.array([made[i] for i in good], np.float32).reshape(-1, 2)
        rows = np.array([span.row for span in wanted.values()], np.int64)
        refused = {
            int(row): result
            for row, result in zip(rows, made, strict=True)
            if isinstance(result, str)
        }
        whole = len(good) == len(wanted)
        return Decoded(
            {
                "clip": clips if whole else clips[good],
                "label": self.labels[rows[good]].astype(np.int64),
                "position": np.array(list(wanted), np.int64)[good],
                "row": rows[good],
                "fetch_s": seconds[:, 0],
                "decode_s": seconds[:, 1],
            },
            refused,
        )

    def close(self) -> None:
        """Ends the child process, and writes out what it made for the cache."""
        self.sandbox.close()
        if self.kept is not None:
            self.kept.close()

    def _make(
        self, requests: Sequence[Request], clips: NDArray[np.uint8]
    ) -> list[tuple[float, float] | str]:
        """Fills `clips`; of each the seconds that fetching and decoding took, or why it failed."""
        if self.kept is None:
            return self._decode(requests, range(len(requests)), clips)
        config, began = self.config, time.monotonic()
        keys = []
        for r in requests:
            first = grid.first_of(r.start, r.low, r.high, config)
            keys.append(clipstore.key(r.uri, r.etag, r.offset, first, config, r.crop))
        found = self.kept.get_many(keys)
        each = (time.monotonic() - began) / max(1, len(found))
        for i, key in enumerate(keys):
            if key in found:
                clips[i] = found[key]
        missing = [i for i, key in enumerate(keys) if key not in found]
        made = self._decode([requests[i] for i in missing], missing, clips)
        for i, result in zip(missing, made, strict=True):
            if not isinstance(result, str):
                self.kept.put(keys[i], clips[i])
        results = dict(zip(missing, made, strict=True))
        return [results.get(i, (each, 0.0)) for i in range(len(requests))]

    def _decode(
        self, requests: Sequence[Request], places: Sequence[int], clips: NDArray[np.uint8]
    ) -> list[tuple[float, float] | str]:
        made: list[tuple[float, float] | str] = []
        for place, result in zip(places, self.sandbox.decode(requests), strict=True):
            if isinstance(result, Refusal):
                made.append(result.reason)
            else:
                clips[place] = result.clip_THWC
                made.append((result.fetch_s, result.decode_s))
        return made

    def _requests(self, spans: Collection[Span]) -> list[Request]:
        rows = pa.array([span.row for span in spans], pa.int64())
        videos = self.videos.take(rows).to_pylist()
        return [self._request(*each) for each in zip(spans, videos, strict=True)]

    def _request(self, span: Span, video: Row) -> Request:
        clip_seconds = self.config.frames / self.config.fps
        cuts, seconds = video["cuts"] or (), video["duration"]
        low, high, start = plans.shot(cuts, seconds, clip_seconds, span.start)
        if self.kept is not None:
            # Only clips that begin on the cache's grid are ever met again.
            start = grid.snap(start, low, high, self.config)
        # A square in a square has no room to move in, and the sandbox keeps what is cut at the
        # centre.
        square = self.config.height == self.config.width and video["width"] == video["height"]
        crop = plans.CENTRE if square else span.crop
        uri, etag, offset, size = (video[name] for name in ("uri", "etag", "offset", "bytes"))
        return Request(uri, etag, offset, size, seconds, start, crop, low, high)
