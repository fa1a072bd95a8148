"""Clips to H.264, VP9 and AV1, by PyAV. `raygen.video` has them under their formats' names.

    encode_mp4(clip_THWC, fps=16)
    writer = Fragments(fps=16); writer.add(clip_THWC); writer.close()     # parts of one long mp4

Shapes: T frames, H height, W width, C = 3 (RGB, uint8, 0 to 255).
"""

from __future__ import annotations

import contextlib
import io
import os
import threading
from collections.abc import Iterator
from fractions import Fraction
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

Clips = npt.NDArray[np.uint8]


def encode_mp4(clip_THWC: Clips, fps: float, crf: int = 17) -> bytes:
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

    def __init__(self, fps: float, crf: int = 17) -> None:
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
    options = {"crf": str(crf), "preset": "10", "svtav1-params": "lp=1"}
    with ordinary_thread():
        return _webm(clip_THWC, fps, "libsvtav1", options, least=64)


@contextlib.contextmanager
def ordinary_thread() -> Iterator[None]:
    """Leaves the calling thread's scheduling as it was.

    As root, SVT-AV1 makes the thread that calls it a real-time one, before which all others wait;
    processes that are started from it inherit that.
    """
    policy = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield
    finally:
        os.sched_setscheduler(0, *policy)


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
_X264 = {"preset": "ultrafast", "x264-params": "cabac=1:no-deblock=0:aq-mode=0"}


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


def _rate(fps: float) -> Fraction:
    return Fraction(fps).limit_denominator(1001)  # 1001 keeps NTSC's 30000/1001 exact
