"""Clips to files that people can look at: mp4, webm, webp, gif, a png contact sheet, and npy.

    video.save("out.mp4", clips_NTHWC, fps=16, labels=["wave", "jump"], scale=4)

Shapes: N clips, T frames, H height, W width, C = 3 (RGB, uint8, 0 to 255). mp4, webm, webp and gif
show several clips as one grid and lose detail; only npy holds the clips themselves, so compute
nothing from the others.
"""

from __future__ import annotations

import io
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from raygen.codecs import Clips as Clips
from raygen.codecs import Fragments as Fragments
from raygen.codecs import encode_av1 as encode_av1
from raygen.codecs import encode_mp4 as encode_mp4
from raygen.codecs import encode_webm as encode_webm
from raygen.errors import ConfigError

MEDIA_TYPES: dict[str, str] = {
    "mp4": "video/mp4",
    "webm": "video/webm",
    "av1": "video/webm; codecs=av01",
    "webp": "image/webp",
    "gif": "image/gif",
    "png": "image/png",
    "npy": "application/x-npy",
}

SUFFIXES = tuple(format for format in MEDIA_TYPES if format != "av1")
"""What a file's name may end in; .webm is VP9."""

GAP = 2  # pixels between the tiles of a grid or a sheet
BACKGROUND = 24  # grey level behind them
READABLE = 80  # pixels: a contact sheet enlarges smaller frames at least to this height


def encode(
    clips_NTHWC: Clips, format: str, fps: float, labels: Sequence[str] = (), scale: int = 1
) -> bytes:
    """The clips in one file of `format`, a key of MEDIA_TYPES.

    `labels` (one a clip) are written on the png only; `scale` enlarges all but png and npy by
    repeating pixels. Raises ConfigError for another format.
    """
    if format == "npy":
        # As np.save, which copies to what is no real file in small pieces, thirty times as slowly.
        file = io.BytesIO()
        whole_NTHWC = np.ascontiguousarray(clips_NTHWC)
        header = np.lib.format.header_data_from_array_1_0(whole_NTHWC)
        np.lib.format.write_array_header_1_0(file, header)
        file.write(whole_NTHWC.data)
        return file.getvalue()
    if format == "png":
        return contact_sheet(clips_NTHWC, labels or [""] * len(clips_NTHWC))
    encoders = {
        "mp4": encode_mp4,
        "webm": encode_webm,
        "av1": encode_av1,
        "webp": encode_webp,
        "gif": encode_gif,
    }
    if format not in encoders:
        raise ConfigError(f"unknown format {format!r}; there are {', '.join(MEDIA_TYPES)}")
    return encoders[format](enlarge(grid(clips_NTHWC), scale), fps)


def format_of(path: str | Path) -> str:
    """The key of MEDIA_TYPES that the suffix names. Raises ConfigError for an unknown one."""
    format = Path(path).suffix.removeprefix(".").lower()
    if format not in SUFFIXES:
        known = ", ".join(f".{name}" for name in SUFFIXES)
        raise ConfigError(f"cannot tell the format of {path}; end its name in one of {known}")
    return format


def save(
    path: str | Path,
    clips_NTHWC: Clips,
    fps: float,
    labels: Sequence[str] = (),
    scale: int = 1,
) -> None:
    """Write the clips to `path` in the format of its suffix, whole or not at all.

    Raises ConfigError for an unknown suffix and for a path that cannot be written.
    """
    path = Path(path)
    data = encode(clips_NTHWC, format_of(path), fps, labels, scale)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            partial.write_bytes(data)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}") from None


def encode_webp(clip_THWC: Clips, fps: float, quality: int = 90) -> bytes:
    """Animated lossy WebP that loops; `quality` 0 to 100."""
    frames = [Image.fromarray(frame_HWC) for frame_HWC in clip_THWC]
    return _animation(frames, "WEBP", durations=_durations(len(frames), fps, 1), quality=quality)


