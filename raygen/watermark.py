"""An invisible watermark in clips: which model drew them, and that one did.

    marked_THWC = mark(clip_THWC, generator.digest)
    found = detect(marked_THWC)         # Found(present=True, digest="0f3a91c2", ...)

    raygen verify clip.mp4

Dither modulation (Chen and Wornell 2001, "Quantization Index Modulation", section V), of the kind
that spreads a bit over many coefficients: the mean luma of GROUP frames is projected onto BITS
orthonormal directions in the low band of its DCT, and each projection is moved to the nearest
point of one of two interleaved lattices. What the clip shows is no noise to the detector, which
needs neither the clip nor the model; 32 pilot bits, always the same, say that a mark is there, and
32 bits carry the first eight digits of the weights' digest. Frequencies are counted per frame, not
per pixel, so the mark survives a change of size.

It is no proof: who knows this file can wash a mark out or forge one. Cropping removes it.
Shapes: T frames, H, W, C = 3, uint8; G groups, F coefficients, K = BITS.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Clip = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.floating[Any]]

DIGITS = 8  # of the digest, hexadecimal
PILOTS = 32
BITS = PILOTS + 4 * DIGITS
GROUP = 8  # frames that are moved alike
BAND = (4.0, 11.0)  # radius in half periods a frame
STEP = 64.0  # between lattice points, where a frame has REFERENCE**2 pixels
REFERENCE = 64.0
THRESHOLD = 4.8  # standard deviations of the pilots' sum over what chance gives
SMALLEST = 12  # pixels that hold the band
FACTORS = (1, 2, 3, 4, 6, 8)  # by which a clip may have been enlarged
ROUNDS = 4  # of correction where pixels are saturated

_LUMA = np.array([0.299, 0.587, 0.114], np.float32)


@dataclass(frozen=True)
class Found:
    """What a clip says of its origin."""

    present: bool
    digest: str  # the first DIGITS digits of the model's, where present; else empty
    score: float  # of the pilots, in standard deviations; sqrt(PILOTS) is the most
    pilots: float  # share of the pilot bits that are right: what to expect of the digest's
    certainty: tuple[float, ...]  # of each bit of the digest, 0 to 1


def mark(clip_THWC: Clip, digest: str) -> Clip:
    """The clip with `digest`, at least DIGITS hexadecimal digits, in it.

    It changes by about 41 dB PSNR whatever it shows; one of fewer than SMALLEST pixels stays.
    """
    T, H, W, _ = clip_THWC.shape
    if min(H, W) < SMALLEST:
        return clip_THWC
    shift_K = _shift(_payload(digest))
    marked_THWC = np.empty_like(clip_THWC)
    for start in range(0, T, GROUP):
        frames_THWC = clip_THWC[start : start + GROUP]
        y_K = _project(_luma(frames_THWC).mean(0)[None])[0]
        goal_K = (np.round((y_K - shift_K) / STEP) * STEP + shift_K).astype(np.float32)
        moved_K = goal_K - y_K
        for _ in range(ROUNDS):
            pattern_HW = np.rint(_pattern(moved_K, H, W)).astype(np.int16)
            wide_THWC = frames_THWC + pattern_HW[None, :, :, None]
            out_THWC = np.clip(wide_THWC, 0, 255).astype(np.uint8)
            if wide_THWC.min() >= 0 and wide_THWC.max() <= 255:
                break
            missing_K = goal_K - _project(_luma(out_THWC).mean(0)[None])[0]
            moved_K = moved_K + missing_K
        marked_THWC[start : start + GROUP] = out_THWC
    return marked_THWC


def detect(clip_THWC: Clip) -> Found:
    """Whether there is a mark, in a clip as it was drawn, re-encoded or enlarged.

    It may be cut in time, where GROUP frames are left that were marked together.
    """
    T, H, W, _ = clip_THWC.shape
    luma_THW = _luma(clip_THWC)
    best = Found(False, "", 0.0, 0.0, ())
    for factor in FACTORS:
        h, w = H // factor, W // factor
        if min(h, w) < SMALLEST:
            break
        cut_THW = luma_THW[:, : h * factor, : w * factor]
        small_Thw = cut_THW.reshape(T, h, factor, w, factor).mean((2, 4))
        y_TK = _project(small_Thw)
        for offset in range(min(GROUP, T)):
            found = _read(_means(y_TK, offset))
            best = max(best, found, key=lambda each: each.score)
    return best


def bit_accuracy(found: Found, digest: str) -> float:
    """Share of the digest's bits that were read right, 0 to 1; 0.5 is chance."""
    read = _payload(found.digest) if found.digest else np.zeros(4 * DIGITS, bool)
    return float(np.mean(read == _payload(digest)))


