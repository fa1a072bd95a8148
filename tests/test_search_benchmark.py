"""What the search benchmark keeps of a run that was cut off, and what it makes of the figures."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.benchmarks.search import CAPS, GRID, NAMES, OURS, Curves, Kept, report

PART = ("random", "algoperf", "ogbg")


def test_a_finished_part_is_found_again_and_one_of_other_seeds_is_not(tmp_path: Path) -> None:
    found: Curves = {(*PART, 4): [0.5, 0.25]}
    Kept(tmp_path / "parts", 2).add(PART, found)
    assert Kept(tmp_path / "parts", 2).find(PART) == found
    assert Kept(tmp_path / "parts", 3).find(PART) == {}
    assert Kept(tmp_path / "parts", 2).find((OURS, *PART[1:])) == {}


def test_spend_is_that_up_to_the_others_last_regret(capsys: pytest.CaptureFixture[str]) -> None:
    """ASHA gets to 0.2 at the end, the policy at half of the money; all others never."""
    last = {OURS: 0.1, "stopping_asha": 0.2}
    found: Curves = {}
    for name in NAMES:
        for cap in CAPS:
            curve = [0.9] * len(GRID)
            curve[-1] = last.get(name, 0.8)
            if name == OURS:
                curve[len(GRID) // 2 - 1 :] = [0.1] * (len(GRID) // 2 + 1)
            found[name, "algoperf", "ogbg", cap] = curve
    flat = report(found)
    assert flat["spend_ratio_to_asha_median"] == pytest.approx(2.0)
    assert flat["tasks_reported"] == 1
    assert flat["regret_budget_algoperf"] == pytest.approx(0.1)
    assert flat["regret_random_algoperf"] == pytest.approx(0.8)
    assert "reached in 3 of 3" in capsys.readouterr().out