def encode_gif(clip_THWC: Clips, fps: float) -> bytes:
    """Animated GIF that loops, in one palette of 256 colours for the whole clip.

    A palette per frame, or dithering, would flicker. Delays are whole centiseconds, at least two:
    browsers slow down what claims to be faster.
    """
    T, H, W, C = clip_THWC.shape
    palette = Image.fromarray(clip_THWC.reshape(T * H, W, C)).quantize(256)
    frames = [
        Image.fromarray(frame_HWC).quantize(palette=palette, dither=Image.Dither.NONE)
        for frame_HWC in clip_THWC
    ]
    return _animation(frames, "GIF", durations=_durations(T, min(fps, 50.0), 10), optimize=False)


def contact_sheet(clips_NTHWC: Clips, labels: Sequence[str], columns: int = 8) -> bytes:
    """A PNG with one row a clip: its label, then `columns` frames evenly spaced over its time."""
    N, T, H, W, _ = clips_NTHWC.shape
    columns = min(columns, T)
    times = np.linspace(0, T - 1, columns).round().astype(int)
    scale = max(1, math.ceil(READABLE / H))
    font = ImageFont.load_default(size=16)
    margin = max(math.ceil(font.getlength(label)) for label in labels)
    margin += 12 if margin else 0  # pixels around a label
    width = margin + columns * (W * scale + GAP) - GAP
    height = N * (H * scale + GAP) - GAP
    sheet = Image.new("RGB", (width, height), (BACKGROUND,) * 3)
    pen = ImageDraw.Draw(sheet)
    for row, (clip_THWC, label) in enumerate(zip(clips_NTHWC, labels, strict=True)):
        top = row * (H * scale + GAP)
        middle = (6, top + H * scale // 2)
        pen.text(middle, label, fill=(235,) * 3, font=font, anchor="lm")
        for column, frame_HWC in enumerate(enlarge(clip_THWC[times], scale)):
            left = margin + column * (W * scale + GAP)
            sheet.paste(Image.fromarray(frame_HWC), (left, top))
    file = io.BytesIO()
    sheet.save(file, "PNG")
    return file.getvalue()


def grid(clips_NTHWC: Clips) -> Clips:
    """Several clips side by side as one clip [T,H,W,3], nearly square; a single clip unchanged."""
    N, T, H, W, C = clips_NTHWC.shape
    if N == 1:
        return cast(Clips, clips_NTHWC[0])
    root = math.ceil(math.sqrt(N))
    columns = min((root, root + 1), key=lambda count: -N % count)  # the fewer empty tiles
    rows = math.ceil(N / columns)
    shape = (T, rows * (H + GAP) - GAP, columns * (W + GAP) - GAP, C)
    tiled_THWC = np.full(shape, BACKGROUND, np.uint8)
    for index, clip_THWC in enumerate(clips_NTHWC):
        top, left = (index // columns) * (H + GAP), (index % columns) * (W + GAP)
        tiled_THWC[:, top : top + H, left : left + W] = clip_THWC
    return tiled_THWC


def enlarge(clip_THWC: Clips, scale: int) -> Clips:
    """Each pixel repeated `scale` times both ways; the clip itself where that is once."""
    return clip_THWC.repeat(scale, axis=1).repeat(scale, axis=2) if scale > 1 else clip_THWC


def _durations(frames: int, fps: float, unit_ms: int) -> list[int]:
    """Milliseconds each frame is shown, in whole units whose rounding never accumulates."""
    ends = np.round(np.arange(frames + 1) * 1000 / (fps * unit_ms)).astype(int) * unit_ms
    return [int(duration) for duration in np.diff(ends)]


def _animation(
    frames: Sequence[Image.Image], format: str, durations: list[int], **options: int | bool
) -> bytes:
    file = io.BytesIO()
    first, *rest = frames
    first.save(
        file, format, save_all=True, append_images=rest, duration=durations, loop=0, **options
    )
    return file.getvalue()
