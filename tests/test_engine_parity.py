"""The pair under ZeRO equals a plain PyTorch loop, parameter by parameter."""

from __future__ import annotations

import functools
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch

TOLERANCE = 1e-6


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@functools.cache
def trained(stage: int | str, ranks: int, *overrides: str) -> dict[str, Any]:
    """What an undisturbed training ends with; several tests compare with the same."""
    with tempfile.TemporaryDirectory() as folder:
        return train(stage, ranks, Path(folder) / "out.pt", *overrides)


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
            "DS_ACCELERATOR": environment.get("DEVICE", "cpu"),
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
def plain(objective: tuple[str, ...]) -> dict[str, Any]:
    return trained("plain", 1, *objective)


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_five_steps_equal_plain_pytorch(
    stage: int, ranks: int, objective: tuple[str, ...], plain: dict[str, Any]
) -> None:
    ended = trained(stage, ranks, *objective)
    for network in ("generator", "critic", "ema"):
        assert ended[network].keys() == plain[network].keys()
        for name, expected in plain[network].items():
            difference = (ended[network][name] - expected).abs().max().item()
            assert difference <= TOLERANCE, f"{network}.{name} is off by {difference:.2e}"


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_batch_norm_sees_fakes_in_the_same_company_in_both_half_steps(stage: int) -> None:
    baseline = ("model.kind=conv3d", "loss.kind=bce", "loss.gamma=0")
    plain, ended = trained("plain", 1, *baseline), trained(stage, 1, *baseline)
    for name, expected in plain["critic"].items():
        torch.testing.assert_close(ended["critic"][name], expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_saved_and_loaded_it_goes_on_as_if_nothing_had_been(stage: int, tmp_path: Path) -> None:
    through = trained(stage, 2)
    resumed = train(stage, 2, tmp_path / "resumed.pt", RESUME_AT="3")
    for network, tensors in through.items():
        for name, expected in tensors.items():
            assert torch.equal(resumed[network][name], expected), f"{network}.{name}"


@pytest.mark.parametrize(
    ("stage", "before", "after"), [(0, 2, 1), (1, 2, 1), (2, 1, 2), (3, 2, 1), (3, 1, 2)]
)
def test_another_number_of_ranks_goes_on_where_the_first_stopped(
    stage: int, before: int, after: int, tmp_path: Path
) -> None:
    through = trained(stage, before)
    folder = str(tmp_path / "handover")
    train(stage, before, tmp_path / "none.pt", RESUME_AT="3", HANDOVER=folder)
    resumed = train(stage, after, tmp_path / "resumed.pt", RESUME_AT="3", FROM=folder)
    for network, tensors in through.items():
        for name, expected in tensors.items():
            difference = (resumed[network][name] - expected).abs().max().item()
            assert difference <= TOLERANCE, f"{network}.{name} is off by {difference:.2e}"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_five_steps_on_a_gpu_equal_plain_pytorch_there(stage: int, tmp_path: Path) -> None:
    plain = train("plain", 1, tmp_path / "plain.pt", DEVICE="cuda")
    ended = train(stage, 1, tmp_path / "ended.pt", DEVICE="cuda")
    for network in ("generator", "critic", "ema"):
        for name, expected in plain[network].items():
            difference = (ended[network][name] - expected).abs().max().item()
            # Convolutions' algorithms differ in rounding on a GPU, and Adam magnifies it.
            assert difference <= 10 * TOLERANCE, f"{network}.{name} is off by {difference:.2e}"


def test_the_comparison_notices_a_missing_penalty(plain: dict[str, Any], tmp_path: Path) -> None:
    other = train(1, 1, tmp_path / "other.pt", "loss.gamma=0.5", "loss.kind=relativistic")
    worst = max((other["critic"][k] - v).abs().max().item() for k, v in plain["critic"].items())
    assert worst > 100 * TOLERANCE
