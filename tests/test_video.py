"""What was encoded is decoded again: by PyAV, Pillow and numpy."""

import io
import os
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from raygen import video
from raygen.errors import ConfigError


def waves(T: int = 16, H: int = 32, W: int = 32, phase: float = 0.0) -> video.Clips:
    """A smooth moving pattern, uint8 [T,H,W,3]."""
    t_T, y_H, x_W = np.arange(T), np.arange(H), np.arange(W)
    red_TW = 127 + 100 * np.sin(x_W / 9 + t_T[:, None] / 3 + phase)
    green_TH = 127 + 100 * np.cos(y_H / 7 - t_T[:, None] / 4)
    channels = (red_TW[:, None, :], green_TH[:, :, None], np.array(160.0))
    return np.stack([np.broadcast_to(c, (T, H, W)) for c in channels], -1).astype(np.uint8)


def decode(data: bytes) -> video.Clips:
    with av.open(io.BytesIO(data), "r") as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def psnr(a: video.Clips, b: video.Clips) -> float:
    return float(10 * np.log10(255**2 / np.mean((a.astype(float) - b.astype(float)) ** 2)))


def test_mp4_decodes_to_the_same_frames_at_the_same_rate() -> None:
    clip_THWC = waves()
    data = video.encode_mp4(clip_THWC, fps=12.5)
    assert decode(data).shape == clip_THWC.shape
    assert psnr(decode(data), clip_THWC) > 30
    with av.open(io.BytesIO(data), "r") as container:
        stream = container.streams.video[0]
        assert stream.average_rate == 12.5
        assert stream.codec_context.pix_fmt == "yuv420p"
    assert data.index(b"moov") < data.index(b"mdat")  # plays before it has arrived whole


def test_mp4_bytes_are_the_same_each_time() -> None:
    # x264's defaults differ in one call of a dozen or so at this size.
    assert len({video.encode_mp4(waves(), 16) for _ in range(60)}) == 1


def test_the_index_of_an_mp4_says_where_its_frames_are() -> None:
    data = video.encode_mp4(waves(T=300), 16)
    assert data.index(b"moov") < data.index(b"mdat")
    with av.open(io.BytesIO(data), "r") as container:
        sizes = {packet.pos or 0: packet.size for packet in container.demux(video=0) if packet.size}
    at = data.index(b"mdat") + 4
    for place in sorted(sizes):  # one after the other, to the end of the file
        assert place == at
        at += sizes[place]
    assert at == len(data)
    assert len(sizes) == 300


@pytest.mark.parametrize(("H", "W"), [(18, 34), (64, 64), (4, 3000)])
def test_no_frame_looks_into_the_next(H: int, W: int) -> None:
    grey_T = np.array([0, 255, 80, 0, 255, 30, 200, 0, 255], np.uint8)
    clip_THWC = np.broadcast_to(grey_T[:, None, None, None], (len(grey_T), H, W, 3))
    decoded_THWC = decode(video.encode_mp4(clip_THWC, 16, crf=4)).astype(int)
    assert np.abs(decoded_THWC - clip_THWC).max() <= 3


def test_av1_leaves_its_thread_as_it_was() -> None:
    """SVT-AV1 would make it a real-time one where this runs as root."""
    before = os.sched_getscheduler(0), os.sched_getparam(0).sched_priority
    video.encode(np.zeros((1, 4, 64, 64, 3), np.uint8), "av1", 16)
    assert (os.sched_getscheduler(0), os.sched_getparam(0).sched_priority) == before


@pytest.mark.parametrize(("format", "codec"), [("webm", "vp9"), ("av1", "libdav1d")])
@pytest.mark.parametrize("size", [3, 32, 70])
def test_webm_decodes_to_the_same_frames_and_is_the_same_each_time(
    format: str, codec: str, size: int
) -> None:
    clip_THWC = waves(H=size, W=size)
    data = video.encode(clip_THWC[None], format, 12.5)
    assert video.encode(clip_THWC[None], format, 12.5) == data
    decoded = decode(data)
    assert len(decoded) == len(clip_THWC)
    assert psnr(decoded[:, :size, :size], clip_THWC) > 28
    with av.open(io.BytesIO(data), "r") as container:
        stream = container.streams.video[0]
        assert stream.average_rate == 12.5
        assert stream.codec_context.name == codec


