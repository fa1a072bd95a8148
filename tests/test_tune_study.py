"""A search as a study of Optuna's own storage: `python -m tune study STORAGE`."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from raygen.errors import StorageError
from tests.searches import make_search
from tune import study
from tune.__main__ import main

optuna = pytest.importorskip("optuna")


def test_optuna_reads_the_search_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _, records = make_search(tmp_path, 8)
    values = dict(records.trials[0].values)
    records.fail(100, values, "diverged")
    words = ["tune", "study", records.storage]
    for _ in range(2):  # the second time it is written anew
        monkeypatch.setattr(sys, "argv", words)
        with pytest.raises(SystemExit) as ended:
            main()
        assert not ended.value.code
    where = capsys.readouterr().out.split()[-1]
    assert where == f"{records.storage}/study.db"

    found = optuna.load_study(study_name=None, storage=f"sqlite:///{where}")
    best = records.best
    assert best is not None
    assert found.direction.name == "MINIMIZE"
    assert found.best_trial.user_attrs["name"] == best[0].name
    assert found.best_value == best[1].score
    assert found.user_attrs["metric"] == "score"
    assert len(found.trials) == 9
    for mine, theirs in zip(records.trials.values(), found.trials, strict=True):
        assert theirs.params == mine.values  # each within its distribution, or Optuna refuses it
        assert theirs.intermediate_values == {r.step: r.score for r in mine.results}
    assert found.trials[-1].state.name == "FAIL"
    assert found.trials[-1].user_attrs["detail"] == "diverged"


def test_no_search_is_said(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="no search at"):
        study.write(str(tmp_path))
