"""When to save: the interval against figures worked out by hand, and what a failure changes."""

from __future__ import annotations

import pytest

from raygen.config import TrainConfig
from raygen.pace import FIRST, PRIOR_S, Pace, young_daly


def pace_of(*, step_s: float = 2.0, failures: int = 0, seconds: float = 0.0, **train: int) -> Pace:
    """After three steps of `step_s`, in `seconds` of training in all."""
    pace = Pace(TrainConfig(**train), failures=failures, seconds=seconds - 3 * step_s)
    for _ in range(3):
        pace.stepped(step_s)
    return pace


def test_the_interval_of_young() -> None:
    # Checked by hand: sqrt(2 * 0.5 s * 3600 s) = 60 s, sqrt(2 * 8 s * 10^6 s) = 4000 s.
    assert young_daly(0.5, 3600) == 60
    assert young_daly(8, 1e6) == 4000
    # It is where the sum of both losses, cost / interval + interval / (2 * between), is least.
    cost, between = 3.0, 5000.0
    best = young_daly(cost, between)
    for other in (0.9 * best, 1.1 * best):
        assert cost / best + best / 2 / between < cost / other + other / 2 / between


def test_steps_between_checkpoints_follow_cost_and_losses() -> None:
    pace = pace_of()
    assert pace.checkpoint_every is None
    pace.checkpointed(0.5)
    # Never a loss in 0 s beyond the prior's 14,400 s: sqrt(2 * 0.5 * 14400) = 120 s, of 2 s each.
    assert PRIOR_S == 14_400
    assert pace.checkpoint_every == 60
    # Three failures in 14,400 s, and the prior's one in as many: one in 7200 s. sqrt(7200) = 84.85.
    pace = pace_of(failures=3, seconds=14_400)
    pace.checkpointed(0.5)
    assert pace.checkpoint_every == 42
    # A run of a week without a loss: sqrt(604800 + 14400) = 786.9 s.
    pace = pace_of(seconds=604_800)
    pace.checkpointed(0.5)
    assert pace.checkpoint_every == 393
    # A step longer than the interval: after each of them. sqrt(2 * 0.0001 * 14400) = 1.7 s.
    pace = pace_of(step_s=100)
    pace.checkpointed(0.0001)
    assert pace.checkpoint_every == 1


def test_the_time_of_a_step_leaves_out_the_first_and_follows_the_rest() -> None:
    pace = Pace(TrainConfig(), failures=0, seconds=0)
    for seconds in (30.0, 10.0):
        pace.stepped(seconds)
    assert pace.step_s is None
    pace.stepped(1.0)
    assert pace.step_s == 1.0
    pace.stepped(2.0)
    assert pace.step_s == pytest.approx(1.1)
    assert pace.seconds == 43.0


def test_snapshots_take_two_hundredths_of_the_time() -> None:
    pace = pace_of()
    assert pace.snapshot_every is None
    pace.snapshotted(0.5)
    # 0.5 s of 13 steps of 2 s are 1.92 %, of 12 steps 2.08 %.
    assert pace.snapshot_every == 13
    pace.snapshotted(0.001)
    assert pace.snapshot_every == 1


def test_what_the_config_fixes_is_fixed() -> None:
    pace = pace_of(checkpoint_every=7, snapshot_every=3)
    pace.checkpointed(100.0)
    pace.snapshotted(100.0)
    assert (pace.checkpoint_every, pace.snapshot_every) == (7, 3)
    assert [step for step in range(20) if pace.checkpoint_due(step, tried_at=0)] == [7, 14]
    assert not pace.checkpoint_due(14, tried_at=14)


def test_the_first_save_measures() -> None:
    pace = Pace(TrainConfig(), failures=0, seconds=0)
    for due in (pace.checkpoint_due, pace.snapshot_due):
        assert next(step for step in range(105, 200) if due(step, 105)) == 105 + FIRST


@pytest.mark.parametrize("every", [None, 60])
def test_failing_storage_is_tried_once_an_interval(every: int | None) -> None:
    pace = pace_of() if every is None else pace_of(checkpoint_every=every)
    pace.checkpointed(0.5)  # 60 steps
    tried, tried_at = [], 0
    for step in range(1, 200):  # none of them succeeds
        if pace.checkpoint_due(step, tried_at):
            tried.append(step)
            tried_at = step
    assert tried == [60, 120, 180]


def test_a_snapshot_is_due_after_the_newest_copy_of_either_kind() -> None:
    pace = pace_of(snapshot_every=5)
    assert not pace.snapshot_due(104, kept_at=100)
    assert pace.snapshot_due(105, kept_at=100)
