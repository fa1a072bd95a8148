"""What is kept of a run: which checkpoints stay, which is the best, what may change on resume."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from raygen.config import Config
from raygen.data import store
from raygen.errors import CheckpointError
from raygen.runs import EMA, EVALUATION, STATE, Run, checkpoint_name, sealed, step_of, unsealed
from tests.small_runs import make_run

# A file and its lock, or a folder of objects.
LEDGER = {"ledger", "ledger.jsonl", "ledger.lock"}


@pytest.fixture(params=["local", "s3"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Run:
    """A run with checkpoints of steps 20, 30, 40 and 50."""
    storage = str(tmp_path) if request.param == "local" else request.getfixturevalue("s3")
    run = make_run(storage)
    for step in (30, 40, 50):
        for name in (EMA, STATE):
            data = store.read_bytes(run.path(f"{checkpoint_name(20)}/{name}"))
            if name == STATE:
                data = sealed(json.loads(data) | {"step": step})
            store.write_bytes(run.path(f"{checkpoint_name(step)}/{name}"), data)
    return run


def steps(run: Run) -> list[int]:
    return [step_of(uri) for uri in run.checkpoints()]


def judge(run: Run, step: int, score: float | None) -> None:
    run.write_json(f"{checkpoint_name(step)}/{EVALUATION}", {"score": score})


def tear(run: Run, step: int) -> None:
    """Leaves a checkpoint as an upload that was cut off does."""
    store.write_bytes(run.path(f"{checkpoint_name(step)}/{EMA}"), b"half")


def test_a_torn_checkpoint_is_none(run: Run) -> None:
    tear(run, 60)
    assert steps(run) == [20, 30, 40, 50]
    assert run.status["step"] == 50
    assert step_of(run.latest_checkpoint()) == 50


def test_the_newest_and_the_best_and_the_spared_are_kept(run: Run) -> None:
    run.prune(4)
    assert steps(run) == [20, 30, 40, 50]
    judge(run, 20, 0.5)
    judge(run, 30, 2.0)
    run.prune(1, spare=(40, None))
    assert steps(run) == [20, 40, 50]
    run.prune(1)
    assert steps(run) == [20, 50]
    judge(run, 50, 0.25)
    run.prune(1)
    assert steps(run) == [50]
    left = {item.uri.removeprefix(run.uri).split("/")[1] for item in store.list_objects(run.uri)}
    assert left - LEDGER == {"run.json", checkpoint_name(50)}


def test_the_best_is_of_the_least_score(run: Run) -> None:
    assert run.best() is None
    judge(run, 30, None)  # a judge that could not tell
    assert run.best() == run.path(checkpoint_name(30))
    judge(run, 20, 3.0)
    judge(run, 40, 1.5)
    assert run.best() == run.path(checkpoint_name(40))


def test_what_is_beyond_a_step_and_what_is_torn_goes(run: Run) -> None:
    tear(run, 25)
    tear(run, 45)
    tear(run, 60)
    run.discard_after(40)
    folders = {uri.rpartition("/")[2] for uri in store.prefixes(run.uri)}
    assert folders - LEDGER == {checkpoint_name(step) for step in (20, 30, 40)}
    run.discard_after(0)
    assert run.checkpoints() == []
    run.discard(20)  # nothing is there
    with pytest.raises(CheckpointError, match="has no checkpoint yet"):
        run.latest_checkpoint()


def test_a_run_as_it_was(run: Run) -> None:
    before = run.at(run.path(checkpoint_name(30)))
    assert (before.status["step"], run.status["step"]) == (30, 50)
    tear(run, 50)
    with pytest.raises(CheckpointError, match=r"step-00000050/.* is not what was saved"):
        run.load_ema()
    assert before.load_ema()
    assert (before.uri, before.config) == (run.uri, run.config)


def test_changes_are_told_or_refused_by_key(run: Run) -> None:
    def changed(**keys: object) -> Config:
        given = {name.replace("__", "."): value for name, value in keys.items()}
        return Config.parse(run.config.dump(), given)

    assert run.changes(run.config) == []
    found = changed(optim__generator__lr=1e-4, train__keep_checkpoints=5)
    assert run.changes(found) == [
        "optim.generator.lr: 0.0005 -> 0.0001", "train.keep_checkpoints: 2 -> 5"
    ]  # fmt: skip
    for key, value in {"data.size": 32, "train.batch_size": 8, "seed": 3}.items():
        with pytest.raises(CheckpointError) as caught:
            run.changes(changed(**{key.replace(".", "__"): value}))
        assert caught.value.step == 50
        assert f"step 50 with {key}=" in str(caught.value)
        assert f"this command says {value}" in str(caught.value)
    run.discard_after(0)
    assert run.changes(changed(seed=3)) == []


def test_every_bit_of_a_state_counts() -> None:
    state = {"step": 7, "elapsed_s": 0.1, "losses": {"a": float("inf")}, "files": {"é": [3, "00"]}}
    data = sealed(state)
    assert unsealed(data, "x") == state
    assert unsealed(json.dumps(state).encode(), "x") == state
    survived = []
    for at in range(len(data)):
        for bit in range(8):
            flipped = bytearray(data)
            flipped[at] ^= 1 << bit
            try:
                found = unsealed(bytes(flipped), "x")
            except CheckpointError:
                continue
            survived.append(found)
    # White space, and the checksum's own name: what they say of the run is the same.
    assert all(state.items() <= found.items() for found in survived)
