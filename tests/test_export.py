"""Exports of runs with random weights: written, read back, and refused."""

import json
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pytest
import torch
from moto.server import ThreadedMotoServer

from raygen.config import families
from raygen.errors import ConfigError, ExportError, StorageError
from raygen.export import CONFIG, WEIGHTS, Generator, export_run, load_generator
from raygen.metrics import Evaluation
from raygen.models import build_generator
from tests.small_runs import CLASSES, make_run


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("export")
    export_run(make_run(str(folder / "runs")), str(folder / "small"))
    return str(folder / "small")


@pytest.fixture(scope="module")
def generator(exported: str) -> Generator:
    return load_generator(exported)


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    boto3.client("s3", region_name="us-east-1").create_bucket(Bucket="exports")
    yield "s3://exports"
    server.stop()


@pytest.mark.parametrize("kind", sorted(families()))
def test_an_export_draws_what_the_run_would(kind: str, tmp_path: Path) -> None:
    run = make_run(str(tmp_path / "runs"), kind)
    export_run(run, str(tmp_path / "out"))
    clips_NTHWC = load_generator(str(tmp_path / "out")).generate([7, 8], [2, 0])

    module = build_generator(run.config.model, run.config.data, len(CLASSES))
    module.load_state_dict(run.load_ema(), strict=False)
    module.eval()
    z_ND = torch.stack([torch.randn(8, generator=torch.Generator().manual_seed(s)) for s in (7, 8)])
    with torch.no_grad():
        x_BCTHW = module(z_ND, torch.tensor([2, 0]))
    expected = ((x_BCTHW + 1) * 127.5).permute(0, 2, 3, 4, 1).numpy()
    assert clips_NTHWC.shape == (2, 8, 16, 16, 3)
    assert clips_NTHWC.dtype == np.uint8
    assert np.abs(clips_NTHWC - expected).max() < 0.51


def test_the_same_seed_gives_the_same_clip_whatever_the_batch(generator: Generator) -> None:
    seeds, labels = list(range(11)), [seed % 3 for seed in range(11)]
    together = generator.generate(seeds, labels)
    alone = np.concatenate(
        [generator.generate([s], [k]) for s, k in zip(seeds, labels, strict=True)]
    )
    assert np.array_equal(together, alone)
    assert np.array_equal(together[::-1], generator.generate(seeds[::-1], labels[::-1]))
    assert len({clip.tobytes() for clip in together}) == 11


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_same_seed_gives_the_same_clip_on_a_gpu(exported: str) -> None:
    generator = load_generator(exported, "cuda")
    together = generator.generate(range(11), [1] * 11)
    assert np.array_equal(together[9:], generator.generate([9, 10], [1, 1]))


def test_largest_seed(generator: Generator) -> None:
    assert generator.generate([2**63 - 1], [0]).shape == (1, 8, 16, 16, 3)


def test_an_unknown_class_is_answered_with_the_nearest(generator: Generator) -> None:
    assert generator.class_id("wave") == 2
    with pytest.raises(ConfigError, match=r"'wav'; did you mean wave\?.* bend, jump, wave$"):
        generator.class_id("wav")


def test_what_an_export_says_of_itself(tmp_path: Path) -> None:
    run = make_run(str(tmp_path / "runs"))
    measured: dict[str, Any] = {f.name: 0.5 for f in fields(Evaluation) if f.type == "float"}
    evaluation = Evaluation(**measured | {"clips": 64, "real_clips": 60}, class_accuracies={})
    run.write_json("evaluation.json", evaluation.as_dict())
    export_run(run, str(tmp_path / "out"))
    generator = load_generator(str(tmp_path / "out"))
    assert (generator.name, generator.classes, generator.fps) == ("small", CLASSES, 12.5)
    assert generator.evaluation is not None
    assert generator.evaluation["clips"] == 64
    card = (tmp_path / "out" / "README.md").read_text()
    for fact in ("`jump`", "s3://clips/small", "0f" * 8, "$0.01", generator.digest, "not FVD"):
        assert fact in card
    assert len(generator.digest) == 12
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"generator.safetensors", "config.json", "README.md"}


def test_a_folder_with_something_in_it_is_refused(tmp_path: Path) -> None:
    run = make_run(str(tmp_path / "runs"))
    (tmp_path / "out").mkdir()
    export_run(run, str(tmp_path / "out"))  # an empty folder will do
    with pytest.raises(ExportError, match="is not empty"):
        export_run(run, str(tmp_path / "out"))
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ExportError, match="is not empty"):
        export_run(run, str(tmp_path / "file"))
    assert (tmp_path / "file").read_text() == "mine"


def test_a_failed_export_leaves_nothing(tmp_path: Path) -> None:
    run = make_run(str(tmp_path / "runs"))
    (tmp_path / "taken").write_text("a file where a folder is needed")
    with pytest.raises(StorageError, match="cannot write"):
        export_run(run, str(tmp_path / "taken" / "out"))
    assert {path.name for path in tmp_path.iterdir()} == {"runs", "taken"}


def test_export_to_s3_and_back(bucket: str, tmp_path: Path) -> None:
    run = make_run(f"{bucket}/runs")
    export_run(run, f"{bucket}/small")
    export_run(run, str(tmp_path / "small"))
    there, here = load_generator(f"{bucket}/small"), load_generator(str(tmp_path / "small"))
    assert there.digest == here.digest
    assert np.array_equal(there.generate([3], [1]), here.generate([3], [1]))
    with pytest.raises(ExportError, match="is not empty"):
        export_run(run, f"{bucket}/small")
    with pytest.raises(StorageError, match="no bucket 'nowhere'"):
        export_run(run, "s3://nowhere/small")


def test_no_export_there(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"no export at .*raygen export RUN"):
        load_generator(str(tmp_path))


def _damage(folder: Path, key: str, value: object) -> None:
    document = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(document | {key: value}))


def test_damaged_exports_are_one_clear_line(exported: str, tmp_path: Path) -> None:
    def copy(name: str) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        for path in Path(exported).iterdir():
            (folder / path.name).write_bytes(path.read_bytes())
        return folder

    cut = copy("cut")
    (cut / WEIGHTS).write_bytes((cut / WEIGHTS).read_bytes()[:-9])
    newer = copy("newer")
    _damage(newer, "format", 4)
    other = copy("other")
    _damage(other, "classes", ["only", "two"])
    garbled = copy("garbled")
    (garbled / CONFIG).write_text("{")
    for folder, words in (
        (cut, "is damaged"),
        (newer, "upgrade raygen"),
        (other, "no complete export"),
        (garbled, "no complete export"),
    ):
        with pytest.raises(ExportError, match=words) as caught:
            load_generator(str(folder))
        assert "\n" not in str(caught.value)
