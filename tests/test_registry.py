"""A registry on a disk and on S3: what is published, what is the best, what never goes live."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors

from raygen.cli import app, invoke
from raygen.data import store
from raygen.errors import ConfigError, ExportError, StorageError
from raygen.export import CONFIG, WEIGHTS, export_run, load_generator
from raygen.registry import Registry
from raygen.registry_cli import publisher
from raygen.releases import FIGURES, RANKED, Limit
from raygen.smoke import smoke_test
from tests.small_runs import judged, make_export, make_run
from tests.test_cli_errors import raygen, refused


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Three exports of one name: scores 30, 10 and 20."""
    folder = tmp_path_factory.mktemp("exports")
    return [
        make_export(str(folder / f"e{seed}"), seed=seed, evaluation=judged(frechet))
        for seed, frechet in enumerate([30.0, 10.0, 20.0])
    ]


@pytest.fixture(params=["disk", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "disk":
        return str(tmp_path / "registry")
    return f"{request.getfixturevalue('s3')}/registry"


def live(place: str, name: str = "small") -> str:
    found = Registry(place).refresh()[name].live
    return "" if found is None else found.digest


def test_the_best_is_live_and_is_what_was_published(exports: list[str], place: str) -> None:
    registry = Registry(place)
    versions = [registry.publish(export) for export in exports]
    shelf = Registry(place).refresh()["small"]
    assert shelf.live == shelf.best == versions[1]
    assert versions[1].figures["score"] == 10.0
    loaded = registry.load(versions[1]).generate([7], [1])
    assert np.array_equal(loaded, load_generator(exports[1]).generate([7], [1]))


def test_what_the_best_is_can_be_changed_and_told_by_limits(exports: list[str], place: str) -> None:
    registry = Registry(place)
    a, b, c = (registry.publish(export).digest for export in exports)
    assert registry.rank("small", limits=["frechet>=15"]).live == registry.refresh()["small"].find(
        c
    )
    registry.rank("", "class_accuracy")
    assert live(place) == a  # all have the same: the oldest, of those that meet the limit
    registry.rank("small", "score", [])
    assert live(place) == b
    registry.rank("small", limits=["frechet>=99"])
    assert live(place) == ""
    with pytest.raises(ConfigError, match="did you mean score"):
        registry.rank("small", "scores")
    with pytest.raises(ConfigError, match="no limit"):
        registry.rank("small", limits=["clip_ms=2"])


def test_rollback_goes_back_step_by_step_and_follow_ends_it(exports: list[str], place: str) -> None:
    registry = Registry(place)
    a = registry.publish(exports[0]).digest
    c = registry.publish(exports[2]).digest
    b = registry.publish(exports[1]).digest
    assert (live(place), registry.rollback("small").live) == (
        b,
        registry.refresh()["small"].find(c),
    )
    assert live(place) == c
    registry.rollback("")
    assert live(place) == a
    with pytest.raises(ConfigError, match="nothing was live of small before"):
        registry.rollback("small")
    registry.pin("small", "")
    assert live(place) == b


def test_what_is_yanked_never_comes_back(exports: list[str], place: str) -> None:
    registry = Registry(place)
    a, b, c = (registry.publish(export).digest for export in exports)
    registry.pin("small", b)
    registry.canary("small", b, 0.5)
    shelf = registry.yank("small", b[:5], "a face in it")
    assert (shelf.live, shelf.pinned, shelf.canary) == (shelf.versions[c], "", "")
    registry.yank("small", c, "and here")
    assert live(place) == a
    for change in (lambda: registry.pin("small", b), lambda: registry.canary("small", b, 0.1)):
        with pytest.raises(ConfigError, match="was yanked: a face in it"):
            change()
    with pytest.raises(ConfigError, match="was yanked"):
        registry.publish(exports[1])
    with pytest.raises(ConfigError, match="nothing was live"):
        registry.rollback("small")


def test_two_models_and_one_judged_again(exports: list[str], tmp_path: Path, place: str) -> None:
    registry = Registry(place)
    registry.publish(exports[0])
    registry.publish(exports[1], "other")
    with pytest.raises(ConfigError, match="several models: name one of small, other"):
        registry.rollback("")
    again = make_export(str(tmp_path / "again"), seed=0, evaluation=judged(5.0))
    version = registry.publish(again)
    (kept,) = Registry(place).refresh()["small"].versions.values()
    assert kept == version
    assert kept.figures["score"] == 5.0


def poisoned(export: str, folder: Path, how: str) -> str:
    """A copy of the export with something wrong, its checksums right where that is possible."""
    document = json.loads(Path(export, CONFIG).read_text())
    weights = Path(export, WEIGHTS).read_bytes()
    tensors = load_safetensors(weights)
    name = next(key for key, tensor in tensors.items() if tensor.dim() > 2)
    if how == "nan":
        tensors[name].view(-1)[0] = torch.nan
    elif how == "overflow":  # finite weights, and clips that are not
        tensors = {key: torch.full_like(tensor, 1e38) for key, tensor in tensors.items()}
    elif how == "grey":
        tensors = {key: torch.zeros_like(tensor) for key, tensor in tensors.items()}
    elif how == "shape":
        tensors[name] = tensors[name][:1].clone()
    changed = weights[:-100] if how == "truncated" else save_safetensors(tensors)
    if how == "pickle":
        changed = b"\x80\x04\x95" + weights
    if how != "truncated":
        document["sha256"] = hashlib.sha256(changed).hexdigest()
    folder.mkdir()
    (folder / WEIGHTS).write_bytes(changed)
    (folder / CONFIG).write_text(json.dumps(document))
    (folder / "README.md").write_text("")
    return str(folder)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("nan", "not all numbers"),
        ("overflow", "not all numbers"),
        ("grey", "nothing but grey level"),
        ("shape", "size mismatch"),
        ("truncated", "damaged"),
        ("pickle", "no complete export"),
    ],
)
def test_a_poisoned_model_is_not_published(
    exports: list[str], tmp_path: Path, how: str, said: str
) -> None:
    place = str(tmp_path / "registry")
    with pytest.raises(ExportError, match=said):
        Registry(place).publish(poisoned(exports[0], tmp_path / how, how))
    assert not Path(place).exists()


