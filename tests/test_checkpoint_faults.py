"""Checkpoints on storage that fails: a bucket that answers 503, a kill in the middle of an upload,
a full disk, bytes that changed. One real rank in a process of its own saves and resumes throughout.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from raygen.data import lineage, store
from raygen.errors import AccessError, CheckpointError, StorageError
from raygen.runs import EMA, STATE, Run
from tests.checkpoint_worker import Trainer, checkpoints, files_of, rows_of
from tests.s3_proxy import PASSED, S3Proxy


@pytest.fixture(scope="module")
def trainer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trainer]:
    with Trainer(tmp_path_factory.mktemp("trainer") / "log") as trainer:
        yield trainer


@pytest.fixture
def proxy(s3: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Proxy]:
    with S3Proxy(os.environ["AWS_ENDPOINT_URL"]) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        monkeypatch.setenv("RAYGEN_S3_TIMEOUT_S", "2")
        yield proxy


def consumed_once(uri: str, steps: int) -> bool:
    """Whether `consumed/` tells of every clip of `steps` steps, each once."""
    table = lineage.read(uri)
    pairs = list(zip(table["step"].to_pylist(), table["row"].to_pylist(), strict=True))
    return pairs == [(step, row) for step in range(1, steps + 1) for row in rows_of(step)]


@pytest.mark.parametrize("what", ["", "step-{step:08d}/state.json"])
def test_a_failing_bucket_costs_the_checkpoints_of_that_time(
    trainer: Trainer, s3: str, proxy: S3Proxy, what: str
) -> None:
    uri = store.join(s3, "runs", "a")
    trainer.begin(uri)
    trainer.train(2)
    assert trainer.save().saved_at == 2
    for step in (4, 6):
        put = f"PUT /{uri.removeprefix('s3://')}/{what.format(step=step)}"
        proxy.fail(put, "slowdown", times=None)
        trained = trainer.train(2)
        failed = trainer.save()
        (note,) = failed.notes
        assert note.startswith(f"step {step} is not saved: S3 kept failing on {uri}/")
        assert note.endswith(": SlowDown; training goes on, and tries again later")
        assert "\n" not in note
        assert (failed.saved_at, failed.digest) == (2, trained.digest)
        proxy.heal()
        assert checkpoints(uri) == [2]
        assert files_of(uri, step) == []
    trained = trainer.train(1)
    saved = trainer.save()
    assert (saved.saved_at, saved.notes) == (7, [])
    assert checkpoints(uri) == [2, 7]
    assert consumed_once(uri, 7)
    resumed = trainer.resume(uri)
    assert (resumed.step, resumed.digest) == (7, trained.digest)


def test_a_failing_bucket_is_noticed_when_the_leftovers_cannot_be_removed_either(
    trainer: Trainer, s3: str, proxy: S3Proxy
) -> None:
    uri = store.join(s3, "runs", "a")
    trainer.begin(uri)
    trainer.train(2)
    trainer.save()
    proxy.fail(STATE, "slowdown", times=None)
    proxy.fail("DELETE ", "slowdown", times=None)
    proxy.fail("POST ", "slowdown", times=None)  # as Arrow removes many objects
    trainer.train(1)
    assert len(trainer.save().notes) == 1
    proxy.heal()
    assert checkpoints(uri) == [2]
    assert files_of(uri, 3)
    trained = trainer.train(1)
    assert trainer.save().saved_at == 4
    resumed = trainer.resume(uri)
    assert (resumed.step, resumed.digest) == (4, trained.digest)
    assert files_of(uri, 3) == []
    assert consumed_once(uri, 4)


def test_a_checkpoint_is_of_its_step_however_late_it_is_written(
    trainer: Trainer, s3: str, proxy: S3Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAYGEN_S3_TIMEOUT_S", "0.5")
    uri = store.join(s3, "runs", "a")
    trainer.begin(uri)
    trainer.train(2)
    proxy.fail(f"step-00000002/{STATE}", "half")
    report = trainer.save_behind()
    assert proxy.counts["half"] == 1
    assert (report.saved_at, report.step) == (4, 6)
    assert report.digest != report.at_take
    assert checkpoints(uri) == [2, 4]
    assert trainer.resume(uri).digest == report.at_take
    assert consumed_once(uri, 4)


def test_a_kill_in_the_middle_of_an_upload(
    trainer: Trainer, s3: str, proxy: S3Proxy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("RAYGEN_S3_TIMEOUT_S", "60")
    uri = store.join(s3, "runs", "a")
    with Trainer(tmp_path / "log") as victim:
        victim.begin(uri)
        victim.train(2)
        before = victim.save()
        victim.train(1)
        proxy.fail("step-00000003/critic", "half")
        victim.begin_saving()
        deadline = time.monotonic() + 30
        while not proxy.counts["half"]:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        victim.kill()
    assert files_of(uri, 3)
    assert checkpoints(uri) == [2]
    resumed = trainer.resume(uri)
    assert (resumed.step, resumed.digest, resumed.notes) == (2, before.digest, [])
    assert files_of(uri, 3) == []
    assert checkpoints(uri) == [2]
    trainer.train(3)
    trainer.save()
    assert consumed_once(uri, 5)


def test_a_run_that_was_killed_in_its_first_upload_begins_anew(
    trainer: Trainer, tmp_path: Path
) -> None:
    uri = str(tmp_path / "runs" / "a")
    trainer.begin(uri)
    trainer.train(1)
    trainer.save()
    Path(uri, "step-00000001", STATE).unlink()
    resumed = trainer.resume(uri)
    assert (resumed.step, resumed.saved_at, resumed.notes) == (0, 0, [])
    assert not Path(uri, "step-00000001").exists()
    assert len(lineage.read(uri)) == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small tmpfs needs root")
def test_a_full_disk_costs_the_checkpoints_of_that_time(trainer: Trainer, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "raygen-test", disk], check=True)
    try:
        uri = str(disk / "runs" / "a")
        trainer.begin(uri)
        trainer.train(2)
        trainer.save()
        size = sum(Path(file).stat().st_size for file in files_of(uri, 2))
        before = {file: Path(file).read_bytes() for file in files_of(uri, 2)}
        # Room for half of another.
        subprocess.run(["mount", "-o", f"remount,size={size * 3 // 2}", disk], check=True)
        for step in (3, 4):
            trained = trainer.train(1)
            failed = trainer.save()
            (note,) = failed.notes
            assert note.startswith(f"step {step} is not saved: cannot write {uri}/step-")
            assert note.endswith("No space left on device; training goes on, and tries again later")
            assert (failed.saved_at, failed.digest) == (2, trained.digest)
            assert checkpoints(uri) == [2]
            assert not Path(uri, f"step-{step:08d}").exists()
        assert {file: Path(file).read_bytes() for file in files_of(uri, 2)} == before
        subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True)
        trained = trainer.train(1)
        assert trainer.save().saved_at == 5
        assert consumed_once(uri, 5)
        assert trainer.resume(uri).digest == trained.digest
    finally:
        subprocess.run(["umount", disk], check=True)


@pytest.fixture(scope="module")
def saved(
    trainer: Trainer, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[int, str]]:
    """A run with checkpoints of steps 1, 2 and 3, and what is in them."""
    uri = tmp_path_factory.mktemp("saved") / "a"
    trainer.begin(str(uri))
    digests = {}
    for step in (1, 2, 3):
        trainer.train(1)
        digests[step] = trainer.save().digest
    return uri, digests


@pytest.fixture
def run(saved: tuple[Path, dict[int, str]], tmp_path: Path) -> Path:
    """A copy of it that may be damaged."""
    return Path(shutil.copytree(saved[0], tmp_path / "a"))


def flip(file: Path, old: bytes = b"") -> None:
    """Changes one bit: of the byte after the first `old`, or in the middle."""
    data = bytearray(file.read_bytes())
    at = data.index(old) + len(old) if old else len(data) // 2
    data[at] ^= 1
    file.write_bytes(data)


OPTIMIZER = "critic/zero_pp_rank_0_mp_rank_00_optim_states.pt"
DAMAGE = {
    "shard": OPTIMIZER,
    "average": EMA,
    "state that is no JSON": STATE,
    "state that is": STATE,
    "missing": "generator/mp_rank_00_model_states.pt",
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_checkpoint_is_refused_by_name(
    trainer: Trainer, run: Path, saved: tuple[Path, dict[int, str]], kind: str
) -> None:
    file = run / "step-00000003" / DAMAGE[kind]
    if kind == "missing":
        file.unlink()
    else:
        flip(file, {"state that is no JSON": b"{", "state that is": b'"position": '}.get(kind, b""))
    resumed = trainer.resume(str(run))
    said = "is missing" if kind == "missing" else "is not what was saved"
    assert resumed.notes == [f"{file} {said}; going on from the state before it"]
    assert (resumed.step, resumed.saved_at, resumed.digest) == (2, 2, saved[1][2])
    assert checkpoints(str(run)) == [1, 2]
    trainer.train(1)
    assert trainer.save().digest == saved[1][3]
    assert consumed_once(str(run), 3)


def test_where_all_are_damaged_nothing_is_trained_and_nothing_removed(
    trainer: Trainer, run: Path
) -> None:
    for step in (1, 2, 3):
        flip(run / f"step-{step:08d}" / OPTIMIZER)
    before = sorted(file for file in run.rglob("*"))
    with pytest.raises(CheckpointError) as caught:
        trainer.resume(str(run))
    assert str(caught.value) == (
        f"{run}/step-00000003/{OPTIMIZER} is not what was saved, and no other checkpoint of {run} "
        "is whole: put the file back, or begin anew with another name="
    )
    assert sorted(file for file in run.rglob("*")) == before


def test_a_changed_config_is_held_against_the_newest_state_that_can_be_read(run: Path) -> None:
    found = Run.open(str(run))
    flip(run / "step-00000003" / STATE, b"{")
    with pytest.raises(CheckpointError, match=r"step-00000003/state.json is not what was saved"):
        _ = found.status
    assert found.changes(found.config) == []
    for step in (1, 2):
        flip(run / f"step-{step:08d}" / STATE, b"{")
    assert found.changes(found.config) == []


@pytest.mark.parametrize(
    ("kind", "match", "raised"),
    [
        ("slowdown", "list-type=2", StorageError),
        ("slowdown", "HEAD ", StorageError),
        ("slowdown", f"step-00000003/{OPTIMIZER}", StorageError),
        ("denied", f"step-00000003/{OPTIMIZER}", AccessError),
    ],
)
def test_storage_that_does_not_answer_is_not_taken_for_damage(
    trainer: Trainer,
    saved: tuple[Path, dict[int, str]],
    s3: str,
    proxy: S3Proxy,
    kind: str,
    match: str,
    raised: type[StorageError],
) -> None:
    uri = store.join(s3, "runs", "a")
    for item in store.list_objects(str(saved[0])):
        name = item.uri.removeprefix(f"{saved[0]}/")
        store.write_bytes(store.join(uri, name), store.read_bytes(item.uri))
    before = [item.uri for item in store.list_objects(uri)]
    proxy.fail(match, kind, times=None)
    with pytest.raises(raised) as caught:
        trainer.resume(uri)
    assert "\n" not in str(caught.value)
    assert "s3://" in str(caught.value)
    proxy.heal()
    assert [item.uri for item in store.list_objects(uri)] == before
    resumed = trainer.resume(uri)
    assert (resumed.step, resumed.digest, resumed.notes) == (3, saved[1][3], [])
    assert set(proxy.counts) == {PASSED}


def test_memory_that_is_older_than_a_damaged_checkpoint(trainer: Trainer, tmp_path: Path) -> None:
    uri = str(tmp_path / "a")
    trainer.begin(uri)
    trainer.train(1)
    trainer.save()
    trainer.remember()
    trained = trainer.train(1)
    assert trainer.snapshot().saved_at == 1
    trainer.train(1)
    trainer.save()
    trainer.forget_after(2)
    flip(Path(uri, "step-00000003", OPTIMIZER))
    resumed = trainer.resume(uri)
    assert len(resumed.notes) == 1
    assert (resumed.step, resumed.saved_at, resumed.digest) == (2, 1, trained.digest)
    assert resumed.consumed == tuple((2, row) for row in rows_of(2))
    trainer.train(2)
    assert trainer.save().saved_at == 4
    assert consumed_once(uri, 4)
    assert checkpoints(uri) == [1, 4]
