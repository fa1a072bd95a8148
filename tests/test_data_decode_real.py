"""Real files, whole, exotic, damaged and hostile ones: decoded right, or refused with a reason."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from raygen.data import decode
from raygen.errors import DataError
from tests.ffmpeg_program import clip, needs_ffmpeg, psnr

MEDIA = "exoplayer/testdata/src/test/assets/media"
RAW = "exoplayer/extensions/media2/src/androidTest/res/raw"

# Files by the reason for which they are refused; all others must decode.
REFUSED = {
    "has no video stream": 35,
    "is encrypted": 8,
    "is broken or not a video": 6,
    "holds no frame that decodes": 6,
    "is empty": 1,
}

SAMPLE = [
    ("mmaction2/demo/demo.mp4", 20),
    ("mmaction2/tests/data/test.avi", 9),
    ("mmaction2/tools/data/skeleton/S001C001P001R001A001_rgb.avi", 3),
    ("decord/examples/flipping_a_pancake.mkv", 33),
    ("decord/tests/test_data/video_0.mov", 0),
    ("decord/tests/test_data/video_90.mov", 0),
    ("decord/tests/test_data/video_180.mov", 0),
    ("decord/tests/test_data/video_270.mov", 0),
    (f"{RAW}/video_1.mp4", 1),
    (f"{RAW}/video_desks.3gp", 5),
    (f"{MEDIA}/vp9/bear-vp9-odd-dimensions.webm", 2),
    (f"{MEDIA}/vp9/roadtrip-vp92-10bit.webm", 3),
    (f"{MEDIA}/mp4/sample_av1.mp4", 2),
    (f"{MEDIA}/mp4/sample_android_slow_motion.mp4", 0),
    (f"{MEDIA}/mp4/sample_with_increasing_timestamps.mp4", 1),
    (f"{MEDIA}/mp4/sample_fragmented.mp4", 1),
    (f"{MEDIA}/mp4/portrait_4k60.mp4", 0),
    (f"{MEDIA}/ts/bbb_2500ms.ts", 3),
    (f"{MEDIA}/ts/sample_h265.ts", 1),
    (f"{MEDIA}/ts/sample_h263.ts", 2),
    (f"{MEDIA}/flv/sample.flv", 1),
    (f"{MEDIA}/mkv/sample.mkv", 1),
    (f"{MEDIA}/avi/sample.avi", 5),
    ("mp4parse/mp4parse/tests/h264_white_frame_sar_16_9.mp4", 0),
]


def test_every_file_decodes_or_is_refused_with_a_reason(shared: Path) -> None:
    files = [p for p in sorted((shared / "decode").rglob("*")) if p.is_file()]
    assert len(files) > 100
    reasons: Counter[str] = Counter()
    for path in files:
        begun = time.monotonic()
        try:
            info = decode.probe(str(path))
            seconds = min(info.duration, 1.0)
            whole = decode.decode_all(str(path), fps=8, size=32, seconds=seconds)
        except DataError as error:
            reasons[str(error).split(" (")[0]] += 1
        else:
            assert whole.shape == (decode.frame_count(seconds, 8), 32, 32, 3), path
            assert 0.01 < info.duration < 60, path
            assert 1 <= info.fps <= 240, path
        assert time.monotonic() - begun < 60, path
    assert reasons == REFUSED


def test_sources_agree(shared: Path) -> None:
    for path in sorted((shared / "decode" / "mmaction2" / "demo").glob("*.mp4")):
        with path.open("rb") as file:
            clips = [
                decode.decode(source, start=1.0, frames=8, fps=16, size=32)
                for source in (str(path), path.read_bytes(), file)
            ]
        np.testing.assert_array_equal(clips[0], clips[1])
        np.testing.assert_array_equal(clips[0], clips[2])


@pytest.mark.parametrize("name", ["demo/demo.mp4", "tests/data/test.mp4", "tests/data/test.avi"])
def test_a_span_is_that_part_of_the_whole(name: str, shared: Path) -> None:
    path = str(shared / "decode" / "mmaction2" / name)
    whole = decode.decode_all(path, fps=12, size=32, seconds=6.0)
    for first in range(0, 56, 5):
        span = decode.decode(path, start=first / 12, frames=16, fps=12, size=32)
        shared_frames = min(16, len(whole) - first)
        np.testing.assert_array_equal(span[:shared_frames], whole[first : first + 16])


@needs_ffmpeg
@pytest.mark.parametrize(("name", "first"), SAMPLE, ids=[Path(name).name for name, _ in SAMPLE])
def test_frames_are_those_of_the_ffmpeg_program(name: str, first: int, shared: Path) -> None:
    path = shared / "decode" / name
    frames = max(1, min(8, int(decode.probe(str(path)).duration * 8) - first))
    ours = decode.decode(str(path), start=first / 8, frames=frames, fps=8, size=64)
    assert psnr(ours, clip(path, [(first + k) / 8 for k in range(frames)], 64)) >= 40
