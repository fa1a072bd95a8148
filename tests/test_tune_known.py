"""What a search tries first: the base's own configuration, and the best of earlier searches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from raygen.errors import ConfigError
from tests.benchmarks.search_data import LEVELS
from tests.benchmarks.search_sim import Pool
from tests.searches import SPACE, make_search, write_space
from tests.test_tune_policy import policy, toy
from tune.known import first
from tune.policy import Policy
from tune.records import Records, Result
from tune.space import Space


def test_the_base_then_the_best_of_each_earlier_search_in_turn(tmp_path: Path) -> None:
    one, two = ((tmp_path / name) for name in ("one", "two"))
    places = []
    for seed, folder in enumerate((one, two)):
        folder.mkdir()
        _, records = make_search(folder, seed=seed)
        places.append(records)
    space = Space.load(write_space(tmp_path), ["data.uri=clips", "model.kind=strided"])
    tried = first(space, [records.storage for records in places], 4)
    assert tried[0] == {key: space.base.flat()[key] for key in space.keys}
    bests = [records.best for records in places]
    assert [each["optim.generator.lr"] for each in tried[1:3]] == pytest.approx(
        [best[0].values["optim.generator.lr"] for best in bests if best is not None], rel=1e-4
    )
    assert len(tried) == 4
    assert len({repr(each) for each in tried}) == 4


def test_values_are_brought_into_another_space(tmp_path: Path) -> None:
    _, records = make_search(tmp_path)
    narrow = {"optim.generator.lr": {"loguniform": [2.0e-3, 3.0e-3]}}
    folder = tmp_path / "narrow"
    folder.mkdir()
    space = Space.load(write_space(folder, space=narrow), ["data.uri=clips"])
    # All earlier ones, and the base, lie at or below the lower end, or at the upper.
    for values in first(space, [records.storage], 9):
        assert 2.0e-3 <= values["optim.generator.lr"] <= 3.0e-3


def test_an_option_that_the_space_lacks_is_left_out(tmp_path: Path) -> None:
    _, records = make_search(tmp_path)
    kinds = {"model.kind": {"choice": ["residual", "triplane"]}}
    folder = tmp_path / "kinds"
    folder.mkdir()
    space = Space.load(write_space(folder, space=SPACE["space"] | kinds), ["data.uri=clips"])  # type: ignore[operator]
    assert first(space, [records.storage], 9) == []


def test_a_place_without_a_search_and_one_without_figures_are_refused(tmp_path: Path) -> None:
    space = Space.load(write_space(tmp_path), ["data.uri=clips"])
    with pytest.raises(ConfigError, match="--from nowhere: no search there"):
        first(space, ["nowhere"], 4)
    records = Records.open(str(tmp_path / "search"), space)
    records.report(0, space.sample(np.random.default_rng(0)), Result(1, 1, 0.1, np.inf, 0.0))
    with pytest.raises(ConfigError, match="none of its trials has come to a figure"):
        first(space, [records.storage], 4)


def test_the_policy_tries_them_first_and_knows_them_again() -> None:
    pool = Pool(toy())
    rng = np.random.default_rng(7)
    wanted = [pool.sample(rng) for _ in range(3)]
    mine = policy(pool, 10.0)
    mine.first = list(wanted)
    begun = [mine.next(10.0) for _ in range(2)]
    again = Policy.restore(pool, mine.state())
    begun += [again.next(10.0) for _ in range(2)]
    assert [job.config for job in begun if job is not None][:3] == wanted
    assert begun[3] is not None
    assert begun[3].config not in wanted
    assert all(job is not None and job.until <= LEVELS for job in begun)
