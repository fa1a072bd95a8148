"""Each mistake that a user can make: one line on standard error, the exit code, nothing left."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import pytest

from raygen.export import export_run
from tests.conftest import user_environment
from tests.small_runs import make_run


def raygen(
    *arguments: str, cwd: Path = Path(), environment: Mapping[str, str] = MappingProxyType({})
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "raygen", *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=120,
        env=user_environment() | dict(environment),
    )


def refused(result: subprocess.CompletedProcess[str], code: int, said: str) -> None:
    assert result.returncode == code, result.stderr
    assert "Traceback" not in result.stderr
    assert re.search(said, result.stderr), result.stderr
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("raygen: ")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train", "tinny"], "no preset 'tinny'; did you mean tiny"),
        (["train", "tiny"], "data.uri is empty"),
        (["train", "tiny", "optim.generator.rl=1"], "did you mean optim.generator.lr"),
        (["train", "tiny", "optim.generator.lr=-1"], r"greater than 0 \(got -1\)"),
        (["train", "tiny", "train.node=g5.tiny"], "no price for nodes of type 'g5.tiny'"),
        (["train", "tiny", "tracking.kind=excel"], "'tensorboard', 'wandb' or 'mlflow'"),
        (["config", "nothing.yaml"], "cannot read nothing.yaml"),
    ],
)
def test_a_wrong_word_is_exit_2(arguments: list[str], said: str) -> None:
    refused(raygen(*arguments), 2, said)


def test_a_missing_bucket(s3: str) -> None:
    del s3  # the server is up and its address in the environment
    refused(raygen("data", "scan", "s3://no-such-bucket/x", "-o", "x.parquet"), 1, "no bucket")
    assert not Path("x.parquet").exists()


def test_no_credentials(s3: str, tmp_path: Path) -> None:
    none = str(tmp_path / "none")
    environment = {
        "AWS_ACCESS_KEY_ID": "",
        "AWS_SECRET_ACCESS_KEY": "",
        "AWS_SHARED_CREDENTIALS_FILE": none,
        "AWS_CONFIG_FILE": none,
    }
    result = raygen("train", "tiny", f"data.uri={s3}/clips", environment=environment)
    refused(result, 1, "no AWS credentials")


def test_an_empty_prefix(s3: str) -> None:
    refused(raygen("train", "tiny", f"data.uri={s3}/nothing"), 1, "no video below s3://")


def test_no_clip_that_decodes(tmp_path: Path) -> None:
    for k in range(3):
        (tmp_path / f"{k}.mp4").write_bytes(b"<html>403</html>" * 50)
    runs = tmp_path / "runs"
    result = raygen("train", "tiny", f"data.uri={tmp_path}", f"storage={runs}")
    refused(result, 1, "none of the 3 videos .* can be used: 3 x is broken")
    assert not runs.exists()


def test_clips_that_are_too_short(shapes: Path) -> None:
    result = raygen("train", "tiny", f"data.uri={shapes}", "data.fps=4")
    refused(result, 1, "none of the 12 videos .* can be used: 12 x too short")


def test_storage_that_cannot_be_written(shapes: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    result = raygen("train", "tiny", f"data.uri={shapes}", f"storage={tmp_path}/file/runs")
    refused(result, 1, "cannot write .*file/runs")


def test_more_workers_than_the_machine_has(shapes: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    overrides = [f"data.uri={shapes}", f"storage={runs}", "train.workers=1"]
    result = raygen("train", "tiny", *overrides, "train.cpus_per_worker=999")
    refused(result, 1, r"need 999 CPUs, and Ray has \d+; lower train.cpus_per_worker")
    assert not list(runs.glob("*/run.json"))


def test_a_checkpoint_of_another_model(shapes: Path, tmp_path: Path) -> None:
    make_run(str(tmp_path), kind="strided", name="mine")
    overrides = [f"data.uri={shapes}", f"storage={tmp_path}", "name=mine", "model.kind=conv3d"]
    result = raygen("train", "tiny", *overrides)
    refused(result, 1, "has a checkpoint of step 20 with .*=.*, but this command says")


def test_a_split_that_no_video_is_of(shapes: Path) -> None:
    result = raygen("train", "tiny", f"data.uri={shapes}", "data.split=trian")
    refused(result, 1, "no video at .* is of the split 'trian'")


def test_a_cache_that_could_never_be_hit(shapes: Path) -> None:
    overrides = [f"data.uri={shapes}", "data.cache.uri=cache", "data.crop=random"]
    refused(raygen("train", "tiny", *overrides), 2, "data: crop=random never meets")


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["scan", "CLIPS", "-o", "cat.txt"], 2, "must end in .parquet"),
        (["scan", "CLIPS", "-o", "c.parquet", "--labels", "ucf:x"], 2, "must be one of folders, "),
        (["scan", "CLIPS/none", "-o", "c.parquet"], 1, "no folder at "),
        (["inspect", "CLIPS/none.parquet"], 1, "cannot read .*none.parquet"),
        (["materialize", "CLIPS", "tiny"], 2, "data.cache.uri is empty"),
    ],
)
def test_what_data_commands_are_given_by_mistake(
    arguments: list[str], code: int, said: str, shapes: Path, tmp_path: Path
) -> None:
    given = [argument.replace("CLIPS", str(shapes)) for argument in arguments]
    refused(raygen("data", *given, cwd=tmp_path), code, said)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("verb", ["evaluate", "export"])
def test_a_run_that_is_not_there(verb: str, tmp_path: Path) -> None:
    output = ["-o", str(tmp_path / "out")] if verb == "export" else []
    refused(raygen(verb, str(tmp_path / "none"), *output), 1, "no run at")
    assert not (tmp_path / "out").exists()


def test_an_export_into_a_full_folder(tmp_path: Path) -> None:
    run = make_run(str(tmp_path / "runs"))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("precious")
    refused(raygen("export", run.uri, "-o", str(tmp_path / "full")), 1, "is not empty")
    assert [p.name for p in (tmp_path / "full").iterdir()] == ["thesis.tex"]


def test_generating_what_the_model_does_not_know(tmp_path: Path) -> None:
    run = make_run(str(tmp_path / "runs"))
    export = str(tmp_path / "export")
    assert raygen("export", run.uri, "-o", export).returncode == 0
    out = tmp_path / "out.mp4"
    result = raygen("generate", export, "--class", "wav", "-o", str(out))
    refused(result, 2, "no class 'wav'; did you mean wave.*bend, jump, wave")
    refused(raygen("generate", export, "-o", "out.mp5"), 2, "cannot tell the format")
    refused(raygen("generate", str(tmp_path), "-o", str(out)), 1, "no export at")
    assert not out.exists()
    assert raygen("generate", export, "--class", "wave", "-o", str(out)).returncode == 0
    assert out.stat().st_size > 500


def test_a_text_for_a_model_of_classes(tmp_path: Path) -> None:
    export_run(make_run(str(tmp_path / "runs")), str(tmp_path / "out"))
    asked = ["generate", str(tmp_path / "out"), "--text", "a red circle", "-o", "out.mp4"]
    refused(raygen(*asked), 2, "takes no text; it was trained with class")


def test_training_from_texts_that_are_not_there(shapes: Path, tmp_path: Path) -> None:
    overrides = [f"data.uri={shapes}", f"storage={tmp_path}", "conditions.kinds=[class,text]"]
    refused(raygen("train", "tiny", *overrides), 1, "no clip has a caption; scan with captions")
