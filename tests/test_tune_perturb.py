"""Branches: what they change, what they are worth, what they cost, and a real one."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raygen.data import lineage, store
from raygen.errors import CheckpointError, ConfigError
from raygen.runs import CATALOGUE, EVALUATION, Run, checkpoint_name
from tests.benchmarks.search_sim import RESTART
from tests.searches import SPACE, write_space
from tests.small_runs import make_run
from tests.test_tune_search import start, wait_for
from tune.outlook import Outlook, Trial
from tune.perturb import Perturbation, branch
from tune.policy import Policy
from tune.records import POLICY, Records
from tune.space import Space
from tune.terms import Job, Rules

LEVELS = 12
KEYS = ["optim.generator.lr", "loss.gamma"]


class Plane:
    """Two numbers in [0, 1]: `a` may change on resume, `b` may not."""

    def sample(self, rng: np.random.Generator) -> dict[str, Any]:
        return self.decode(rng.random(2))

    def encode(self, config: dict[str, Any]) -> np.ndarray:
        return np.array([config["a"], config["b"]])

    def decode(self, vector: np.ndarray) -> dict[str, Any]:
        return {"a": float(vector[0]), "b": float(vector[1])}


def nudge(config: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    return config | {"a": float(np.clip(config["a"] * rng.choice([0.8, 1.2]), 0, 1))}


def searched(money: float, again: int | None = None) -> tuple[Policy, list[Job]]:
    """One worker, whose weights get better faster the nearer `a` is to 0.2; `b` is the start."""
    policy = Policy(
        Plane(),
        money=money,
        levels=LEVELS,
        workers=1,
        level_dollars=1 / LEVELS,
        restart_dollars=RESTART,
        rules=Rules(steps=4),
        perturb=nudge,
    )
    weights: dict[int, dict[int, float]] = {}  # a trial's loss at each level
    jobs = []
    while job := policy.next(money):
        jobs.append(job)
        if len(jobs) == again:
            kept = json.loads(json.dumps(policy.state()))
            policy = Policy.restore(Plane(), kept)
            policy.perturb = nudge
        if job.trial not in weights:
            origin = {0: 1 + job.config["b"]}
            weights[job.trial] = origin if job.parent is None else weights[job.parent].copy()
        level, fee = job.since, RESTART
        until: int | None = job.until
        while until is not None:
            for at in range(level + 1, until + 1):
                gain = 0.02 + 0.1 * max(0.0, 1 - 2 * abs(job.config["a"] - 0.2))
                weights[job.trial][at] = weights[job.trial][at - 1] - gain
            dollars = (until - level) / LEVELS + fee
            level, fee = until, 0.0
            until = policy.report(job.trial, level, dollars, weights[job.trial][level])
    return policy, jobs


def test_a_branch_begins_where_its_parent_stands_and_pays_for_its_own_steps() -> None:
    policy, jobs = searched(6.0)
    branches = [job for job in jobs if job.parent is not None and job.since]
    assert branches
    assert policy.spent <= 6.0 + 1e-9
    for job in branches:
        assert job.parent is not None
        trial, parent = policy.trials[job.trial], policy.trials[job.parent]
        assert trial.config["b"] == parent.config["b"]
        assert trial.since in policy.rungs[:-1]
        assert job.dollars == pytest.approx(RESTART + (job.until - job.since) / LEVELS)
        assert trial.dollars < (trial.level - trial.since) / LEVELS + trial.starts * RESTART + 1e-9


def test_a_search_with_branches_goes_on_alike_wherever_it_was_kept() -> None:
    _, whole = searched(4.0)
    first = next(k for k, job in enumerate(whole, 1) if job.parent is not None)
    for again in (first, first + 1, len(whole)):
        assert searched(4.0, again)[1] == whole


def test_an_interrupted_branch_is_begun_again_from_its_parent() -> None:
    policy, jobs = searched(4.0)
    branch = next(job for job in jobs if job.parent is not None)
    state = policy.state()
    kept = state["trials"][: branch.trial + 1]
    kept[-1] |= {"level": branch.since, "dollars": 0.0, "starts": 1, "over": False, "fresh": True}
    kept[-1]["results"] = {branch.since: policy.trials[branch.trial].results[branch.since]}
    restored = Policy.restore(Plane(), state | {"trials": kept})
    restored.interrupted()
    again = restored.next(4.0)
    assert again is not None
    assert (again.trial, again.since, again.parent) == (branch.trial, branch.since, branch.parent)


def test_without_it_nothing_branches() -> None:
    policy, _ = searched(4.0)
    restored = Policy.restore(Plane(), policy.state() | {"trials": [], "decisions": 0})
    for _ in range(12):
        job = restored.next(4.0)
        assert job is not None
        assert job.parent is None
        restored.report(job.trial, job.until, 0.1, 1.0)


def test_a_branch_is_worth_more_towards_what_is_good() -> None:
    trials = [
        Trial({}, [x, 0.5], {3: 1 + x, 6: 0.8 + x}, dollars=0.5, starts=1, level=6)
        for x in np.linspace(0, 1, 12)
    ]
    policy = Policy(Plane(), money=9.0, levels=LEVELS)
    policy.trials = trials
    _, outlook = policy._outlook(list(range(12)))
    assert isinstance(outlook, Outlook)
    n_K = np.array([1, 1, 1])
    x_KD = np.array([[0.0, 0.5], trials[1].vector, [0.6, 0.5]])
    better, same, worse = outlook.branched(n_K, x_KD, np.full(3, float(LEVELS)))
    assert better > same > worse
    # The same again differs from its parent by what no configuration explains.
    assert same >= outlook.going_on(np.full(12, float(LEVELS)))[1]


def test_changes_numbers_that_may_change_on_resume(tmp_path: Path) -> None:
    keys = {"model.latent_dim": {"int": [8, 32]}}
    written = write_space(tmp_path, space={**SPACE["space"], **keys})  # type: ignore[dict-item]
    space = Space.load(written)
    perturb, rng = Perturbation(space), np.random.default_rng(0)
    values = space.sample(rng)
    ratios = set()
    for _ in range(60):
        changed = perturb(values, rng)
        assert space.refusal(changed) is None
        assert {key for key in values if changed[key] != values[key]} <= set(KEYS)
        ratios.add(round(changed[KEYS[0]] / values[KEYS[0]], 3))
    assert {0.8, 1.2} < ratios


def test_a_space_in_which_nothing_may_change_is_refused(tmp_path: Path) -> None:
    space = Space.load(
        write_space(tmp_path, space={"model.kind": {"choice": ["strided", "residual"]}})
    )
    with pytest.raises(ConfigError, match="--perturb: nothing in this space is a number"):
        Perturbation(space)


@pytest.mark.parametrize("place", ["tmp_path", "s3"])
def test_a_branch_goes_on_from_the_very_checkpoint(
    place: str, request: pytest.FixtureRequest
) -> None:
    parent = make_run(str(request.getfixturevalue(place)), name="t0000")
    store.write_bytes(parent.path(CATALOGUE), b"clips")
    evaluation = store.join(parent.path(checkpoint_name(20)), EVALUATION)
    store.write_bytes(evaluation, b'{"score": 3.0}')
    for step in (20, 30):
        lineage.add(parent.uri, step, [(step, 1)])
    config = type(parent.config).parse(
        parent.config.dump(), {"name": "t0001", "optim.generator.lr": 0.002}
    )
    made = branch(parent, config, 20)
    assert Run.find(config) == made
    assert made.status == parent.status
    assert made.load_ema().keys() == parent.load_ema().keys()
    assert made.best() == made.path(checkpoint_name(20))
    assert store.read_bytes(made.path(CATALOGUE)) == b"clips"
    assert lineage.read(made.uri).column("step").to_pylist() == [20]
    assert [change.partition(":")[0] for change in made.changes(config)] == [
        "name",
        "optim.generator.lr",
    ]
    with pytest.raises(CheckpointError, match=r"step-00000030 is gone: t0001 cannot begin"):
        branch(parent, config, 30)


@pytest.mark.slow
def test_a_real_branch_is_trained_judged_and_told_of(shapes: Path, tmp_path: Path) -> None:
    """As if the driver had been killed right after it decided to branch."""
    space, storage, log = write_space(tmp_path), str(tmp_path / "search"), tmp_path / "log"
    first = start(space, storage, shapes, 0.02, log)
    wait_for(storage, 1)
    os.killpg(first.pid, signal.SIGINT)
    assert first.wait(120) == 130, log.read_text()
    records = Records.find(storage)
    assert records is not None
    state = json.loads(store.read_bytes(records.path(POLICY)))
    trials = [t for t in state["trials"][:1] if t["level"]]
    assert trials, state
    shutil.rmtree(Path(storage, "trials", "t0001"), ignore_errors=True)  # where one was begun
    level, values = trials[0]["level"], trials[0]["config"]
    config = values | {"optim.generator.lr": values["optim.generator.lr"] * 0.8}
    checked = Space.load(space)
    made = Trial(config, checked.encode(config).tolist(), {level: trials[0]["results"][str(level)]})
    made.level = made.since = level
    made.parent = 0
    store.write_bytes(
        records.path(POLICY),
        json.dumps(state | {"trials": [*trials, vars(made)], "decisions": 2}).encode(),
    )

    second = start(space, storage, shapes, 0.02, log, "--perturb")
    wait_for(storage, 2)
    os.killpg(second.pid, signal.SIGINT)
    assert second.wait(120) == 130, log.read_text()
    records = Records.find(storage)
    assert records is not None
    branched, parent = records.trials[1], records.trials[0]
    assert not branched.detail
    assert f"{branched.title} level" in log.read_text()
    assert branched.parent == 0
    assert branched.results[0].level > level
    run = Run.open(records.run_uri(branched))
    steps = set(lineage.read(run.uri).column("step").to_pylist())
    assert min(steps) <= checked.levels[level - 1] < max(steps)
    began = run.read_json("history.json")
    assert began is not None
    assert "resumed" in json.dumps(began)
    assert run.config.optim.generator.lr == pytest.approx(0.8 * values["optim.generator.lr"])
    assert parent.results[0].dollars > 0
