"""Clips that are no squares, from `data.size=32x48` to the mp4; rotated videos, the errors."""

from __future__ import annotations

import io
import json
import urllib.request
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from raygen.config import Config, DataConfig, families
from raygen.data import clipstore, decode
from raygen.data.catalog import Catalogue
from raygen.data.decoder import Decoder
from raygen.data.frames import Scaler
from raygen.data.plan import Span
from raygen.data.scan import scan
from raygen.draws import Draws
from raygen.errors import ConfigError
from raygen.export import export_run, load_generator
from raygen.generated import read_folder
from raygen.models import build_generator, parameter_count
from raygen.picture import read as read_picture
from raygen.smoke import smoke_test
from raygen.video import save as save_video
from serve.api import build_api
from serve.models import Models
from serve.videos import Videos
from tests.plain_pair import PlainPair
from tests.served import answering
from tests.small_runs import CLASSES, run_of
from tests.test_data_decode import encode
from tests.test_models import narrow

WIDE = sorted(set(families()) - {"triplane"})
SMALL = {
    "data.size": "32x48",
    "data.frames": 8,
    "model.generator_width": 8,
    "model.critic_width": 8,
    "model.latent_dim": 8,
}


@pytest.mark.parametrize(
    ("said", "size", "height", "width"),
    [
        ("data.size=64", 64, 64, 64),
        ("data.size=64x64", 64, 64, 64),
        ("data.size=64x96", "64x96", 64, 96),
        ("data.size=144x256", "144x256", 144, 256),
    ],
)
def test_a_size_is_a_side_or_both(said: str, size: object, height: int, width: int) -> None:
    config = Config.load("tiny", [said])
    assert (config.data.size, config.data.height, config.data.width) == (size, height, width)
    assert config.data.clip_bytes == 16 * height * width * 3
    assert Config.parse(config.dump()) == config
    assert config.flat()["data.size"] == size


@pytest.mark.parametrize("size", ["20x32", "32x", "x32", "8x32", "64x1024", "1x2x3", "wide", True])
def test_a_wrong_size_is_one_line(size: object) -> None:
    with pytest.raises(
        ConfigError, match=r"^data\.size: .*64x96, each a multiple of 16 \(got "
    ) as e:
        Config.load("tiny", {"data.size": size})
    assert "\n" not in str(e.value)


def test_a_family_of_squares_says_so() -> None:
    with pytest.raises(ConfigError, match=r"triplane draws squares .*take data\.size=32, or"):
        Config.load("tiny", {"model.kind": "triplane", "data.size": "32x48"})


def ramps(height: int, width: int) -> NDArray[np.uint8]:
    """Red tells the column, green the row, each from 0 to 255 over the picture."""
    picture = np.zeros((height, width, 3), np.uint8)
    picture[..., 0] = np.linspace(0, 255, width).round()
    picture[..., 1] = np.linspace(0, 255, height).round()[:, None]
    return picture


@pytest.mark.parametrize(
    ("shape", "size", "crop", "rows", "columns"),
    [
        # The shares of the picture that are to be seen, from the top and from the left.
        ((96, 96), "32x48", (0.5, 0.5), (1 / 6, 5 / 6), (0, 1)),
        ((96, 96), "32x48", (0.5, 0.0), (0, 2 / 3), (0, 1)),
        ((96, 96), "48x32", (1.0, 0.5), (0, 1), (1 / 3, 1)),
        ((96, 288), "32x48", (0.5, 0.5), (0, 1), (1 / 4, 3 / 4)),
        ((64, 96), "32x48", (0.5, 0.5), (0, 1), (0, 1)),
    ],
)
def test_a_picture_is_cut_to_the_aspect_ratio(
    shape: tuple[int, int],
    size: str,
    crop: tuple[float, float],
    rows: tuple[float, float],
    columns: tuple[float, float],
) -> None:
    frame = av.VideoFrame.from_ndarray(ramps(*shape), format="rgb24")
    picture = Scaler(size, crop, aspect=Fraction(1), megapixels=40)(frame)
    assert "x".join(map(str, picture.shape[:2])) == size
    for line, (first, last) in ((picture[0, :, 0], columns), (picture[:, 0, 1], rows)):
        np.testing.assert_allclose(line[[0, -1]], [255 * first, 255 * last], atol=7)


@pytest.mark.parametrize(("rotation", "corner"), [(90, (-1, 0)), (-90, (0, -1))])
def test_a_video_that_lies_on_its_side_comes_upright(
    rotation: int, corner: tuple[int, int]
) -> None:
    # Encoded 64 wide and 96 high, shown 96 wide: all of it fits, its corner of 24x16 as 8x12.
    data = encode([0, 6], width=64, height=96, rotation=rotation)
    frame = decode.decode(data, start=0, frames=1, fps=10, size="32x48")[0]
    red = (frame[..., 0] > 180) & (frame[..., 1] < 80)
    assert frame.shape == (32, 48, 3)
    assert red[corner]
    assert red.any(0).sum() == pytest.approx(12, abs=1)
    assert red.any(1).sum() == pytest.approx(8, abs=1)


@pytest.fixture(scope="module")
def catalogue(shapes: Path) -> Catalogue:
    return scan(str(shapes)).usable(0.5)


def decoded(catalogue: Catalogue, **data: object) -> NDArray[np.uint8]:
    decoder = Decoder(catalogue, DataConfig.model_validate({"frames": 8, "fps": 16, **data}))
    try:
        found = decoder.decode({0: Span(0, 0.25), 1: Span(5, 0.5)})
    finally:
        decoder.close()
    assert not found.refused
    clips: NDArray[np.uint8] = found.columns["clip"]
    return clips


