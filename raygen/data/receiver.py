"""A worker's end of the stream: its share of each global batch, ready before it is needed."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
import torch
from ray.data.block import BlockAccessor
from ray.exceptions import RayTaskError
from torch import Tensor

from raygen.data.dealing import Piece
from raygen.data.stream import Share
from raygen.errors import RaygenError


@dataclass(frozen=True)
class Batch:
    """One worker's share of a global batch.

    clips: uint8 [B, T, H, W, 3], in pinned memory where there is a GPU; labels and rows (of the
    catalogue): int64 [B]. `cursor` is the position after the last that the global batch consumed,
    `refused` rows newly found to be bad. fetch_s and decode_s: seconds it cost to make.
    """

    clips: Tensor
    labels: Tensor
    rows: Tensor
    cursor: int
    refused: Mapping[int, str]
    fetch_s: float
    decode_s: float


@dataclass
class _Totals:
    began: float
    clips: int = 0
    fetch_s: float = 0.0
    decode_s: float = 0.0
    waited_s: float = 0.0


class Receiver:
    """Iterates over this worker's batches without end; a thread fetches `prefetch` ahead.

    `waited_s` is how long `next` has kept the trainer waiting so far. Raises what ended the
    stream, a RaygenError where a user can mend it.
    """

    def __init__(self, dealer: Any, rank: int, prefetch: int) -> None:
        self.waited_s = 0.0
        self._since = _Totals(time.monotonic())
        self._ready: queue.Queue[Batch | Exception] = queue.Queue(prefetch)
        self.dealer, self._rank = dealer, rank
        self._pinned = torch.cuda.is_available()
        threading.Thread(target=self._receive, daemon=True).start()

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        asked = time.monotonic()
        batch = self._ready.get()
        self.waited_s += time.monotonic() - asked
        if isinstance(batch, Exception):
            raise batch
        self._since.clips += len(batch.rows)
        self._since.fetch_s += batch.fetch_s
        self._since.decode_s += batch.decode_s
        return batch

    def figures(self) -> dict[str, float]:
        """Where the time went since the last call: milliseconds to fetch and to decode a clip, and
        the share of time in which the trainer waited for clips.
        """
        then, now = self._since, time.monotonic()
        self._since = _Totals(now, waited_s=self.waited_s)
        clips = max(1, then.clips)
        return {
            "data/fetch_ms": 1000 * then.fetch_s / clips,
            "data/decode_ms": 1000 * then.decode_s / clips,
            "data/waiting": (self.waited_s - then.waited_s) / (now - then.began),
        }

    def _receive(self) -> None:
        number = 0
        while True:
            try:
                share = ray.get(self.dealer.share.remote(self._rank, number))
                self._ready.put(_assemble(share, self._pinned))
            except RayTaskError as error:
                cause = error.cause
                self._ready.put(cause if isinstance(cause, RaygenError) else error)
                return
            except Exception as error:
                self._ready.put(error)
                return
            number += 1


def _assemble(share: Share, pinned: bool) -> Batch:
    blocks = ray.get([piece.ref for piece in share.pieces])
    columns = [_rows(block, piece) for block, piece in zip(blocks, share.pieces, strict=True)]
    clips = [part["clip"] for part in columns]
    count = sum(map(len, clips))
    # One copy, out of the object store, whose block is free again as soon as it is made.
    out = torch.empty((count, *clips[0].shape[1:]), dtype=torch.uint8, pin_memory=pinned)
    np.concatenate(clips, out=out.numpy())
    labels, rows, fetch_s, decode_s = (
        np.concatenate([part[name] for part in columns])
        for name in ("label", "row", "fetch_s", "decode_s")
    )
    return Batch(
        out,
        torch.from_numpy(labels),
        torch.from_numpy(rows),
        share.cursor,
        share.refused,
        float(fetch_s.sum()),
        float(decode_s.sum()),
    )


def _rows(block: Any, piece: Piece) -> dict[str, np.ndarray[Any, Any]]:
    """The clips of `piece.positions`, which follow one another in the block."""
    columns: dict[str, np.ndarray[Any, Any]] = BlockAccessor.for_block(block).to_batch_format(
        "numpy"
    )
    first = int(np.searchsorted(columns["position"], piece.positions[0]))
    part = {name: values[first : first + len(piece.positions)] for name, values in columns.items()}
    if part["position"].tolist() != list(piece.positions):
        # A lost block that was decoded once more, and came out otherwise.
        raise RuntimeError("a block of clips changed after it was dealt")
    return part
