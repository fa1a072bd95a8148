from __future__ import annotations

import io
from fractions import Fraction
from pathlib import Path
from typing import cast

import av
import numpy as np
import pytest
from av.stream import Disposition

from raygen.data import decode
from raygen.errors import DataError, StorageError


def encode(
    pts: list[int],
    *,
    width: int = 64,
    height: int = 48,
    rotation: int = 0,
    hflip: bool = False,
    aspect: Fraction = Fraction(1),
    form: str = "mp4",
    codec: str = "libx264",
    gop: int = 4,
) -> bytes:
    """Frame k is grey level 20 x k (mod 220), shown from pts[k] sixtieths of a second on."""
    file = io.BytesIO()
    with av.open(file, "w", format=form) as container:
        options = {"crf": "1", "g": str(gop)} if codec == "libx264" else {"q": "2", "g": str(gop)}
        stream = cast(av.VideoStream, container.add_stream(codec, rate=60, options=options))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 60)
        stream.codec_context.sample_aspect_ratio = aspect
        if rotation or hflip:
            stream.set_display_rotation(rotation, hflip=hflip)
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


def test_half_a_tick_decides_only_where_ticks_are_fine() -> None:
    # Ticks of a frame each: at 1.5 frames it is still the second one that is on screen.
    data = encode([6 * k for k in range(10)], form="avi", codec="mpeg4")
    clip = decode.decode(data, start=0.249, frames=1, fps=10, size=32)
    assert levels(clip) == [2]
    # Ticks of a millisecond: frame 1 of 60 a second is said to begin at 17, and does at 16.67.
    data = encode(list(range(10)), form="matroska")
    assert levels(decode.decode(data, start=1 / 60, frames=8, fps=60, size=32)) == [*range(1, 9)]


@pytest.mark.parametrize("form", ["mp4", "matroska", "mpegts"])
def test_times_count_from_the_first_frame(form: str) -> None:
    data = encode([600 + 6 * k for k in range(10)], form=form)
    assert levels(decode.decode(data, start=0.2, frames=5, fps=10, size=32)) == [2, 3, 4, 5, 6]


