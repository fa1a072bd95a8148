import pytest

from raygen.board import Status
from raygen.display import training_line


def test_a_log_says_from_which_step_each_group_of_workers_goes_on(
    capsys: pytest.CaptureFixture[str],
) -> None:
    began = [0, 0, 90, 90, 130]
    with training_line() as on_status:
        for started_at in began:
            on_status(
                Status(
                    step=started_at + 1,
                    steps=500,
                    fraction=0.1,
                    elapsed_s=1.0,
                    dollars=0.0,
                    started_at=started_at,
                )
            )
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("goes on")]
    assert said == [f"goes on from the checkpoint of step {step}" for step in (90, 130)]
