"""Videos that are not worth decoding, and where their shots begin, seen at a tiny size.

    raygen data scan s3://bucket/clips -o cat.parquet --drop-duplicates --drop-static --drop-black

Each video is decoded once at RATE frames a second and SIZE pixels. What is kept of that is small
enough to compare millions: a perceptual hash of its greys, motion, brightness, times of cuts.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from raygen.data import decode
from raygen.data.decode import Clip

SIZE, RATE = 32, 4.0  # pixels, frames a second
STATIC = 1.0  # grey levels; grain and compression stay below
BLACK = 24.0  # grey levels
# A cut changes the picture, its colours, and both far more than the motion around it does.
CUT_LEVELS, CUT_COLOURS, CUT_RATIO = 12.0, 0.35, 3.0
CUT_BINS = 8  # of a channel's histogram
# Two halves of a hash: what stays in the picture, and what moves. Bits that may differ of each.
HALF_BITS, STAYS, MOVES = 256, 20, 40
FAINT = 1.0  # grey levels of motion below which the second half would be noise
SEGMENTS = 8  # of the video's time
BANDS = 16  # of the first half: near duplicates agree in at least one
WINDOW = 64  # rows of a band compared with each other
DURATION_SLACK = 0.05, 0.5  # of the longer one, and seconds
DUPLICATE = "is a near duplicate of"
STATIC_REASON, BLACK_REASON = "hardly moves", "is black"
REASONS = (DUPLICATE, STATIC_REASON, BLACK_REASON)

Greys = NDArray[np.float32]


@dataclass(frozen=True)
class Screens:
    """What a scan is asked to look for; nothing unless said."""

    duplicates: bool = False
    static: bool = False
    black: bool = False
    cuts: bool = False

    @property
    def drops(self) -> bool:
        """Whether rows may be refused."""
        return self.duplicates or self.static or self.black

    def __bool__(self) -> bool:
        return self.drops or self.cuts


NO_SCREENS = Screens()


@dataclass(frozen=True)
class Look:
    """What one video looks like.

    motion: grey levels by which the liveliest part of the picture changes from frame to frame;
    light: grey level that 1 % of all pixels exceed; look: perceptual hash of 2 x HALF_BITS; shots:
    seconds at which another shot begins.
    """

    motion: float
    light: float
    look: bytes
    shots: list[float]


def look(source: decode.Source, seconds: float, fps: float, limits: decode.Limits) -> Look:
    """Looks at the whole of a video of `seconds` and `fps`. Raises DataError and StorageError."""
    clip_THWC = decode.decode_all(source, fps=RATE, size=SIZE, seconds=seconds, limits=limits)
    grey_THW = clip_THWC.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
    return Look(
        motion=_motion(grey_THW),
        light=float(np.percentile(grey_THW, 99)),
        look=_hash(grey_THW),
        shots=[_exactly(source, at, fps, limits) for at in _cuts(clip_THWC)],
    )


def judge(path: Path, screens: Screens) -> dict[int, str]:
    """Row to reason, for each row of a scan's Parquet file that `screens` refuse."""
    columns = ["status", "motion", "light", "look", "duration", "width", "height", "bytes"]
    table = pq.read_table(path, columns=columns)
    seen = pc.and_(pc.equal(table["status"], "ok"), pc.is_valid(table["motion"]))
    rows = np.flatnonzero(seen.to_numpy())
    table = table.take(rows)
    refused: dict[int, str] = {}
    if screens.static:
        refused |= dict.fromkeys(rows[table["motion"].to_numpy() < STATIC], STATIC_REASON)
    if screens.black:
        refused |= dict.fromkeys(rows[table["light"].to_numpy() < BLACK], BLACK_REASON)
    if screens.duplicates:
        left = np.flatnonzero([row not in refused for row in rows])
        uris = pq.read_table(path, columns=["uri"])["uri"]
        for twin, kept in _duplicates(table.take(left)).items():
            reason = f"{DUPLICATE} {uris[int(rows[left[kept]])].as_py()}"
            refused[int(rows[left[twin]])] = reason
    return {int(row): reason for row, reason in refused.items()}


