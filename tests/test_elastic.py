"""Training on nodes that come and go: raylets killed, drained and added under a real training."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from raygen import supervisor
from raygen.capacity import Capacity
from raygen.config import Config
from raygen.cost.accountant import Accountant
from raygen.cost.bill import Purse
from raygen.data import lineage
from raygen.data.scan import scan
from raygen.errors import Interrupted, TrainingError
from raygen.evaluate import evaluate_run
from raygen.history import History
from raygen.runs import Run, run_uri
from raygen.supervisor import Supervisor
from tests.cluster_runs import until
from tests.raylets import Nodes, Training
from tests.small_runs import SMALL

SETTINGS = {
    **SMALL,
    "train.batch_size": 6,
    "train.snapshot_every": 5,
    "train.max_failures": 2,
    "loss.penalty_every": 2,
}


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    nodes = Nodes(3)
    yield nodes
    nodes.close()


def config(shapes: Path, storage: Path, name: str, **more: object) -> Config:
    catalogue = storage / "catalogue.parquet"
    if not catalogue.exists():
        scan(str(shapes)).write(str(catalogue))
    overrides = {"data.uri": str(catalogue), "storage": str(storage), "name": name, **SETTINGS}
    return Config.load("tiny", overrides | {"train." + key: value for key, value in more.items()})


@pytest.mark.slow
def test_nodes_are_lost_drained_and_added_and_no_step_or_clip_is_counted_twice(
    nodes: Nodes, shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "GROW_SETTLE_S", 4.0)
    settings = config(shapes, tmp_path, "elastic", workers=[1, 3], steps=100_000)
    with Training(settings) as training:
        # On a slow machine it begins with fewer, and grows.
        three = training.wait_for(lambda s: s.workers == 3 and s.step >= s.started_at + 40, 240)

        # The node of rank 0, without notice: at most the steps since the last copies are lost,
        # which on a slow machine take more than the five steps between them.
        killed_at = training.newest.step
        nodes.kill(nodes.alive[three.nodes[0]])
        two = training.wait_for(lambda s: s.workers == 2 and s.step > s.started_at, 240)
        assert killed_at - 20 <= two.started_at

        # A spot notice: nothing is lost, and it is no failure.
        nodes.drain(nodes.alive[two.nodes[0]], seconds=12)
        left = training.wait_for(lambda s: s.ended == "preempted")
        one = training.wait_for(lambda s: s.workers == 1 and s.step > s.started_at)
        assert two.nodes[0] not in one.nodes
        assert one.started_at == left.step

        nodes.add()
        nodes.add()
        grew = training.wait_for(lambda s: s.ended == "grew")
        more = training.wait_for(lambda s: s.workers > one.workers and s.step > s.started_at)
        assert more.started_at == grew.step

        training.stop()
        with pytest.raises(Interrupted, match="stopped and saved at step"):
            training.finish()
    run = Run.open(run_uri(settings))
    counted_once(run)
    kinds = [event.event for event in History(run.uri).events]
    assert (kinds[0], kinds.count("lost"), kinds.count("preempted")) == ("started", 1, 1)
    assert kinds[-2:] == ["grew", "stopped"]


def test_a_node_of_which_workers_were_lost_is_no_room_until_it_answers(
    nodes: Nodes, shapes: Path, tmp_path: Path
) -> None:
    settings = config(shapes, tmp_path, "doubt", workers=[1, 3])
    raylet = nodes.raylet(silent := next(iter(nodes.alive.values())))
    raylet.suspend()
    try:
        capacity = Capacity(settings.train, doubted=[silent.node_id])
        assert not until(lambda: capacity.size(0) > 0, 3)
    finally:
        raylet.resume()
    assert until(lambda: capacity.size(0) == len(nodes.alive), 30)
    capacity.release()


@pytest.mark.slow
def test_a_rank_that_stands_still_is_restarted_and_the_weights_do_not_show_it(
    nodes: Nodes, shapes: Path, tmp_path: Path
) -> None:
    undisturbed = Training(config(shapes, tmp_path, "undisturbed", workers=2, steps=40)).finish()
    settings = config(shapes, tmp_path, "stalled", workers=2, steps=40, stall_s=4.0)
    with Training(settings) as training:
        seen = training.wait_for(lambda s: s.step >= 12)
        (trainer,) = nodes.trainers(nodes.alive[seen.nodes[1]])
        trainer.suspend()
        stalled = training.finish()
    assert "stalled" in [event.event for event in History(stalled.uri).events]
    expected = undisturbed.load_ema()
    for name, tensor in stalled.load_ema().items():
        assert torch.equal(tensor, expected[name]), name


def test_an_error_in_the_code_ends_the_run_at_once_with_the_workers_own_traceback(
    nodes: Nodes, shapes: Path, tmp_path: Path
) -> None:
    settings = config(shapes, tmp_path, "crash", workers=2, steps=40)
    run = Run.create(settings, ["a"], {})
    broken: Any = None
    purse = Purse(Accountant(run.uri), "crash")
    broken_run = Supervisor(settings, run, broken, purse, print, print, threading.Event())
    with pytest.raises(RuntimeError, match=r"worker \d failed:\nTraceback(.|\n)*TypeError"):
        broken_run.run()
    assert [event.event for event in History(run.uri).events] == ["started", "failed"]


@pytest.mark.slow
def test_a_training_that_runs_away_is_rewound_and_then_ended(
    nodes: Nodes, shapes: Path, tmp_path: Path
) -> None:
    wild = {"optim.critic.lr": 0.5, "optim.generator.lr": 0.5, "loss.gamma": 0.0}
    careful = {"health.patience": 2, "health.rewinds": 1, "health.lr_factor": 0.9}
    settings = config(shapes, tmp_path, "wild", workers=2, steps=100_000)
    with (
        Training(Config.parse(settings.dump(), wild | careful)) as training,
        pytest.raises(TrainingError, match=r"rewound 1 times .*at last with 0\.9 of the learning"),
    ):
        training.finish()
    history = History(run_uri(settings))
    assert [event.event for event in history.events] == ["started", "rewound", "failed"]


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_twenty_losses_notices_and_newcomers_in_one_run(
    nodes: Nodes, shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "GROW_SETTLE_S", 4.0)
    changed = {"workers": [1, 3], "steps": 1_000_000, "max_failures": 20, "snapshot_every": 5}
    settings = config(shapes, tmp_path, "soak", **changed)
    training = Training(settings)
    chance = random.Random(0)
    while len(nodes.alive) < 3:
        nodes.add()
    for _ in range(20):
        now = training.wait_for(lambda s: s.step > s.started_at + 10, 300)
        before = training.groups
        happens = chance.choice(("kill", "drain")) if now.workers > 1 else "add"
        if happens == "add":
            nodes.add()
        elif happens == "kill":
            nodes.kill(nodes.alive[chance.choice(now.nodes)])
        else:
            nodes.drain(nodes.alive[chance.choice(now.nodes)], seconds=10)
        training.wait_for(lambda s, before=before: training.groups > before, 300)  # type: ignore[misc]
    training.stop()
    with pytest.raises(Interrupted):
        training.finish()
    run = Run.open(run_uri(settings))
    counted_once(run)
    # Runs of as many steps that nothing disturbed, of three seeds; the worker count is no matter.
    calm = []
    for seed in range(3):
        undisturbed = config(shapes, tmp_path, f"calm-{seed}", steps=run.status["step"])
        overrides = {"seed": seed}
        calm.append(figures(Training(Config.parse(undisturbed.dump(), overrides)).finish(900)))
    for name, found in figures(run).items():
        expected = [figure[name] for figure in calm]
        spread = max(expected) - min(expected)
        assert min(expected) - spread <= found <= max(expected) + spread, (name, found, expected)


def figures(run: Run) -> dict[str, float]:
    """What the judge makes of a run."""
    judge = {"evaluate.clips": 64, "evaluate.judge_steps": 60, "evaluate.batch_size": 16}
    manifest = Run.create(Config.parse(run.config.dump(), judge), run.classes, run.data)
    evaluation = evaluate_run(manifest)
    return {"frechet": evaluation.frechet, "motion": evaluation.motion_ratio}


def counted_once(run: Run) -> None:
    """Asserts that every step is there once, and each of the twelve clips as often as any."""
    steps = run.status["step"]
    consumed = lineage.read(run.uri)
    assert consumed["step"].to_pylist() == [step for step in range(1, steps + 1) for _ in range(6)]
    counts = np.bincount(consumed["row"], minlength=12)
    assert counts.max() - counts.min() <= 1