def test_frames_without_times_follow_at_their_rate() -> None:
    raw = encode(list(range(60)), form="h264")
    info = decode.probe(raw)
    assert (info.fps, info.frames) == (60, 60)
    clip = decode.decode(raw, start=20 / info.fps, frames=4, fps=info.fps, size=32)
    assert levels(clip) == [level(k) // 20 for k in range(20, 24)]


def test_frames_that_avi_stores_out_of_order_come_in_order() -> None:
    data = encode(list(range(24)), form="avi", codec="libx264", gop=12)
    clip = decode.decode_all(data, fps=60, size=32, seconds=0.4)
    assert levels(clip) == [level(k) // 20 for k in range(24)]


def test_a_stream_that_cannot_be_sought_is_decoded_from_its_beginning() -> None:
    # One keyframe, and a transport stream has no index: seeking lands among frames that build on
    # what is not there, which the decoder makes grey pictures of.
    data = encode(list(range(90)), form="mpegts", codec="mpeg4", gop=100)
    clip = decode.decode(data, start=1.0, frames=8, fps=60, size=32)
    assert levels(clip) == [level(k) // 20 for k in range(60, 68)]


@pytest.mark.parametrize("gop", [5, 30])
@pytest.mark.parametrize("fps", [60, 25, 7])
def test_skipped_frames_change_nothing(gop: int, fps: int) -> None:
    # Noise, so that every frame is told from every other, and B-frames with references among them.
    noise = np.random.default_rng(0).integers(0, 256, (60, 48, 64, 3), dtype=np.uint8)
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        options = {"g": str(gop), "bf": "5", "b-pyramid": "normal", "b_strategy": "0"}
        stream = container.add_stream("libx264", rate=60, options=options)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for image in noise:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    data = file.getvalue()
    whole = decode.decode_all(data, fps=60, size=48, seconds=1.0)
    assert len(whole) == 60
    for first in range(0, 50, 9):
        frames = max(1, (59 - first) * fps // 60)
        clip = decode.decode(data, start=first / 60, frames=frames, fps=fps, size=48)
        shown = [int(first + k * 60 / fps + 1e-6) for k in range(frames)]
        np.testing.assert_array_equal(clip, whole[shown])


@pytest.mark.parametrize(("rotation", "corner"), [(90, (-1, 0)), (180, (-1, -1)), (-90, (0, -1))])
def test_rotation_turns_the_picture(rotation: int, corner: tuple[int, int]) -> None:
    # Display matrices turn counter-clockwise: the red corner goes from the top left to `corner`.
    data = encode([0, 6], width=64, height=64, rotation=rotation)
    frame = decode.decode(data, start=0, frames=1, fps=10, size=32)[0]
    red = frame[corner]
    assert red[0] > 180
    assert red[1] < 80
    assert decode.probe(data).rotation in (rotation, -180 if rotation == 180 else rotation)


@pytest.mark.parametrize(
    ("rotation", "corner"), [(0, (0, -1)), (90, (-1, -1)), (180, (-1, 0)), (-90, (0, 0))]
)
def test_a_mirror_image_is_mirrored_back(rotation: int, corner: tuple[int, int]) -> None:
    data = encode([0, 6], width=64, height=64, rotation=rotation, hflip=True)
    red = decode.decode(data, start=0, frames=1, fps=10, size=32)[0][corner]
    assert red[0] > 180
    assert red[1] < 80


def test_pixels_that_are_not_square_come_out_square() -> None:
    # 32 x 48 pixels of two by one are a picture of 64 x 48: its red corner is 16 x 12.
    data = encode([0, 6], width=32, height=48, aspect=Fraction(2))
    frame = decode.decode(data, start=0, frames=1, fps=10, size=48, crop=(0, 0))[0]
    red = (frame[..., 0] > 180) & (frame[..., 1] < 80)
    assert red.any(0).sum() == pytest.approx(16, abs=1)
    assert red.any(1).sum() == pytest.approx(12, abs=1)


@pytest.mark.parametrize(
    ("rotation", "crop", "red_at"),
    [
        (0, (0.0, 0.5), (0, 0)),
        (0, (1.0, 0.5), None),
        (90, (0.5, 1.0), (-1, 0)),
        (90, (0.5, 0.0), None),
    ],
)
def test_the_crop_is_of_the_upright_picture(
    rotation: int, crop: tuple[float, float], red_at: tuple[int, int] | None
) -> None:
    data = encode([0, 6], width=128, height=64, rotation=rotation)
    frame = decode.decode(data, start=0, frames=1, fps=10, size=32, crop=crop)[0]
    red = (frame[..., 0] > 180) & (frame[..., 1] < 80)
    assert red.any() == (red_at is not None)
    if red_at is not None:
        assert red[red_at]


def test_a_picture_that_changes_size_is_scaled_from_each_size() -> None:
    small, large = encode([0] * 3, form="h264"), encode([0] * 3, width=256, height=192, form="h264")
    data = small + large
    info = decode.probe(data)
    clip = decode.decode(data, start=0, frames=6, fps=info.fps, size=32)
    assert levels(clip) == [0, 1, 2, 0, 1, 2]
    for frame in clip:
        assert frame[2, 0, 0] > 180, "the red corner is at the left, a sixth of the height down"


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


def test_a_path_and_a_file_are_as_good_as_bytes(tmp_path: Path) -> None:
    data = encode([6 * k for k in range(10)])
    path = tmp_path / "clip.mp4"
    path.write_bytes(data)
    clips = [
        decode.decode(source, start=0.2, frames=4, fps=10, size=32)
        for source in (data, str(path), io.BytesIO(data))
    ]
    np.testing.assert_array_equal(clips[0], clips[1])
    np.testing.assert_array_equal(clips[0], clips[2])


class Counting(io.BytesIO):
    """Counts the bytes that are read of it."""

    taken = 0

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(size)
        self.taken += len(data)
        return data


def noise(frames: int) -> bytes:
    """Some 14 KB a frame, the header last."""
    rng = np.random.default_rng(0)
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("mjpeg", rate=30, options={"q": "2"})
        stream.width, stream.height, stream.pix_fmt = 256, 256, "yuvj420p"
        for _ in range(frames):
            image = rng.integers(0, 256, (256, 256, 3), dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return file.getvalue()


def test_probing_reads_the_ends_of_a_file_with_its_header_last() -> None:
    data = noise(300)
    assert data.rindex(b"moov") > len(data) - 10_000
    source = Counting(data)
    assert decode.probe(source).frames == 300
    assert source.taken < len(data) / 5


def test_what_a_file_raises_comes_through() -> None:
    class Lost(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            if self.tell() > 100_000:
                raise StorageError("the connection is lost")
            return super().read(size)

    with pytest.raises(StorageError, match="connection is lost"):
        decode.probe(Lost(noise(20)))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "is empty"),
        (b"<html>denied</html>", "is broken or not a video"),
        (b"\0" * 4096, "is broken or not a video"),
    ],
)
def test_what_is_no_video_is_refused(data: bytes, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(data)
    for source in (data, str(path), io.BytesIO(data)):
        with pytest.raises(DataError, match=reason):
            decode.probe(source)


def test_a_path_with_nothing_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        decode.probe(str(tmp_path / "none.mp4"))


def sound(container: av.container.OutputContainer) -> None:
    """A second of silence, as AAC."""
    stream = container.add_stream("aac", rate=44100)
    frame = av.AudioFrame.from_ndarray(np.zeros((1, 44100), np.float32), "fltp", "mono")
    frame.sample_rate = 44100
    container.mux(stream.encode(frame))
    container.mux(stream.encode())


def test_sound_alone_is_refused() -> None:
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        sound(container)
    with pytest.raises(DataError, match="has no video stream"):
        decode.probe(file.getvalue())


def test_a_cover_picture_is_no_video() -> None:
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        cover = container.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 320, 320, "yuvj420p"
        cover.disposition = Disposition.attached_pic
        sound(container)
        container.mux(cover.encode(av.VideoFrame(320, 320, "yuvj420p")))
        container.mux(cover.encode())
    with pytest.raises(DataError, match="has no video stream"):
        decode.probe(file.getvalue())


@pytest.mark.parametrize("default", [0, 1])
def test_of_two_streams_the_default_one_is_shown(default: int) -> None:
    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as container:
        sides = (64, 32)
        streams = []
        for k, side in enumerate(sides):
            stream = container.add_stream("libx264", rate=10)
            stream.width, stream.height, stream.pix_fmt = side, side, "yuv420p"
            stream.disposition = Disposition.default if k == default else Disposition(0)
            streams.append(stream)
        for stream, side in zip(streams, sides, strict=True):
            container.mux(stream.encode(av.VideoFrame(side, side, "yuv420p")))
            container.mux(stream.encode())
    assert decode.probe(file.getvalue()).width == sides[default]


def test_an_encrypted_track_is_refused() -> None:
    data = encode([6 * k for k in range(10)])
    entry = bytes(7) + b"\1"
    assert data.count(b"avc1" + entry) == 1
    with pytest.raises(DataError, match="is encrypted"):
        decode.probe(data.replace(b"avc1" + entry, b"encv" + entry))


def test_a_codec_that_nobody_knows_is_refused() -> None:
    data = encode([6 * k for k in range(10)])
    entry = bytes(7) + b"\1"
    with pytest.raises(DataError, match="uses a codec that this FFmpeg cannot decode"):
        decode.probe(data.replace(b"avc1" + entry, b"zzz9" + entry))


def test_a_header_that_asks_for_all_memory_is_refused() -> None:
    data = bytearray(encode([6 * k for k in range(10)]))
    count = data.index(b"stts") + 8
    data[count : count + 4] = b"\x7f\xff\xff\xff"
    with pytest.raises(DataError, match="asks for more memory than there is"):
        decode.probe(bytes(data))


def test_a_large_frame_is_refused_by_its_header() -> None:
    data = encode([0, 6], width=640, height=480)
    limits = decode.Limits(megapixels=0.2)
    with pytest.raises(DataError, match=r"640x480 pixels, more than data.limits.megapixels=0.2"):
        decode.probe(data, limits=limits)
    with pytest.raises(DataError, match=r"640x480 pixels, more than data.limits.megapixels=0.2"):
        decode.decode(data, start=0, frames=1, fps=10, size=32, limits=limits)


def test_a_frame_that_turns_out_large_is_refused() -> None:
    small = encode(list(range(30)), form="h264")
    large = encode([0] * 3, width=640, height=480, form="h264")
    fps = decode.probe(small).fps
    limits = decode.Limits(megapixels=0.2)
    ahead = decode.decode(small + large, start=0, frames=3, fps=fps, size=32, limits=limits)
    assert levels(ahead) == [0, 1, 2]
    with pytest.raises(DataError, match=r"640x480 pixels, more than data.limits.megapixels=0.2"):
        decode.decode(small + large, start=0, frames=33, fps=fps, size=32, limits=limits)


def test_a_playlist_reads_no_other_file(tmp_path: Path) -> None:
    segment = tmp_path / "secret.ts"
    segment.write_bytes(encode([6 * k for k in range(10)], form="mpegts"))
    playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{segment}\n#EXT-X-ENDLIST\n"
    with pytest.raises(DataError, match="broken or not a video"):
        decode.probe(playlist.encode())


def test_damage_within_a_clip_is_refused_and_beyond_it_ignored() -> None:
    data = bytearray(encode([6 * k for k in range(40)], width=256, height=256, gop=10))
    with av.open(io.BytesIO(data), "r") as container:
        packets = list(container.demux(video=0))
    assert packets[30].pos is not None
    data[packets[30].pos : packets[30].pos + 4] = b"\xff\xff\xff\xff"  # a length that cannot be
    clip = decode.decode(bytes(data), start=0, frames=16, fps=10, size=32)
    assert levels(clip) == [level(k) // 20 for k in range(16)]
    with pytest.raises(DataError, match=r"is broken .* s in \("):
        decode.decode(bytes(data), start=1.6, frames=20, fps=10, size=32)


def test_a_truncated_file_is_refused() -> None:
    data = encode([6 * k for k in range(10)])
    with pytest.raises(DataError, match="broken or not a video"):
        decode.probe(data[: len(data) // 2])