def test_fragments_are_one_mp4_that_plays_from_its_first_part() -> None:
    clip_THWC = waves(T=80)

    def parts() -> list[bytes]:
        writer = video.Fragments(16)
        added = [writer.add(clip_THWC[at : at + 32]) for at in range(0, 80, 32)]
        return [*added, writer.close()]

    whole = b"".join(parts())
    assert whole == b"".join(parts())
    assert decode(whole).shape == clip_THWC.shape
    assert psnr(decode(whole), clip_THWC) > 30
    begun = b"".join(parts()[:2])
    assert 16 <= len(decode(begun)) < 80  # what had arrived after 64 frames


def test_mp4_pads_odd_sizes() -> None:
    clip_THWC = waves(H=31, W=45)
    decoded = decode(video.encode_mp4(clip_THWC, 16))
    assert decoded.shape == (16, 32, 46, 3)
    assert psnr(decoded[:, :31, :45], clip_THWC) > 30


@pytest.mark.parametrize("size", [1, 2, 3, 17])
def test_mp4_takes_any_size(size: int) -> None:
    even = size + size % 2
    decoded = decode(video.encode_mp4(waves(H=size, W=size), 16))
    assert decoded.shape == (16, even, even, 3)


@pytest.mark.parametrize(("format", "quality"), [("gif", 28), ("webp", 28)])
def test_animations_keep_frames_length_and_colours(format: str, quality: float) -> None:
    clip_THWC = waves()
    with Image.open(io.BytesIO(video.encode(clip_THWC[None], format, 16))) as image:
        frames, duration = [], 0
        for index in range(image.n_frames):  # type: ignore[attr-defined]
            image.seek(index)
            frames.append(np.asarray(image.convert("RGB")))
            duration += image.info["duration"]
    assert duration == pytest.approx(1000, abs=10)
    assert psnr(np.stack(frames), clip_THWC) > quality


def test_contact_sheet_has_a_row_a_clip_and_readable_frames() -> None:
    clips_NTHWC = np.stack([waves(), waves(phase=2.0)])
    with Image.open(io.BytesIO(video.contact_sheet(clips_NTHWC, ["wave", "bend"], 4))) as sheet:
        cell = 32 * 3
        assert sheet.height == 2 * cell + video.GAP
        assert sheet.width > 4 * cell + 3 * video.GAP + 20  # 20: the labels
        pixels = np.asarray(sheet)
    last = pixels[:cell, -cell:]
    assert np.array_equal(last[::3, ::3], clips_NTHWC[0, -1])
    assert pixels[:cell, :40].max() > 200  # the label is drawn


def test_grid_places_every_clip() -> None:
    clips_NTHWC = np.stack([waves(phase=i) for i in range(8)])
    grid_THWC = video.grid(clips_NTHWC)
    step = 32 + video.GAP
    assert grid_THWC.shape == (16, 2 * step - video.GAP, 4 * step - video.GAP, 3)
    tile = grid_THWC[:, step:, 2 * step : 2 * step + 32]
    assert np.array_equal(tile, clips_NTHWC[6])
    assert np.array_equal(video.grid(clips_NTHWC[:1]), clips_NTHWC[0])


def test_scale_repeats_pixels() -> None:
    decoded = decode(video.encode(waves()[None], "mp4", 16, scale=3))
    assert decoded.shape == (16, 96, 96, 3)


def test_save_picks_the_format_and_leaves_nothing_else(tmp_path: Path) -> None:
    clips_NTHWC = np.stack([waves(), waves(phase=1.0)])
    for format in video.SUFFIXES:
        video.save(tmp_path / "new" / f"clips.{format}", clips_NTHWC, 16, ["a", "b"])
    names = {path.name for path in (tmp_path / "new").iterdir()}
    assert names == {f"clips.{format}" for format in video.SUFFIXES}
    assert np.array_equal(np.load(tmp_path / "new" / "clips.npy"), clips_NTHWC)


def test_save_names_the_formats_it_knows(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"\.mp4, \.webm, \.webp, \.gif, \.png, \.npy"):
        video.save(tmp_path / "out.avi", waves()[None], 16)
    assert not list(tmp_path.iterdir())


def test_save_into_a_file_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(ConfigError, match="cannot write"):
        video.save(tmp_path / "taken" / "out.mp4", waves()[None], 16)
