"""Super-resolution: the stage alone, its training, and a cascade as one export."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from raygen import exported
from raygen.conditions import Condition
from raygen.config import Config
from raygen.data import synthetic
from raygen.draws import Degradation, Draws
from raygen.errors import ConfigError, ExportError
from raygen.export import CONFIG, Generator, export_run, generator_of, load_generator
from raygen.models import build_critic, build_generator, enlarged
from raygen.smoke import smoke_test
from serve.api import build_api
from serve.drawing import choose
from serve.models import Models
from serve.videos import Videos
from tests.clips import moving
from tests.plain_pair import PlainPair
from tests.served import answering
from tests.small_runs import CLASSES, make_run, run_of
from tests.test_data_size import pixels

STAGE: dict[str, object] = {
    "data.size": 32,
    "data.frames": 8,
    "data.fps": 12.5,
    "model.factor": 2,
    "model.blocks": 1,
    "model.generator_width": 8,
    "model.critic_width": 8,
    "model.latent_dim": 4,
    "model.class_dim": 4,
}


def stage(**changes: object) -> Config:
    dotted = {key.replace("__", "."): value for key, value in changes.items()}
    return Config.load("superres", STAGE | dotted)


def given(x_BCTHW: Tensor, factor: int, noise: float) -> Condition:
    """The first class, and `x_BCTHW` made small, with noise of that strength on it."""
    count = len(x_BCTHW)
    lowering = Degradation(torch.full((count,), noise), torch.arange(count))
    return lowering.of(x_BCTHW, Condition.of(torch.zeros(count, dtype=torch.int64)), factor)


def noise_clips(config: Config, count: int = 2) -> Tensor:
    shape = (count, 3, config.data.frames, config.data.height, config.data.width)
    return torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.mark.parametrize(("size", "factor"), [(32, 2), ("64x128", 4), (128, 8)])
def test_it_begins_as_bilinear_interpolation(size: int | str, factor: int) -> None:
    config = stage(data__size=size, data__frames=4, model__factor=factor)
    x_BCTHW = noise_clips(config)
    y_B = given(x_BCTHW, factor, 0.0)
    low_BCTHW = y_B.low_BCTHW
    assert low_BCTHW is not None
    side = config.data.height // factor
    assert low_BCTHW.shape[3:] == (side, config.data.width // factor)
    # Area averages, by the definition.
    corner = x_BCTHW[:, :, :, :factor, :factor].mean((3, 4))
    torch.testing.assert_close(low_BCTHW[:, :, :, 0, 0], corner)
    generator = build_generator(config.model, config.data, 3).eval()
    drawn_BCTHW = generator(torch.randn(2, 4), y_B)
    torch.testing.assert_close(drawn_BCTHW, enlarged(low_BCTHW, x_BCTHW.shape[3:]))


def test_every_weight_learns_after_the_first_step() -> None:
    config = stage(conditions__kinds=["class", "vector"], conditions__vector_dim=5)
    torch.manual_seed(0)
    networks = [
        build(config.model, config.data, 3, config.conditions)
        for build in (build_generator, build_critic)
    ]
    generator, critic = networks
    for layer in (generator.finish.picture, generator.finish.detail):  # type: ignore[union-attr]
        torch.nn.init.normal_(layer.weight, std=0.1)  # type: ignore[union-attr, arg-type]
    x_BCTHW = noise_clips(config, 4)
    y_B = given(x_BCTHW, 2, 0.05)._replace(vector_BV=torch.randn(4, 5))
    # Both kinds, either, none: what stands for their absence learns too.
    kinds = torch.tensor([[1, 0, 0, 1], [1, 0, 0, 0], [0, 0, 0, 1], [0, 0, 0, 0]], dtype=torch.bool)
    y_B = y_B._replace(given_BK=kinds)
    critic(generator(torch.randn(4, 4), y_B), y_B).square().sum().backward()
    for network in networks:
        for name, parameter in network.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
            assert parameter.grad.any(), name


def test_the_critic_looks_at_the_small_clip_and_the_generator_at_its_noise() -> None:
    config = stage()
    torch.manual_seed(0)
    generator = build_generator(config.model, config.data, 3).eval()
    critic = build_critic(config.model, config.data, 3)
    torch.nn.init.normal_(generator.finish.detail.weight)  # type: ignore[union-attr, arg-type]
    x_BCTHW = noise_clips(config)
    y_B, z_BD = given(x_BCTHW, 2, 0.0), torch.randn(2, 4)
    other = given(x_BCTHW.flip(0), 2, 0.0)
    assert (critic(x_BCTHW, y_B) - critic(x_BCTHW, other)).abs().min() > 1e-6
    told = y_B._replace(noise_B=torch.full((2,), 0.1))
    assert (generator(z_BD, y_B) - generator(z_BD, told)).abs().mean() > 1e-4
    assert (generator(z_BD, y_B) - generator(z_BD.flip(0), y_B)).abs().mean() > 1e-4


def test_frames_are_enlarged_each_by_itself() -> None:
    config = stage()
    torch.manual_seed(0)
    generator = build_generator(config.model, config.data, 3).eval()
    torch.nn.init.normal_(generator.finish.detail.weight)  # type: ignore[union-attr, arg-type]
    y_B, z_BD = given(noise_clips(config), 2, 0.0), torch.randn(2, 4)
    assert y_B.low_BCTHW is not None
    longer = y_B._replace(low_BCTHW=torch.cat([y_B.low_BCTHW, y_B.low_BCTHW.flip(2)], 2))
    torch.testing.assert_close(generator(z_BD, longer)[:, :, :8], generator(z_BD, y_B))


def test_the_noise_is_drawn_once_a_clip_and_alike_however_batches_are_cut() -> None:
    config = Config.parse(stage().dump(), {"train.batch_size": 4})
    x_BCTHW, labels_B = noise_clips(config, 4), torch.arange(4) % 3
    whole = Draws.at(config, 7, slice(0, 4))
    for turn in (whole.critic[0], whole.generator):
        assert turn.low is not None
        made = turn.low.of(x_BCTHW, Condition.of(labels_B), 2)
        clean = Degradation(torch.zeros(4), turn.low.seed_B).of(x_BCTHW, Condition.of(labels_B), 2)
        assert made.low_BCTHW is not None
        assert clean.low_BCTHW is not None
        assert made.noise_B is not None
        noise = made.low_BCTHW - clean.low_BCTHW
        torch.testing.assert_close(noise, noise[:, :, :1].expand_as(noise))
        measured_B = noise.flatten(1).std(1)
        torch.testing.assert_close(measured_B, made.noise_B, rtol=0.1, atol=1e-3)
        assert 0 <= float(made.noise_B.min()) < float(made.noise_B.max()) <= 0.1
        part = turn.low[slice(2, 4)].of(x_BCTHW[2:], Condition.of(labels_B[2:]), 2)
        assert part.low_BCTHW is not None
        assert torch.equal(part.low_BCTHW, made.low_BCTHW[2:])
    assert Draws.at(Config.load("tiny"), 7, slice(0, 4)).generator.low is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data.size": 48}, r"model\.factor=2 .* data\.size=48 must be multiples of 32"),
        ({"conditions.kinds": ["class", "image"]}, "superres takes no first frame"),
        ({"model.noise_drawn": 0.5}, "noise_drawn=0.5 is more than noise=0.1"),
        ({"model.factor": 3}, r"model\.factor: must be 2, 4 or 8 \(got 3\)"),
    ],
)
def test_what_cannot_be_is_one_line(changes: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        Config.load("superres", STAGE | changes)
    assert "\n" not in str(caught.value)


def test_other_families_have_no_clip_to_be_like() -> None:
    with pytest.raises(ConfigError, match=r"loss\.pixels needs a real clip .* loss\.pixels=0$"):
        Config.load("tiny", {"loss.pixels": 1})


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Two threads of a small network wait for each other on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def energy(x_BCTHW: Tensor) -> float:
    """The mean squared difference of neighbouring pixels: of edges, for the most part."""
    return float(x_BCTHW.diff(dim=3).square().mean() + x_BCTHW.diff(dim=4).square().mean())


def psnr(x_BCTHW: Tensor, real_BCTHW: Tensor) -> float:
    """Decibels, the mean over clips."""
    error_B = (x_BCTHW - real_BCTHW).square().mean((1, 2, 3, 4))
    return float(10 * torch.log10(4 / error_B).mean())


def rendered(seeds: range, frames: int = 4) -> tuple[Tensor, Tensor]:
    """Shapes of six classes, 32x32."""
    names = synthetic.class_names(6)
    clips = [moving(names[k % 6], k, frames=16, size=32)[4 : 4 + frames] for k in seeds]
    x_BTHWC = torch.from_numpy(np.stack(clips)).float() / 127.5 - 1
    return x_BTHWC.permute(0, 4, 1, 2, 3), torch.tensor([k % 6 for k in seeds])


def sharpened(steps: int, width: int, batch: int) -> tuple[float, float]:
    """After so many steps: PSNR of new clips over bilinear's, dB, and edges over bilinear's."""
    config = stage(
        data__frames=4,
        model__blocks=2,
        model__generator_width=width,
        model__critic_width=width,
        model__noise=0.05,
        model__noise_drawn=0.0,
        train__batch_size=batch,
        train__micro_batch=None,
        optim__generator__lr=2e-3,
        optim__critic__lr=1e-3,
    )
    pair = PlainPair(config, 6, torch.device("cpu"))
    x_BCTHW, y_B = rendered(range(96))
    for step in range(steps):
        rows = torch.randperm(96, generator=torch.Generator().manual_seed(step))[:batch]
        draws = Draws.at(config, step, slice(0, batch))
        pair.step([(x_BCTHW[rows], y_B[rows])], draws, step=step, progress=step / steps)
    real_BCTHW, y_B = rendered(range(1000, 1024))
    small = given(real_BCTHW, 2, 0.0)._replace(labels_B=y_B)
    assert small.low_BCTHW is not None
    bilinear_BCTHW = enlarged(small.low_BCTHW, (32, 32))
    z_BD = torch.randn(24, 4, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        made_BCTHW = pair.generator.eval()(z_BD, small)
    gained = psnr(made_BCTHW, real_BCTHW) - psnr(bilinear_BCTHW, real_BCTHW)
    assert energy(bilinear_BCTHW) < 0.5 * energy(real_BCTHW), "there is something to sharpen"
    assert energy(made_BCTHW) < 1.2 * energy(real_BCTHW), "no more edges than there are"
    return gained, energy(made_BCTHW) / energy(bilinear_BCTHW)


@pytest.mark.usefixtures("one_thread")
def test_it_sharpens_within_a_few_steps() -> None:
    gained, edges = sharpened(60, width=8, batch=4)
    assert gained > 0.05
    assert edges > 1.04


def cascade(folder: Path, kind: str = "strided", **changes: object) -> tuple[Generator, Generator]:
    """A base of 16 pixels, and the export of a stage over it, with random weights."""
    base = str(folder / "base")
    export_run(make_run(str(folder / "runs"), kind), base)
    config = stage(storage=str(folder / "runs"), model__base=base, **changes)
    exported.keep_base(config, CLASSES)
    export_run(run_of(config), str(folder / "out"))
    return load_generator(base), load_generator(str(folder / "out"))


def test_a_cascade_is_one_export(tmp_path: Path) -> None:
    base, both = cascade(tmp_path, model__noise_drawn=0.0)
    assert smoke_test(both) > 0
    small, large = (generator.generate([7, 8], [2, 0]) for generator in (base, both))
    assert large.shape == (2, 8, 32, 32, 3)
    # The same seeds: untrained, the stage enlarges what the base draws.
    low = torch.from_numpy(small).permute(0, 4, 1, 2, 3).float()
    up = enlarged(low, (32, 32)).permute(0, 2, 3, 4, 1).numpy()
    assert np.abs(up - large).max() < 1.6, "rounded once, and not twice"
    # To the bit in any company, and beside the run it comes from.
    assert np.array_equal(both.generate([8], [0])[0], large[1])
    run = make_run(str(tmp_path / "runs"), name="other")
    assert run.uri != str(tmp_path / "runs" / "superres")
    between = both.interpolate(3, (7, 8), (2, 0))
    assert np.abs(between[[0, 2]].astype(int) - large).max() <= 1
    document = json.loads((tmp_path / "out" / CONFIG).read_text())
    assert (document["format"], document["base"]["name"]) == (3, "small")
    assert exported.latent_dims(document) == [8, 4]
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"on the clips of 16x16 pixels of `small` (strided, {base.digest})" in card
    assert "32x32 pixels" in card


def test_the_base_is_kept_within_the_run(tmp_path: Path) -> None:
    _, both = cascade(tmp_path)
    config = stage(storage=str(tmp_path / "runs"), model__base=str(tmp_path / "base"))
    for path in (tmp_path / "base").iterdir():
        path.unlink()
    exported.keep_base(config, CLASSES)  # there already
    from raygen.runs import Run

    again = generator_of(Run.open(str(tmp_path / "runs" / "superres")))
    assert again.digest == both.digest
    assert np.array_equal(again.generate([1], [1]), both.generate([1], [1]))


def test_noise_on_drawn_clips_is_one_still_pattern(tmp_path: Path) -> None:
    _, plain = cascade(tmp_path / "plain", model__noise_drawn=0.0)
    _, noisy = cascade(tmp_path / "noisy", model__noise_drawn=0.1)
    first, second = (g.generate([1, 2], [0, 1]).astype(int) for g in (plain, noisy))
    noise = second - first
    assert np.abs(noise).mean() > 2
    inside = (second > 0) & (second < 255)
    assert np.abs(noise - noise[:1, :1])[inside & inside[:1, :1]].max() <= 1


def test_clips_of_any_length_where_the_base_draws_them(tmp_path: Path) -> None:
    _, both = cascade(tmp_path, "residual")
    trained = both.generate([3], [1])
    longer = both.generate([3], [1], times=both.times(64, None))
    assert longer.shape == (1, 64, 32, 32, 3)
    assert np.abs(longer[:, :8].astype(int) - trained).max() <= 1
    _, fixed = cascade(tmp_path / "fixed")
    with pytest.raises(ConfigError, match="draws 8 frames"):
        fixed.times(64, None)


def test_a_cascade_of_three(tmp_path: Path) -> None:
    cascade(tmp_path)
    changes = {"name": "third", "storage": str(tmp_path / "runs"), "data__size": 64}
    config = stage(**changes, model__base=str(tmp_path / "out"))
    exported.keep_base(config, CLASSES)
    export_run(run_of(config), str(tmp_path / "third"))
    third = load_generator(str(tmp_path / "third"))
    assert third.generate([1], [1]).shape == (1, 8, 64, 64, 3)
    assert exported.latent_dims(third.document) == [8, 4, 4]


def test_a_base_that_does_not_fit_is_one_line(tmp_path: Path) -> None:
    base = str(tmp_path / "base")
    export_run(make_run(str(tmp_path / "runs")), base)
    at = {"storage": str(tmp_path / "runs"), "model__base": base}
    for changes, classes, words in (
        ({"data__size": 64}, CLASSES, "data.size=16, .*: data.size=32 is needed"),
        ({"data__frames": 4}, CLASSES, "data.frames=8, .*: data.frames=4 is needed"),
        ({"data__fps": 8}, CLASSES, "data.fps=12.5, "),
        ({"conditions__kinds": ["class", "text"]}, CLASSES, "has conditions="),
        ({}, ["bend", "jump"], "has classes="),
        ({"model__base": ""}, CLASSES, "model.base is empty: name the export"),
    ):
        with pytest.raises(ConfigError, match=words) as caught:
            exported.keep_base(stage(**(at | changes)), classes)
        assert "\n" not in str(caught.value)
    with pytest.raises(ExportError, match="no export at"):
        exported.keep_base(stage(**(at | {"model__base": str(tmp_path)})), CLASSES)


def test_a_cascade_is_served(tmp_path: Path) -> None:
    _, both = cascade(tmp_path)
    drawer = choose(both, "float32 channels_last batch=1,2 threads=1")
    assert drawer.drawing.channels_last
    models = Models(str(tmp_path / "out"), "cpu", "plain")
    with answering(build_api(models, Videos(tmp_path / "videos"), [])) as url:
        with urllib.request.urlopen(f"{url}/v1/models/best") as answer:
            card = json.load(answer)
        assert (card["size"], card["any_length"]) == (32, False)
        with urllib.request.urlopen(f"{url}/v1/models/best/clips/7?format=mp4") as answer:
            assert pixels(answer.read()) == (8, 32, 32)
