"""Clips against those of the ffmpeg program, over codecs, turns, rates and colours."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import av
import numpy as np
import pytest

from raygen.codecs import ordinary_thread
from raygen.data import decode
from raygen.data.decode import Clip
from tests.clips import moving, scenery
from tests.ffmpeg_program import clip, needs_ffmpeg, psnr

pytestmark = needs_ffmpeg

FRAMES = 40


def scene(width: int, height: int) -> Clip:
    """A red circle that crosses a still of blotches, [T, height, width, 3]."""
    ball = moving("red-circle-right", 3, FRAMES, size=256)
    still = scenery(5, size=256)
    frames = np.where((ball[..., :1] > 150) & (ball[..., 1:2] < 90), ball, still)
    rows = np.linspace(0, 255, height).astype(int)
    columns = np.linspace(0, 255, width).astype(int)
    return np.ascontiguousarray(frames[:, rows][:, :, columns])


def write(
    path: Path,
    codec: str = "libx264",
    *,
    size: tuple[int, int] = (160, 120),
    pixels: str = "yuv420p",
    pts: list[int] | None = None,
    turn: dict[str, Any] | None = None,
    colours: dict[str, int] | None = None,
    options: dict[str, str] | None = None,
) -> Path:
    """`pts` in sixtieths of a second, by default 25 frames/s in a time base of its own."""
    base = Fraction(1, 60) if pts else Fraction(1, 25)
    with ordinary_thread(), av.open(str(path), "w") as container:
        added = container.add_stream(codec, rate=60 if pts else 25, options=options)
        stream = cast(av.VideoStream, added)
        stream.width, stream.height, stream.pix_fmt = *size, pixels
        stream.codec_context.time_base = base
        if turn:
            stream.set_display_rotation(**turn)
        for name, value in (colours or {}).items():
            setattr(stream.codec_context, name, value)
        for k, image in enumerate(scene(*size)):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format=pixels)
            frame.pts, frame.time_base = pts[k] if pts else k, base
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def compare(path: Path, *, start: float = 0.0, frames: int = 8, fps: float = 8) -> float:
    """PSNR of the worst frame, dB."""
    ours = decode.decode(str(path), start=start, frames=frames, fps=fps, size=64)
    theirs = clip(path, [start + k / fps for k in range(frames)], 64)
    assert theirs.std() > 10, "ffmpeg's frames show nothing to compare"
    return psnr(ours, theirs)


@pytest.mark.parametrize(
    ("codec", "suffix", "options"),
    [
        ("libx264", ".mp4", {"g": "12", "bf": "3"}),
        ("libx264", ".mkv", {"g": "12", "bf": "3"}),
        ("libx264", ".ts", {"g": "12"}),
        ("libx264", ".avi", {"g": "12", "bf": "2"}),
        ("libx265", ".mp4", {"x265-params": "log-level=none:keyint=12"}),
        ("libvpx-vp9", ".webm", {"deadline": "realtime", "cpu-used": "8", "g": "12"}),
        ("libsvtav1", ".mp4", {"preset": "12"}),
        ("mpeg4", ".avi", {"g": "12", "bf": "2", "b": "2M"}),
        ("mpeg2video", ".ts", {"g": "12", "bf": "2", "b": "2M"}),
        ("mjpeg", ".mov", {"q": "3"}),
        ("ffv1", ".mkv", {}),
    ],
)
@pytest.mark.parametrize("start", [0.0, 0.4])
def test_codecs_and_containers(
    codec: str, suffix: str, options: dict[str, str], start: float, tmp_path: Path
) -> None:
    pixels = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    path = write(tmp_path / f"clip{suffix}", codec, pixels=pixels, options=options)
    assert compare(path, start=start) >= 40


@pytest.mark.parametrize(
    "turn",
    [
        {"degrees": 90},
        {"degrees": 180},
        {"degrees": -90},
        {"degrees": 0, "hflip": True},
        {"degrees": 0, "vflip": True},
        {"degrees": 90, "hflip": True},
        {"degrees": -90, "hflip": True},
    ],
)
def test_turns_and_mirror_images(turn: dict[str, Any], tmp_path: Path) -> None:
    # Whole chroma: where ffmpeg believes it to be sited after a turn is another matter.
    path = write(tmp_path / "turned.mp4", turn=turn, size=(160, 96), pixels="yuv444p")
    assert compare(path) >= 40


def test_a_variable_rate(tmp_path: Path) -> None:
    gaps = np.random.default_rng(0).choice([1, 2, 3, 5, 17], FRAMES)
    pts = [int(at) for at in np.cumsum(gaps) - gaps[0]]
    path = write(tmp_path / "variable.mp4", pts=pts, options={"g": "7", "bf": "2"})
    for start in (0.0, 0.3, 0.9):
        assert compare(path, start=start, frames=12, fps=16) >= 40


@pytest.mark.parametrize("size", [(161, 121), (67, 301)])
def test_odd_sizes(size: tuple[int, int], tmp_path: Path) -> None:
    options = {"deadline": "realtime"}
    path = write(tmp_path / "odd.webm", "libvpx-vp9", size=size, options=options)
    assert compare(path) >= 40


@pytest.mark.parametrize("colorspace", [1, 2, 6, 9])
@pytest.mark.parametrize("color_range", [1, 2])
def test_matrices_and_ranges(colorspace: int, color_range: int, tmp_path: Path) -> None:
    colours = {"colorspace": colorspace, "color_range": color_range}
    assert compare(write(tmp_path / "colours.mp4", colours=colours)) >= 40


@pytest.mark.parametrize("pixels", ["yuv422p10le", "yuv444p", "bgr0"])
def test_pixel_formats(pixels: str, tmp_path: Path) -> None:
    assert compare(write(tmp_path / "pixels.mkv", "ffv1", pixels=pixels)) >= 40


def test_a_frame_beyond_the_clip_is_told_apart(tmp_path: Path) -> None:
    path = write(tmp_path / "clip.mp4")
    ours = decode.decode(str(path), start=0.04, frames=8, fps=25, size=64)
    assert psnr(ours, clip(path, [k / 25 for k in range(8)], 64)) < 35
