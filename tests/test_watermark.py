"""The watermark on rendered and noisy clips: invisible, read after re-encoding, never imagined."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from raygen import video
from raygen.cli import app, invoke
from raygen.data import synthetic
from raygen.errors import DataError
from raygen.provenance import read_clip, verify
from raygen.watermark import DIGITS, Clip, bit_accuracy, detect, mark

FPS = 16
DIGEST = "0f3a91c2b07d"


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[Clip]:
    """Rendered shapes of 64x64, flat and full of edges, and one of textured noise."""
    folder = tmp_path_factory.mktemp("shapes")
    synthetic.synthesize(str(folder), synthetic.class_names(3), 1, seed=0, size=64)
    made = [read_clip(path.read_bytes())[:16] for path in sorted(folder.rglob("*.mp4"))]
    random = np.random.default_rng(0)
    coarse = random.integers(0, 256, (16, 16, 16, 3), np.uint8)
    smooth = [
        np.asarray(Image.fromarray(f).resize((64, 64), Image.Resampling.BICUBIC)) for f in coarse
    ]
    return [*made, np.stack(smooth)]


def psnr(one: Clip, other: Clip) -> float:
    error = np.mean((one.astype(np.float64) - other) ** 2)
    return float(10 * np.log10(255**2 / error))


def resized(clip: Clip, size: int) -> Clip:
    pictures = [Image.fromarray(frame).resize((size, size)) for frame in clip]
    return np.stack([np.asarray(picture) for picture in pictures])


CHANGES: dict[str, Callable[[Clip], Clip]] = {
    "none": lambda clip: clip,
    "mp4": lambda clip: read_clip(video.encode_mp4(clip, FPS)),
    "mp4 crf 28": lambda clip: read_clip(video.encode_mp4(clip, FPS, 28)),
    "mp4 twice": lambda clip: read_clip(
        video.encode_mp4(read_clip(video.encode_mp4(clip, FPS)), FPS, 28)
    ),
    "webp": lambda clip: read_clip(video.encode_webp(clip, FPS)),
    "webp quality 50": lambda clip: read_clip(video.encode_webp(clip, FPS, 50)),
    "gif": lambda clip: read_clip(video.encode_gif(clip, FPS)),
    "enlarged": lambda clip: read_clip(video.encode_mp4(video.enlarge(clip, 4), FPS, 28)),
    "twice the size": lambda clip: read_clip(video.encode_mp4(resized(clip, 128), FPS, 28)),
    "half the size": lambda clip: resized(clip, 32),
    "its end": lambda clip: clip[5:],
}


@pytest.mark.parametrize("change", CHANGES)
def test_it_survives(clips: list[Clip], change: str) -> None:
    accuracies = []
    for number, clip in enumerate(clips):
        digest = f"{number * 0x1234567 + 0xABCDEF01:08x}"[-8:]
        found = detect(CHANGES[change](mark(clip, digest)))
        assert found.present, (number, found.score)
        accuracies.append(bit_accuracy(found, digest))
    assert np.mean(accuracies) >= 0.95, accuracies


def test_it_cannot_be_seen(clips: list[Clip]) -> None:
    for clip in clips:
        marked = mark(clip, DIGEST)
        assert marked.shape == clip.shape
        assert psnr(marked, clip) > 38.5
        assert np.abs(marked.astype(int) - clip).max() <= 20


def test_nothing_is_found_where_nothing_is(clips: list[Clip]) -> None:
    """Of 300 unmarked clips none; the pilots of chance have a deviation of one."""
    random = np.random.default_rng(1)
    blank = [np.full((8, 32, 32, 3), level, np.uint8) for level in (0, 1, 127, 255)]
    noise = [random.integers(0, 256, (8, 32, 32, 3), np.uint8) for _ in range(280)]
    for clip in [*clips, *blank, *noise]:
        found = detect(clip)
        assert (found.present, found.digest) == (False, "")


def test_the_same_clip_is_marked_alike_whole_or_in_pieces(clips: list[Clip]) -> None:
    whole = mark(clips[0], DIGEST)
    pieces = np.concatenate([mark(clips[0][:8], DIGEST), mark(clips[0][8:], DIGEST)])
    assert np.array_equal(whole, pieces)


@pytest.mark.parametrize("level", [0, 255])
def test_saturated_clips_are_marked_too(level: int) -> None:
    clip = np.full((8, 64, 64, 3), level, np.uint8)
    found = detect(mark(clip, DIGEST))
    assert (found.present, found.digest) == (True, DIGEST[:DIGITS])


def test_odd_shapes() -> None:
    random = np.random.default_rng(2)
    smooth = random.integers(60, 180, (1, 40, 70, 3), np.uint8)
    assert detect(mark(smooth, DIGEST)).digest == DIGEST[:DIGITS]
    tiny = random.integers(0, 256, (3, 8, 8, 3), np.uint8)
    assert np.array_equal(mark(tiny, DIGEST), tiny)
    assert not detect(tiny).present


def test_the_command_says_what_drew_a_file(
    clips: list[Clip], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    marked, plain = tmp_path / "marked.mp4", tmp_path / "plain.webp"
    marked.write_bytes(video.encode_mp4(mark(clips[0], DIGEST), FPS, 28))
    plain.write_bytes(video.encode_webp(clips[0], FPS))

    def ask(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            invoke("raygen", app, ["verify", *arguments])
        said = capsys.readouterr()
        return int(str(ended.value.code)), said.out, said.err

    code, out, _ = ask(str(marked))
    assert code == 0
    assert "drawn by the model 0f3a91c2, says its watermark" in out
    code, out, _ = ask(str(plain), "--json")
    assert (code, json.loads(out)["present"]) == (1, False)
    text = tmp_path / "text.mp4"
    text.write_text("no clip")
    code, _, err = ask(str(text))
    assert (code, "is no clip that can be read" in err) == (1, True)


@pytest.mark.parametrize("data", [b"", b"\x93NUMPY\x01\x00", b"GIF89a", b"RIFF0000WEBPVP8 "])
def test_files_that_are_no_clips(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(data)
    with pytest.raises(DataError, match="is no clip that can be read"):
        verify(str(path))
    array = io.BytesIO()
    np.save(array, np.zeros((2, 3)))
    with pytest.raises(DataError, match="is no uint8"):
        read_clip(array.getvalue())