def _motion(grey_THW: Greys) -> float:
    if len(grey_THW) < 2:
        return 0.0
    # Of the mean over the whole picture, a small thing that moves would be nothing; within a block,
    # grain is next to nothing.
    change_T8484 = np.diff(grey_THW, axis=0).reshape(-1, 8, SIZE // 8, 8, SIZE // 8)
    return float(np.abs(change_T8484.mean((2, 4))).max((1, 2)).mean())


def _hash(grey_THW: Greys) -> bytes:
    """Signs of random projections: the share of bits that differ is the angle between two videos.

    What stays is the mean picture; what moves, the rest, coarser, in SEGMENTS of time.
    """
    times = ((np.arange(SEGMENTS) + 0.5) / SEGMENTS * len(grey_THW)).astype(int)
    mean_HW = grey_THW.mean(0)
    moving_THW = _shrunk(grey_THW[times] - grey_THW[times].mean(0), 8)
    stays = _signs(_shrunk(mean_HW[None] - mean_HW.mean(), 16), 0)
    moves = _signs(moving_THW if moving_THW.std() > FAINT else np.zeros_like(moving_THW), 1)
    return stays + moves


def _shrunk(picture_THW: Greys, size: int) -> Greys:
    scale = SIZE // size
    blocks = picture_THW.reshape(len(picture_THW), size, scale, size, scale)
    return np.asarray(blocks.mean((2, 4)), np.float32)


def _signs(values: Greys, seed: int) -> bytes:
    return np.packbits(_projections(values.size, seed) @ values.ravel() > 0).tobytes()


@functools.cache
def _projections(size: int, seed: int) -> Greys:
    return np.random.default_rng(seed).standard_normal((HALF_BITS, size), np.float32)


def _cuts(clip_THWC: Clip) -> list[int]:
    """Frames that begin another shot."""
    if len(clip_THWC) < 2:
        return []
    change_T = np.abs(np.diff(clip_THWC.astype(np.float32), axis=0)).mean((1, 2, 3))
    bins_T3K = np.stack(
        [
            [np.bincount(c.ravel() // (256 // CUT_BINS), minlength=CUT_BINS) for c in f.T]
            for f in clip_THWC
        ]
    )
    colours_T = np.abs(np.diff(bins_T3K, axis=0)).sum((1, 2)) / (3 * SIZE * SIZE)
    cuts = []
    for k in range(len(change_T)):
        around = np.concatenate([change_T[max(0, k - 4) : k], change_T[k + 1 : k + 5]])
        usual = float(np.median(around)) if len(around) else 0.0
        if change_T[k] > max(CUT_LEVELS, CUT_RATIO * usual) and colours_T[k] > CUT_COLOURS:
            cuts.append(k + 1)
    return cuts


def _exactly(source: decode.Source, frame: int, fps: float, limits: decode.Limits) -> float:
    """The second at which the shot begins that was first seen in `frame` at RATE.

    Between the two frames at RATE, that is where the picture changes most at the video's own rate.
    """
    begin, rate = (frame - 1) / RATE, min(max(fps, RATE), 60.0)
    count = int(rate / RATE) + 1
    clip_THWC = decode.decode(
        source, start=begin, frames=count + 1, fps=rate, size=SIZE, limits=limits
    )
    change_T = np.abs(np.diff(clip_THWC.astype(np.float32), axis=0)).mean((1, 2, 3))
    return float(begin + (int(change_T.argmax()) + 1) / rate)


def _duplicates(table: pa.Table) -> dict[int, int]:
    """Row to the larger row that it is a near duplicate of; that one is none itself."""
    twins: dict[int, set[int]] = defaultdict(set)
    for a, b in _pairs(table):
        twins[a].add(b)
        twins[b].add(a)
    pixels, size = (
        pc.multiply(table["width"], table["height"]).to_numpy(),
        table["bytes"].to_numpy(),
    )
    found: dict[int, int] = {}
    for row in sorted(twins, key=lambda row: (-pixels[row], -size[row], row)):
        if row not in found:
            found |= {twin: row for twin in twins[row] if twin not in found}
    return found


def _pairs(table: pa.Table) -> Iterator[tuple[int, int]]:
    if not len(table):
        return
    joined = b"".join(table["look"].to_pylist())
    words = np.frombuffer(joined, np.uint64).reshape(len(table), -1)
    bands = np.frombuffer(joined, np.uint16).reshape(len(table), -1)[:, :BANDS]
    half = HALF_BITS // 64
    seconds = table["duration"].to_numpy()
    for band in range(BANDS):
        # Within a band by what moves, so that of many the likeliest are compared.
        order = np.lexsort((*words[:, half:].T, bands[:, band]))
        for step in range(1, WINDOW):
            low, high = order[:-step], order[step:]
            near = bands[low, band] == bands[high, band]
            if not near.any():
                break
            low, high = low[near], high[near]
            differing = np.bitwise_count(words[low] ^ words[high])
            gap = np.abs(seconds[low] - seconds[high])
            share, slack = DURATION_SLACK
            same = (
                (differing[:, :half].sum(1) <= STAYS)
                & (differing[:, half:].sum(1) <= MOVES)
                & (gap <= share * np.maximum(seconds[low], seconds[high]) + slack)
            )
            yield from zip(low[same].tolist(), high[same].tolist(), strict=True)
