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
import threading
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import cast

import av
import numpy as np
import numpy.typing as npt
from av.video.reformatter import (
    ColorPrimaries,
    ColorRange,
    Colorspace,
    ColorTrc,
    VideoReformatter,
)
from av.video.stream import VideoStream
from PIL import Image, ImageDraw, ImageFont

from raygen.errors import ConfigError

Clips = npt.NDArray[np.uint8]

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


def encode_mp4(clip_THWC: Clips, fps: float, crf: int = 18) -> bytes:
    """H.264 in mp4, 4:2:0, index first, as every browser plays it; the same bytes each time.

    `crf` is x264's quality, 0 (lossless) to 51. Odd sizes grow by one repeated row or column.
    """
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        frames = _Frames(container, "libx264", fps, _X264 | {"crf": str(crf)})
        frames.add(clip_THWC)
        frames.end()
    return _index_first(file.getvalue())


def _index_first(mp4: bytes) -> bytes:
    """The same file with its index before its frames, as movflags=faststart would write it.

    That reads what it has written from a file with a name, and a temporary one takes longer than
    all of this.
    """
    boxes = list(_boxes(mp4, 0, len(mp4)))
    [(_, start, end)] = [box for box in boxes if box[0] == b"moov"]
    (_, _, first), *_ = boxes  # ftyp
    index = bytearray(mp4[start:end])
    places = [(0, len(index))]
    for name in (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stco"):
        places = [
            (at + 8, to)
            for place in places
            for kind, at, to in _boxes(index, *place)
            if kind == name
        ]
    for at, to in places:  # version and flags, a count, and where the frames are in the file
        offsets = np.frombuffer(index, ">u4", (to - at - 8) // 4, at + 8)
        index[at + 8 : to] = (offsets + len(index)).astype(">u4").tobytes()
    return mp4[:first] + index + mp4[first:start] + mp4[end:]


def _boxes(data: bytes | bytearray, at: int, to: int) -> Iterator[tuple[bytes, int, int]]:
    """The boxes there: the kind, the start and the end of each."""
    while at < to:
        end = at + int.from_bytes(data[at : at + 4], "big")
        yield bytes(data[at + 4 : at + 8]), at, end
        at = end


class Fragments:
    """A long clip as H.264 in fragmented mp4, which plays while it still arrives.

    The parts that `add` and `close` give, one after the other, are the file; the same frames in
    the same portions give the same bytes.
    """

    def __init__(self, fps: float, crf: int = 18) -> None:
        self._file = io.BytesIO()
        # Without an index to come back to: its place is the first thing in the file.
        flags = {"movflags": "+frag_keyframe+empty_moov+default_base_moof"}
        self._container = av.open(self._file, "w", format="mp4", options=flags)
        options = _X264 | {"crf": str(crf), "g": str(_FRAGMENT)}
        self._frames = _Frames(self._container, "libx264", fps, options)

    def add(self, clip_THWC: Clips) -> bytes:
        """Further frames, all of one size; what has come out of the encoder since."""
        self._frames.add(clip_THWC)
        return self._taken()

    def close(self) -> bytes:
        """The rest of the file."""
        self._frames.end()
        self._container.close()
        return self._taken()

    def _taken(self) -> bytes:
        data = self._file.getvalue()
        self._file.seek(0)
        self._file.truncate()
        return data


def encode_webm(clip_THWC: Clips, fps: float, crf: int = 24) -> bytes:
    """VP9 in WebM, 4:2:0, for players without H.264; `crf` 0 to 63. Sizes as in `encode_mp4`."""
    options = {"crf": str(crf), "b": "0", "deadline": "realtime", "cpu-used": "6", "row-mt": "0"}
    return _webm(clip_THWC, fps, "libvpx-vp9", options)


def encode_av1(clip_THWC: Clips, fps: float, crf: int = 30) -> bytes:
    """AV1 in WebM, 4:2:0: the smallest files, the slowest to make; `crf` 0 to 63.

    Sizes as in `encode_mp4`, and at least 64 pixels, which SVT-AV1 asks for: repeated at the edge.
    """
    os.environ.setdefault("SVT_LOG", "1")  # errors alone, and not every setting of each file
    return _webm(
        clip_THWC,
        fps,
        "libsvtav1",
        {"crf": str(crf), "preset": "10", "svtav1-params": "lp=1"},
        least=64,
    )


def _webm(
    clip_THWC: Clips, fps: float, codec: str, options: dict[str, str], least: int = 2
) -> bytes:
    file = io.BytesIO()
    # WebM has a random number for each file unless told otherwise.
    with av.open(file, "w", format="webm", options={"fflags": "+bitexact"}) as container:
        frames = _Frames(container, codec, fps, options, least)
        frames.add(clip_THWC)
        frames.end()
    return file.getvalue()


_FRAGMENT = 16  # frames at most from one key frame, and so from one fragment, to the next

# A clip costs x264 half of what "veryfast" does, at a PSNR that is no lower and in files a third
# larger. Without CABAC it would be twice as much again: for the tables of what takes its place.
# What looks ahead stays off: with mbtree the same frames come out differently once in a while.
_X264 = {"preset": "ultrafast", "x264-params": "cabac=1:no-deblock=0:aq-mode=1"}


class _Frames:
    """The one video stream of a container: RGB frames in, encoded 4:2:0 packets out."""

    def __init__(
        self,
        container: av.container.OutputContainer,
        codec: str,
        fps: float,
        options: dict[str, str],
        least: int = 2,
    ) -> None:
        self._container = container
        self._stream = cast(VideoStream, container.add_stream(codec, rate=_rate(fps)))
        self._stream.pix_fmt = "yuv420p"
        self._stream.options = dict(options)
        self._least = least
        context = self._stream.codec_context
        context.thread_count = 1  # the bytes depend on it, and the default is per core
        # Untagged, players guess the matrix from the frame size, and colours shift.
        context.color_range = ColorRange.MPEG
        context.colorspace = Colorspace.ITU709
        context.color_primaries = ColorPrimaries.BT709
        context.color_trc = ColorTrc.BT709

    def add(self, clip_THWC: Clips) -> None:
        _, H, W, _ = clip_THWC.shape
        # 4:2:0 stores one chroma sample for each 2x2 pixels.
        height, width = (max(side + side % 2, self._least) for side in (H, W))
        padding = ((0, 0), (0, height - H), (0, width - W), (0, 0))
        even_THWC = (
            np.pad(clip_THWC, padding, mode="edge") if (height, width) != (H, W) else clip_THWC
        )
        if not self._stream.codec_context.is_open:
            self._stream.width, self._stream.height = width, height
        # PyAV takes planes without a copy, but not the last rows of most heights.
        whole = height % 4 == 0
        take = av.VideoFrame.from_numpy_buffer if whole else av.VideoFrame.from_ndarray
        for planes in _yuv420p(even_THWC):
            self._container.mux(self._stream.encode(take(planes, format="yuv420p")))

    def end(self) -> None:
        self._container.mux(self._stream.encode())


_WIDE = 4096  # pixels: about the width of what libswscale converts at once
_local = threading.local()


def _yuv420p(clip_THWC: Clips) -> Iterator[Clips]:
    """Each frame [H * 3 / 2, W]: its luma, then its chroma of half the size, BT.709, 16 to 235.

    Frames are converted side by side: a call of libswscale takes longer than a small frame does,
    and setting it up longer still, so that each thread has one for good. It looks across rows,
    never across pairs of columns: the frames come out as they do alone.
    """
    if not hasattr(_local, "reformatter"):
        _local.reformatter = VideoReformatter()
    T, H, W, C = clip_THWC.shape
    step = max(1, _WIDE // W)
    for start in range(0, T, step):
        some_THWC = clip_THWC[start : start + step]
        frames = len(some_THWC)
        wide_HTWC = np.ascontiguousarray(some_THWC.transpose(1, 0, 2, 3))
        wide = _local.reformatter.reformat(
            av.VideoFrame.from_numpy_buffer(wide_HTWC.reshape(H, frames * W, C), format="rgb24"),
            format="yuv420p",
            dst_colorspace=Colorspace.ITU709,
            dst_color_range=ColorRange.MPEG,
            threads=1,  # the default, a thread a core, takes ten times as long to set up
        )
        planes = np.empty((frames, H * 3 // 2, W), np.uint8)
        flat, at = planes.reshape(frames, -1), 0
        for plane, (h, w) in zip(
            wide.planes, ((H, W), (H // 2, W // 2), (H // 2, W // 2)), strict=True
        ):
            rows = np.frombuffer(plane, np.uint8).reshape(h, -1)[:, : frames * w]
            there = flat[:, at : at + h * w].reshape(frames, h, w)
            there[:] = rows.reshape(h, frames, w).transpose(1, 0, 2)
            at += h * w
        yield from planes


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
    """Each pixel repeated `scale` times both ways."""
    return clip_THWC.repeat(scale, axis=1).repeat(scale, axis=2)


def _rate(fps: float) -> Fraction:
    return Fraction(fps).limit_denominator(1001)  # 1001 keeps NTSC's 30000/1001 exact


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
