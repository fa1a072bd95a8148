"""Near duplicates, stills, black videos and cuts, among videos made to be told apart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from raygen.data import screen
from raygen.data.catalog import Catalogue
from raygen.data.scan import scan, scan_to
from raygen.data.screen import Screens
from tests.clips import Frames, encode, moving, scenery

EVERYTHING = Screens(duplicates=True, static=True, black=True, cuts=True)
CLASSES = ("red-circle-right", "blue-square-up", "yellow-circle-down", "green-triangle-pulse")


def before_scenery(name: str, seed: int, frames: int = 48, size: int = 64) -> Frames:
    """A moving shape in front of a still picture."""
    shape_THWC = moving(name, seed, frames, size)
    bright_THW1 = shape_THWC.max(-1, keepdims=True) > 100
    return np.where(bright_THW1, shape_THWC, scenery(seed, size)).astype(np.uint8)


def reasons(found: Catalogue) -> dict[str, str]:
    pairs = zip(found.table["uri"].to_pylist(), found.table["reason"].to_pylist(), strict=True)
    return {Path(uri).stem: reason for uri, reason in pairs}


def test_copies_are_found_after_scaling_and_encoding_again(tmp_path: Path) -> None:
    for number, name in enumerate(CLASSES):
        clip_THWC = before_scenery(name, number, size=128)
        (tmp_path / f"{name}.mp4").write_bytes(encode(clip_THWC, crf=18))
        (tmp_path / f"{name}-half.mp4").write_bytes(encode(clip_THWC, size=64, crf=26))
        (tmp_path / f"{name}-worse.mp4").write_bytes(encode(clip_THWC, crf=32, gop=48))
    found = scan(str(tmp_path), screens=Screens(duplicates=True))
    said = reasons(found)
    for name in CLASSES:
        assert said[name] == ""
        for copy in ("half", "worse"):
            assert said[f"{name}-{copy}"] == f"is a near duplicate of {tmp_path / name}.mp4"
    assert found.refused == {"is a near duplicate": 8}
    assert len(found.usable(0)) == 4


def test_distinct_clips_of_one_place_are_no_duplicates(tmp_path: Path) -> None:
    # The same picture behind all of them; what moves is another thing, or goes another way.
    for number, name in enumerate(CLASSES):
        shape_THWC = moving(name, number, size=64)
        bright_THW1 = shape_THWC.max(-1, keepdims=True) > 100
        clip_THWC = np.where(bright_THW1, shape_THWC, scenery(0)).astype(np.uint8)
        (tmp_path / f"{name}.mp4").write_bytes(encode(clip_THWC))
        (tmp_path / f"{name}-back.mp4").write_bytes(encode(clip_THWC[::-1]))
    (tmp_path / "green-triangle-pulse-back.mp4").unlink()  # a pulse is its own reverse
    assert not scan(str(tmp_path), screens=Screens(duplicates=True)).refused


def test_distinct_real_clips_are_kept(shared: Path) -> None:
    found = scan(str(shared / "weizmann"), screens=EVERYTHING)
    assert not found.refused
    assert len(found) == 72


def test_stills_and_black_videos_are_found(tmp_path: Path) -> None:
    still_THWC = np.repeat(scenery(1, size=128)[None], 48, axis=0)
    grain = np.random.default_rng(0).normal(0, 4, still_THWC.shape)
    dark_THWC = moving("red-circle-right", 0) // 16
    videos = {
        "moving": moving("red-circle-right", 0),
        "slow": before_scenery("red-circle-right", 0, frames=160),
        "still": still_THWC,
        "grain": np.clip(still_THWC + grain, 0, 255).astype(np.uint8),
        "black": np.zeros_like(still_THWC),
        "dark": dark_THWC,
    }
    for name, clip_THWC in videos.items():
        (tmp_path / f"{name}.mp4").write_bytes(encode(clip_THWC))
    said = reasons(scan(str(tmp_path), screens=Screens(static=True, black=True)))
    assert said["moving"] == said["slow"] == ""
    assert said["still"] == said["grain"] == "hardly moves"
    assert said["black"] == said["dark"] == "is black"
    only = reasons(scan(str(tmp_path), screens=Screens(static=True)))
    assert only["black"] == "hardly moves"


@pytest.mark.parametrize("lengths", [(40, 40), (37, 55, 30)])
def test_cuts_are_found_to_the_frame(tmp_path: Path, lengths: tuple[int, ...]) -> None:
    shots = [before_scenery("red-circle-right", k, frames=n) for k, n in enumerate(lengths)]
    (tmp_path / "cut.mp4").write_bytes(encode(np.concatenate(shots), fps=16))
    (tmp_path / "whole.mp4").write_bytes(encode(before_scenery("red-circle-right", 7, 80)))
    found = scan(str(tmp_path), screens=Screens(cuts=True))
    cut, whole = found.table["cuts"].to_pylist()
    assert whole == []
    expected = np.cumsum(lengths)[:-1] / 16
    np.testing.assert_allclose(cut, expected, atol=0.01)
    longest = max(lengths) / 16
    assert len(found.usable(longest - 0.01).table) >= 1
    assert str(tmp_path / "cut.mp4") in found.usable(longest - 0.02).table["uri"].to_pylist()
    assert str(tmp_path / "cut.mp4") not in found.usable(longest + 0.1).table["uri"].to_pylist()


def test_what_was_seen_is_kept_for_the_next_scan(tmp_path: Path) -> None:
    for name in CLASSES[:2]:
        (tmp_path / f"{name}.mp4").write_bytes(encode(moving(name, 0)))
    (tmp_path / "still.mp4").write_bytes(encode(np.repeat(scenery(0)[None], 32, axis=0)))
    output = str(tmp_path / "c.parquet")
    root = str(tmp_path)
    scan_to(root, output)
    assert scan_to(root, output, previous=output, screens=Screens(static=True)).probed == 3
    assert Catalogue.read(output).refused == {"hardly moves": 1}
    (tmp_path / "new.mp4").write_bytes(encode(moving(CLASSES[0], 0), crf=30))
    assert scan_to(root, output, previous=output, screens=EVERYTHING).probed == 1
    assert Catalogue.read(output).refused == {"hardly moves": 1, "is a near duplicate": 1}
    assert scan_to(root, output, previous=output).probed == 0
    assert not Catalogue.read(output).refused


def test_many_alike_are_compared_in_little_time(tmp_path: Path) -> None:
    clip_THWC = moving("red-circle-right", 0, frames=16)
    data = encode(clip_THWC)
    for number in range(150):
        (tmp_path / f"{number:03d}.mp4").write_bytes(data)
    said = reasons(scan(str(tmp_path), screens=Screens(duplicates=True)))
    kept = [name for name, reason in said.items() if not reason]
    assert "000" in kept
    assert len(kept) <= 150 // screen.WINDOW + 1


def test_a_video_that_breaks_half_way_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"<html>")
    (tmp_path / "b.mp4").write_bytes(encode(moving("red-circle-right", 0)))
    said = reasons(scan(str(tmp_path), screens=EVERYTHING))
    assert said["a"].startswith("is broken or not a video")
    assert said["b"] == ""
