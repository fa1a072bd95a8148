"""What is read out of a finished search: the front, the importance of keys, the axes of plots."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tune.analysis import LEAST, front, importance
from tune.plots import Axis

figures = st.floats(0, 100)


@given(st.lists(st.tuples(figures, figures), min_size=1, max_size=20))
def test_the_front_is_what_no_other_beats(points: list[tuple[float, float]]) -> None:
    kept = front(points)

    def beats(one: tuple[float, float], other: tuple[float, float]) -> bool:
        return one != other and one[0] <= other[0] and one[1] <= other[1]

    for k, point in enumerate(points):
        beaten = any(beats(other, point) for other in points)
        assert not (k in kept and beaten)
        assert beaten or point in [points[j] for j in kept]
    assert [points[k] for k in kept] == sorted(points[k] for k in kept)


def test_importance_finds_the_key_that_matters() -> None:
    rng = np.random.default_rng(0)
    unit_ND = np.concatenate([rng.random((40, 2)), np.eye(2)[rng.integers(0, 2, 40)]], 1)
    score_N = np.abs(unit_ND[:, 1] - 0.3) + 0.02 * rng.standard_normal(40)
    found = importance(unit_ND, score_N, {"first": 1, "second": 1, "kind": 2})
    assert found is not None
    assert found.explained > 0.6
    assert found.shares["second"] > 5 * max(found.shares["first"], found.shares["kind"])


def test_importance_says_when_it_knows_nothing() -> None:
    rng = np.random.default_rng(0)
    unit_ND, noise_N = rng.random((40, 3)), rng.random(40)
    widths = {"a": 1, "b": 1, "c": 1}
    found = importance(unit_ND, noise_N, widths)
    assert found is not None
    assert found.explained < 0.2
    assert importance(unit_ND[: LEAST - 1], noise_N[: LEAST - 1], widths) is None
    assert importance(unit_ND, np.ones(40), widths) is None


@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=9))
def test_axes_hold_their_values_and_round_ticks(values: list[float]) -> None:
    axis = Axis.of("x", values)
    assert all(-1e-9 <= axis.at(value) <= 1 + 1e-9 for value in values)
    ticks = axis.ticks()
    assert ticks == sorted(ticks)
    assert len(ticks) <= 12
    assert all(axis.low * (1 - 1e-9) <= tick <= axis.high * (1 + 1e-9) for tick in ticks)


def test_an_axis_of_less_than_a_decade_is_linear() -> None:
    assert Axis.of("x", [2.0, 4.0]).at(3.0) == pytest.approx(0.5)
    assert Axis.of("x", [1.0, 100.0]).at(10.0) == pytest.approx(0.5)
