from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raygen.data.plan import Plan, Weights, balanced, shot

seeds = st.integers(0, 2**31 - 1)


@given(clips=st.integers(1, 200), seed=seeds, epoch=st.integers(0, 50))
def test_an_epoch_is_every_clip_once(clips: int, seed: int, epoch: int) -> None:
    plan = Plan(clips, seed)
    spans = [plan.span(p) for p in range(epoch * clips, (epoch + 1) * clips)]
    assert sorted(span.row for span in spans) == list(range(clips))
    assert all(0 <= span.start < 1 for span in spans)
    assert {span.crop for span in spans} == {(0.5, 0.5)}


@given(clips=st.integers(2, 100), seed=st.integers(0, 1000))
def test_epochs_and_seeds_differ(clips: int, seed: int) -> None:
    def order(plan: Plan, epoch: int) -> list[tuple[int, float, float]]:
        spans = (plan.span(epoch * clips + i) for i in range(clips))
        return [(span.row, span.start, span.crop[0]) for span in spans]

    plan = Plan(clips, seed, random_crop=True)
    assert order(plan, 0) == order(Plan(clips, seed, random_crop=True), 0)
    assert order(plan, 0) != order(plan, 1)
    assert order(plan, 0) != order(Plan(clips, seed + 1, random_crop=True), 0)


@given(
    weights=st.lists(st.floats(0, 10, width=32), min_size=1, max_size=60).filter(sum),
    seed=seeds,
)
def test_a_weighted_epoch_rounds_each_weight_up_or_down(weights: list[float], seed: int) -> None:
    count = len(weights)
    plan = Plan(count, seed, Weights(np.array(weights, np.float32)))
    spans = [plan.span(p) for p in range(count)]
    seen = np.bincount([span.row for span in spans], minlength=count)
    expected = np.array(weights) / sum(weights) * count
    assert (np.abs(seen - expected) < 1 + 1e-4).all()
    starts = [(span.row, span.start) for span in spans]
    assert len(set(starts)) == count  # a row that comes twice comes with another start


def test_balanced_classes_come_equally_often() -> None:
    labels = np.repeat(np.arange(3, dtype=np.int32), [90, 9, 3])
    plan = Plan(len(labels), 0, balanced(labels))
    drawn = [labels[plan.span(p).row] for p in range(10 * len(labels))]
    assert np.bincount(drawn) == pytest.approx(np.full(3, 10 * len(labels) / 3), rel=0.02)


@given(
    cuts=st.lists(st.floats(0.1, 9.9), max_size=6).map(sorted),
    start=st.floats(0, 1, exclude_max=True),
    seconds=st.floats(0.05, 1.4),
)
def test_a_clip_straddles_no_cut(cuts: list[float], start: float, seconds: float) -> None:
    # Six cuts of ten seconds leave a shot of at least 1.42.
    low, high, share = shot(cuts, 10.0, seconds, start)
    begin = low + share * max(high - low - seconds, 0)
    assert 0 <= share < 1
    assert high - low >= seconds - 1e-3
    assert not any(begin + 1e-9 < cut < begin + seconds - 1e-2 for cut in cuts)


def test_every_shot_long_enough_is_drawn_from() -> None:
    starts = np.linspace(0, 1, 101)[:-1]
    shots = [shot([2.0, 2.5, 6.0], 10.0, 1.0, start)[:2] for start in starts]
    assert set(shots) == {(0.0, 2.0), (2.5, 6.0), (6.0, 10.0)}