def test_the_sandbox_and_the_cache_know_the_size(catalogue: Catalogue, tmp_path: Path) -> None:
    square = decoded(catalogue, size=48)
    wide = decoded(catalogue, size="32x48")
    # Square videos: scaled to 48x48, and a third of the rows cut away.
    assert np.array_equal(wide, square[:, :, 8:40])
    # Long ones are decoded a span at a time.
    assert np.array_equal(wide, decoded(catalogue, size="32x48", cache_mb=0))
    kept = {"cache": {"uri": str(tmp_path)}, "size": "32x48"}
    first, again = decoded(catalogue, **kept), decoded(catalogue, **kept)
    assert first.shape == wide.shape
    assert np.array_equal(first, again)
    store = clipstore.ClipStore(str(tmp_path), 10**9)
    keys = {
        size: clipstore.key("a", "b", 0, 1, DataConfig(size=size), (0.5, 0.5))
        for size in (32, 48, "32x48", "48x32")
    }
    store.close()
    assert len(set(keys.values())) == 4


@pytest.mark.parametrize("kind", WIDE)
def test_a_training_step(kind: str) -> None:
    config = Config.parse(
        narrow(kind).dump(),
        {
            "data.size": "32x48",
            "train.batch_size": 2,
            "model.frame_critic": 2,
            "augment.translate": 0.2,
            "augment.cutout": 0.3,
            "loss.gamma": 1.0,
            "loss.contrast": 0.0,
        },
    )
    pair = PlainPair(config, 3, torch.device("cpu"))
    rng = torch.Generator().manual_seed(0)
    x_BCTHW = torch.rand(2, 3, 8, 32, 48, generator=rng) * 2 - 1
    before = [p.detach().clone() for p in pair.generator.parameters()]
    batch = (x_BCTHW, torch.arange(2))
    pair.step([batch], Draws.at(config, 0, slice(0, 2)), step=0, progress=0.0)
    for network in (pair.generator, pair.critic):
        assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
    moved = zip(before, pair.generator.parameters(), strict=True)
    assert any(not torch.equal(old, new) for old, new in moved)


def test_the_size_of_a_network_follows_the_area() -> None:
    linear = []
    for size in (32, "32x48"):
        config = Config.parse(narrow("strided").dump(), {"data.size": size})
        generator: Any = build_generator(config.model, config.data, 4)
        linear.append(parameter_count(generator.project))
    assert linear[1] == 1.5 * linear[0]


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("wide")
    changes = {"storage": str(folder), "conditions.kinds": ["class", "image"]}
    run = run_of(Config.load("tiny", {**SMALL, **changes, "model.kind": "strided"}))
    export_run(run, str(folder / "out"))
    return str(folder / "out")


def pixels(data: bytes) -> tuple[int, int, int]:
    with av.open(io.BytesIO(data), "r") as container:
        frames = list(container.decode(video=0))
    return len(frames), frames[0].height, frames[0].width


def test_an_export_and_its_files(export: str, tmp_path: Path) -> None:
    generator = load_generator(export)
    assert smoke_test(generator) > 0
    picture = str(tmp_path / "photo.png")
    Image.fromarray(ramps(100, 300)).save(picture)
    frame_HWC = read_picture(picture, generator.data.size)
    np.testing.assert_allclose(frame_HWC[0, [0, -1], 0], [255 / 4, 255 * 3 / 4], atol=5)
    clips = generator.generate([1, 2], [0, 1], image=[frame_HWC, None])
    assert clips.shape == (2, 8, 32, 48, 3)
    assert np.array_equal(clips[0, 0], frame_HWC)
    save_video(str(tmp_path / "out.mp4"), clips[:1], 8, ["bend"])
    assert pixels((tmp_path / "out.mp4").read_bytes())[1:] == (32, 48)
    for name in ("grid.mp4", "sheet.png", "out.webp", "out.gif", "out.npy"):
        save_video(str(tmp_path / name), clips, 8, ["bend", "jump"])
        assert (tmp_path / name).stat().st_size > 0
    assert "8 frames of 32x48 pixels" in (Path(export) / "README.md").read_text()
    with pytest.raises(ConfigError, match=r"\(48, 32, 3\); this model takes \(32, 48, 3\)"):
        generator.generate([1], [0], image=[frame_HWC.transpose(1, 0, 2)])


def test_it_is_served(export: str, tmp_path: Path) -> None:
    models = Models(export, "cpu", "plain")
    with answering(build_api(models, Videos(tmp_path / "videos"), [])) as url:
        with urllib.request.urlopen(f"{url}/v1/models/best") as answer:
            card = json.load(answer)
        assert (card["size"], card["height"], card["width"]) == ("32x48", 32, 48)
        with urllib.request.urlopen(f"{url}/v1/models/best/clips/7?format=mp4&scale=2") as answer:
            assert pixels(answer.read()) == (8, 64, 96)


def test_folders_of_any_shape_are_judged(tmp_path: Path) -> None:
    for name in CLASSES:
        (tmp_path / name).mkdir()
        clips = np.random.default_rng(0).integers(0, 255, (3, 8, 32, 48, 3), np.uint8)
        np.save(tmp_path / name / "clips.npy", clips)
    clips, names, config = read_folder(str(tmp_path))
    assert (clips.shape, len(names), config.data.size) == ((9, 8, 32, 48, 3), 9, "32x48")
