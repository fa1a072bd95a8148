from __future__ import annotations

import io
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from raygen.data import decode
from raygen.errors import DataError


def encode(pts: list[int], *, width: int = 64, height: int = 48, rotation: int = 0) -> bytes:
    """Frame k is grey level 20 x k (mod 220), shown from pts[k] sixtieths of a second on."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=60, options={"crf": "1", "g": "4"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 60)
        if rotation:
            stream.set_display_rotation(rotation)
        for k, at in enumerate(pts):
            image = np.full((height, width, 3), level(k), np.uint8)
            image[: height // 4, : width // 4] = (255, 0, 0)  # the top left corner is red
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = at, Fraction(1, 60)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return file.getvalue()


def level(k: int) -> int:
    return 20 * k % 220


def levels(clip: decode.Clip) -> list[int]:
    """Which frame each one is, read off the middle of its right half."""
    return [round(float(frame[16:28, 20:28].mean()) / 20) for frame in clip]


def test_constant_rate_gives_frame_after_frame() -> None:
    data = encode([6 * k for k in range(10)])
    clip = decode.decode_all(data, fps=10, size=32, seconds=1.0)
    assert clip.shape == (10, 32, 32, 3)
    assert levels(clip) == list(range(10))


def test_half_and_double_rate_choose_by_time() -> None:
    data = encode([6 * k for k in range(10)])
    half = decode.decode_all(data, fps=5, size=32, seconds=1.0)
    assert levels(half) == [0, 2, 4, 6, 8]
    double = decode.decode(data, start=0, frames=8, fps=20, size=32)
    assert levels(double) == [0, 0, 1, 1, 2, 2, 3, 3]


def test_variable_rate_shows_what_is_on_screen() -> None:
    # Shown for 3, 30, 3, 3 and again some sixtieths of a second.
    data = encode([0, 3, 33, 36, 39, 60])
    clip = decode.decode(data, start=0, frames=10, fps=10, size=32)
    assert levels(clip) == [0, 1, 1, 1, 1, 1, 3, 4, 4, 4]


@pytest.mark.parametrize("start", [0.0, 0.1, 0.35, 0.6])
def test_a_span_in_the_middle_equals_that_part_of_the_whole(start: float) -> None:
    data = encode([6 * k for k in range(10)])
    span = decode.decode(data, start=start, frames=4, fps=10, size=32)
    first = int(start * 10 + 1e-6)
    assert levels(span) == list(range(first, first + 4))


@pytest.mark.parametrize(("rotation", "corner"), [(90, (-1, 0)), (180, (-1, -1)), (-90, (0, -1))])
def test_rotation_turns_the_picture(rotation: int, corner: tuple[int, int]) -> None:
    # Display matrices turn counter-clockwise: the red corner goes from the top left to `corner`.
    data = encode([0, 6], width=64, height=64, rotation=rotation)
    frame = decode.decode(data, start=0, frames=1, fps=10, size=32)[0]
    red = frame[corner]
    assert red[0] > 180
    assert red[1] < 80
    assert decode.probe(data).rotation in (rotation, -180 if rotation == 180 else rotation)


def test_a_wide_picture_is_cropped_about_its_centre() -> None:
    data = encode([0, 6], width=128, height=64)
    clip = decode.decode(data, start=0, frames=1, fps=10, size=32)
    assert clip.shape == (1, 32, 32, 3)
    assert (
        clip[0, 0, 0, 1] < 80
    )  # the red corner ends at a quarter of the width, at the crop's edge


def test_probe_says_what_was_encoded() -> None:
    info = decode.probe(encode([6 * k for k in range(10)], width=96, height=80))
    assert (info.width, info.height, info.frames, info.codec) == (96, 80, 10, "h264")
    assert info.duration == pytest.approx(1.0, abs=0.1)


def test_a_clip_past_the_end_is_refused() -> None:
    with pytest.raises(DataError, match=r"ends .* s before the clip"):
        decode.decode(encode([0, 6, 12]), start=0, frames=16, fps=10, size=32)


@pytest.mark.parametrize("data", [b"", b"<html>denied</html>", b"\0" * 4096])
def test_what_is_no_video_is_refused(data: bytes) -> None:
    with pytest.raises(DataError):
        decode.probe(data)


def test_a_truncated_file_is_refused() -> None:
    data = encode([6 * k for k in range(10)])
    with pytest.raises(DataError, match="broken or not a video"):
        decode.probe(data[: len(data) // 2])


def test_real_files_decode_or_are_refused_with_a_reason(shared: Path) -> None:
    files = [p for p in sorted((shared / "decode").rglob("*")) if p.is_file()]
    assert len(files) > 100
    decoded = 0
    reasons = []
    for path in files:
        data = path.read_bytes()
        try:
            seconds = min(decode.probe(data).duration, 1.0)
            clip = decode.decode_all(data, fps=8, size=32, seconds=seconds)
        except DataError as error:
            reasons.append(str(error))
        else:
            decoded += 1
            assert clip.shape[1:] == (32, 32, 3), path
    assert decoded >= 85
    assert all(reasons)