def test_a_slow_model_is_not_published(exports: list[str], tmp_path: Path) -> None:
    registry = Registry(str(tmp_path / "registry"))
    registry.publish(exports[0])
    registry.rank("small", limits=["clip_ms<=0.001"])
    with pytest.raises(ExportError, match=r"takes \d+ ms, and 0.001 are the limit"):
        registry.publish(exports[1])
    assert list(registry.refresh()["small"].versions) == [load_generator(exports[0]).digest]


def test_models_that_take_anything_are_tested_by_it(tmp_path: Path) -> None:
    conditions = {"kinds": ["class", "text", "image", "vector"], "vector_dim": 3}
    export = make_export(str(tmp_path / "all"), conditions=conditions)
    assert smoke_test(load_generator(export)) > 0


def test_what_was_altered_in_the_registry_does_not_load(exports: list[str], place: str) -> None:
    registry = Registry(place)
    version = registry.publish(exports[0])
    config = store.join(registry.folder(version), CONFIG)
    document = json.loads(store.read_bytes(config))
    store.write_bytes(config, json.dumps(document | {"fps": 99}).encode())
    with pytest.raises(ExportError, match="is not what was published"):
        registry.load(version)


def test_of_publishers_at_once_none_is_lost(exports: list[str], place: str) -> None:
    names = [f"m{number}" for number in range(4)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda name: Registry(place).publish(exports[0], name), names))
    assert sorted(Registry(place).refresh()) == names
    entries = [item.uri[-13:] for item in store.list_objects(store.join(place, "log"))]
    assert entries == [f"{number:08d}.json" for number in range(1, 5)]


def test_a_publisher_that_is_killed_leaves_nothing_visible(
    exports: list[str], tmp_path: Path
) -> None:
    """SIGKILL when the weights lie there and the event does not."""
    place = str(tmp_path / "registry")
    Registry(place).publish(exports[0])
    code = f"""
import os, signal
from raygen.data import store
from raygen.registry import Registry
write = store.write_bytes
def until_the_event(uri, data, **options):
    if "/log/" in uri:
        os.kill(os.getpid(), signal.SIGKILL)
    return write(uri, data, **options)
store.write_bytes = until_the_event
Registry({place!r}).publish({exports[1]!r})
"""
    result = subprocess.run([sys.executable, "-c", code], env=os.environ, timeout=300)
    assert result.returncode == -signal.SIGKILL
    digest = load_generator(exports[1]).digest
    assert digest not in Registry(place).refresh()["small"].versions
    assert any(
        json.loads(store.read_bytes(item.uri))["sha256"].startswith(digest)
        for item in store.list_objects(store.join(place, "models"))
        if item.uri.endswith(CONFIG)
    )  # the weights are there
    assert Registry(place).publish(exports[1]) == Registry(place).refresh()["small"].live


def test_rolling_back_at_once_goes_back_once(exports: list[str], tmp_path: Path) -> None:
    place = str(tmp_path / "registry")
    for export in (exports[0], exports[2], exports[1]):
        Registry(place).publish(export)
    registries = [Registry(place) for _ in range(4)]
    for registry in registries:
        registry.refresh()
    barrier, refusals = threading.Barrier(4), []

    def roll(registry: Registry) -> None:
        barrier.wait()
        try:
            registry.rollback("small")
        except ConfigError as error:
            refusals.append(str(error))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(roll, registries))
    shelf = Registry(place).refresh()["small"]
    # Each either saw the same model live as the first, and was refused, or came later.
    steps = 4 - len(refusals)
    assert 1 <= steps <= 2
    assert shelf.live == shelf.find(load_generator(exports[[1, 2, 0][steps]]).digest)