def _read(y_GK: Floats) -> Found:
    soft_K = np.cos(2 * np.pi * (y_GK - _dither()) / STEP).mean(0)
    pilots_K = soft_K[:PILOTS] * np.where(_pilots(), -1, 1)
    score = float(pilots_K.sum() / max(1e-9, math.sqrt(float((pilots_K**2).sum()))))
    bits = soft_K[PILOTS:] < 0
    present = score >= THRESHOLD
    number = int("".join("1" if bit else "0" for bit in bits), 2)
    return Found(
        present,
        f"{number:0{DIGITS}x}" if present else "",
        score,
        float((pilots_K > 0).mean()),
        tuple(float(value) for value in abs(soft_K[PILOTS:])),
    )


def _means(y_TK: Floats, offset: int) -> Floats:
    """Means of GROUP frames from `offset` on; of what there is, where that is less."""
    whole = (len(y_TK) - offset) // GROUP
    if not whole:
        few_1K: Floats = y_TK[offset:].mean(0)[None]
        return few_1K
    y_GTK = y_TK[offset : offset + whole * GROUP].reshape(whole, GROUP, -1)
    means_GK: Floats = y_GTK.mean(1)
    return means_GK


def _luma(clip_THWC: Clip) -> Floats:
    return clip_THWC.astype(np.float32) @ _LUMA


def _project(luma_GHW: Floats) -> Floats:
    """Projections [G,K], in units of a frame of REFERENCE**2 pixels."""
    _, H, W = luma_GHW.shape
    rows, columns, code_FK = _code()
    spectrum_Guv = _cosines(H) @ luma_GHW @ _cosines(W).T
    scale = REFERENCE / math.sqrt(H * W)
    found: Floats = spectrum_Guv[:, rows, columns] @ code_FK * np.float32(scale)
    return found


def _pattern(moved_K: Floats, H: int, W: int) -> Floats:
    """What is added to a frame's luma to move its projections."""
    rows, columns, code_FK = _code()
    spectrum_uv = np.zeros((int(BAND[1]) + 1,) * 2, np.float32)
    spectrum_uv[rows, columns] = code_FK @ moved_K * np.float32(math.sqrt(H * W) / REFERENCE)
    pattern: Floats = _cosines(H).T @ spectrum_uv @ _cosines(W)
    return pattern


@functools.lru_cache(64)
def _cosines(size: int) -> Floats:
    """The first rows of the orthonormal DCT-II of `size` samples."""
    u, i = np.arange(int(BAND[1]) + 1)[:, None], np.arange(size)[None]
    rows = np.sqrt(2 / size) * np.cos(np.pi * (2 * i + 1) * u / (2 * size))
    rows[0] /= np.sqrt(2)
    found: Floats = rows.astype(np.float32)
    return found


@functools.cache
def _code() -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], Floats]:
    """Rows and columns of the F coefficients, and K orthonormal directions among them [F,K]."""
    u, v = np.mgrid[: int(BAND[1]) + 1, : int(BAND[1]) + 1]
    radius = np.hypot(u, v)
    rows, columns = np.nonzero((radius >= BAND[0]) & (radius <= BAND[1]))
    random = np.random.Generator(np.random.PCG64(1))
    code_FK, _ = np.linalg.qr(random.standard_normal((len(rows), BITS)))
    return rows, columns, code_FK.astype(np.float32)


@functools.cache
def _dither() -> Floats:
    random = np.random.Generator(np.random.PCG64(2))
    return (random.random(BITS) * STEP).astype(np.float32)


@functools.cache
def _pilots() -> npt.NDArray[np.bool_]:
    return np.random.Generator(np.random.PCG64(3)).random(PILOTS) < 0.5


def _payload(digest: str) -> npt.NDArray[np.bool_]:
    bits = f"{int(digest[:DIGITS], 16):0{4 * DIGITS}b}"
    return np.array([bit == "1" for bit in bits])


def _shift(payload: npt.NDArray[np.bool_]) -> Floats:
    """Where the lattices begin that say the pilots and the payload."""
    bits_K = np.concatenate([_pilots(), payload])
    return _dither() + np.where(bits_K, np.float32(STEP / 2), np.float32(0))
