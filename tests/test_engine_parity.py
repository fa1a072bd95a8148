"""The pair under ZeRO equals a plain PyTorch loop, parameter by parameter."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

TOLERANCE = 1e-6


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def train(
    stage: int | str, ranks: int, out: Path, *overrides: str, **environment: str
) -> dict[str, Any]:
    port = free_port()
    environments = [
        os.environ
        | {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(ranks),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "DS_ACCELERATOR": "cpu",
            "OMP_NUM_THREADS": "1",
            "PYTHONWARNINGS": "ignore",
            **environment,
        }
        for rank in range(ranks)
    ]
    command = [sys.executable, "-m", "tests.parity_worker", str(stage), str(out), *overrides]
    workers = [
        subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        for env in environments
    ]
    for worker in workers:
        output, _ = worker.communicate(timeout=300)
        assert worker.returncode == 0, output.decode()[-3000:]
    result: dict[str, Any] = torch.load(out)
    return result


OBJECTIVES = {"relativistic": (), "bce": ("loss.kind=bce", "loss.gamma=0")}


@pytest.fixture(scope="module", params=OBJECTIVES)
def objective(request: pytest.FixtureRequest) -> tuple[str, ...]:
    return OBJECTIVES[request.param]


@pytest.fixture(scope="module")
def plain(objective: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return train("plain", 1, tmp_path_factory.mktemp("plain") / "plain.pt", *objective)


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_five_steps_equal_plain_pytorch(
    stage: int, ranks: int, objective: tuple[str, ...], plain: dict[str, Any], tmp_path: Path
) -> None:
    trained = train(stage, ranks, tmp_path / "trained.pt", *objective)
    for network in ("generator", "critic", "ema"):
        assert trained[network].keys() == plain[network].keys()
        for name, expected in plain[network].items():
            difference = (trained[network][name] - expected).abs().max().item()
            assert difference <= TOLERANCE, f"{network}.{name} is off by {difference:.2e}"


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_batch_norm_sees_fakes_in_the_same_company_in_both_half_steps(
    stage: int, tmp_path: Path
) -> None:
    baseline = ("model.kind=conv3d", "loss.kind=bce", "loss.gamma=0")
    plain = train("plain", 1, tmp_path / "plain.pt", *baseline)
    trained = train(stage, 1, tmp_path / "trained.pt", *baseline)
    for name, expected in plain["critic"].items():
        torch.testing.assert_close(trained["critic"][name], expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_saved_and_loaded_it_goes_on_as_if_nothing_had_been(stage: int, tmp_path: Path) -> None:
    through = train(stage, 2, tmp_path / "through.pt")
    resumed = train(stage, 2, tmp_path / "resumed.pt", RESUME_AT="3")
    for network, tensors in through.items():
        for name, expected in tensors.items():
            assert torch.equal(resumed[network][name], expected), f"{network}.{name}"


def test_the_comparison_notices_a_missing_penalty(plain: dict[str, Any], tmp_path: Path) -> None:
    other = train(1, 1, tmp_path / "other.pt", "loss.gamma=0.5", "loss.kind=relativistic")
    worst = max((other["critic"][k] - v).abs().max().item() for k, v in plain["critic"].items())
    assert worst > 100 * TOLERANCE