def test_a_damaged_log_and_no_registry_are_said(exports: list[str], place: str) -> None:
    with pytest.raises(StorageError, match="no registry at"):
        Registry(place).refresh()
    Registry(place).publish(exports[0])
    store.write_bytes(store.join(place, "log", "00000002.json"), b'{"event": "published"}')
    with pytest.raises(StorageError, match=r"00000002\.json is damaged"):
        Registry(place).refresh()


@pytest.mark.parametrize("name", ["best", "a/b", "", ".hidden", "x" * 65])
def test_names(exports: list[str], tmp_path: Path, name: str) -> None:
    registry = Registry(str(tmp_path / "registry"))
    if not name:
        assert registry.publish(exports[0], name).name == "small"
        return
    with pytest.raises(ConfigError, match="is no name for a model"):
        registry.publish(exports[0], name)


def test_limits_and_figures() -> None:
    assert str(Limit.parse(" clip_ms <= 200")) == "clip_ms<=200"
    assert not Limit.parse("clip_ms<=200").holds({})
    assert Limit.parse("recall>=0.5").holds({"recall": 0.5})
    assert set(RANKED) <= set(FIGURES)


def command(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What the command prints; one that fails raises SystemExit."""
    with pytest.raises(SystemExit) as ended:
        invoke("raygen", app, list(arguments))
    assert ended.value.code == 0, capsys.readouterr().err
    return capsys.readouterr().out


def test_the_commands(
    exports: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = str(tmp_path / "registry")
    a, b, _ = (load_generator(export).digest for export in exports)
    assert "live: the best by score" in command(capsys, "publish", exports[0], place)
    assert "live: the best by score" in command(capsys, "publish", exports[1], place)
    worse = command(capsys, "publish", exports[2], place)
    assert f"not live: its score is 20, and {b} has 10" in worse
    (shelf,) = json.loads(command(capsys, "models", place, "--json"))
    assert (shelf["name"], shelf["live"], shelf["before"]) == ("small", b, a)
    assert f"live is {a}" in command(capsys, "models", place, "--rollback")
    shown = command(capsys, "models", place)
    assert "small: the best by score" in shown
    assert "live, pinned" in shown
    assert f"live is {a}" in command(capsys, "models", place, "--canary", f"{b[:6]}=0.05")
    assert "canary, 5.0%" in command(capsys, "models", place)
    assert f"live is {b}" in command(capsys, "models", place, "--follow")
    assert "live is none" in command(capsys, "models", place, "--limit", "frechet<=1")
    assert f"live is {b}" in command(capsys, "models", place, "--limit", "")
    yank = ["models", place, "--yank", b]
    with pytest.raises(SystemExit):
        invoke("raygen", app, yank)
    assert "say --why" in capsys.readouterr().err
    command(capsys, *yank, "--why", "a face in it")
    assert "yanked: a face in it" in command(capsys, "models", place)


def test_mistakes_are_one_line(tmp_path: Path) -> None:
    refused(raygen("models", str(tmp_path / "no")), 1, "no registry at")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--rollback", "--pin", "x"], "one change at a time"),
        (["--canary", "x=2"], "write DIGEST=SHARE"),
        (["--pin", "beef"], "no version 'beef' of small"),
        (["--by", "scor"], "did you mean score"),
        (["nobody", "--rollback"], "no model 'nobody' in the registry; there are small"),
    ],
)
def test_wrong_options(
    exports: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    said: str,
) -> None:
    place = str(tmp_path / "registry")
    Registry(place).publish(exports[0])
    with pytest.raises(SystemExit) as ended:
        invoke("raygen", app, ["models", place, *arguments])
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def test_a_run_is_published_as_its_export(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(str(tmp_path / "runs"))
    place = str(tmp_path / "registry")
    command(capsys, "publish", run.uri, place, "--name", "mine")
    export_run(run, str(tmp_path / "out"))
    assert live(place, "mine") == load_generator(str(tmp_path / "out")).digest


def test_what_is_trained_is_published_later_and_mistakes_are_said_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = str(tmp_path / "registry")
    with pytest.raises(ConfigError, match="'best' is no name for a model"):
        publisher(place, "best")
    with pytest.raises(StorageError, match="cannot write"):
        publisher("/proc/registry", "mine")
    publish = publisher(place, "mine")
    assert not list(Path(place).iterdir())
    run = make_run(str(tmp_path / "runs"))
    publish(run)
    assert "live: the best by score" in capsys.readouterr().out
    export_run(run, str(tmp_path / "out"))
    assert live(place, "mine") == load_generator(str(tmp_path / "out")).digest
