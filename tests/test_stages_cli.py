"""Clips that are no squares, and a cascade, through the command line on a real Ray: minutes.

pytest -m slow tests/test_stages_cli.py
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import user_environment

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

CLIPS = ["data.frames=8", "data.fps=16", "train.batch_size=4", "train.steps=4"]
NARROW = ["model.generator_width=8", "model.critic_width=8", "model.latent_dim=8"]
TRAIN = [*CLIPS, *NARROW, "train.workers=1", "train.cpus_per_worker=1"]


def raygen(folder: Path, *words: str, code: int = 0) -> str:
    """What it prints, run in that folder."""
    done = subprocess.run(
        [sys.executable, "-m", "raygen", *words],
        cwd=folder,
        env=user_environment(),
        capture_output=True,
        text=True,
        timeout=900,
    )
    output = done.stdout + done.stderr
    assert done.returncode == code, output
    assert "Traceback" not in output
    return output


def clips(folder: Path, export: str) -> np.ndarray:
    """Two clips of an export, as `raygen generate` draws them."""
    raygen(folder, "generate", export, "-o", "clips.npy", "--n", "2")
    drawn: np.ndarray = np.load(folder / "clips.npy")
    return drawn


def test_a_wide_clip_and_then_a_larger_one_of_it(shapes: Path, tmp_path: Path) -> None:
    data = f"data.uri={shapes}"
    raygen(tmp_path, "train", "tiny", data, "name=low", "data.size=16x32", *TRAIN)
    raygen(tmp_path, "export", "runs/low", "-o", "exports/low")
    assert clips(tmp_path, "exports/low").shape == (2, 8, 16, 32, 3)

    larger = ["train", "superres", data, "model.factor=2", "model.blocks=1", *TRAIN]
    larger += ["train.precision=fp32", "train.micro_batch=4"]
    base = "model.base=exports/low"
    raygen(tmp_path, *larger, "name=high", "data.size=32x64", base)
    raygen(tmp_path, "export", "runs/high", "-o", "exports/high")
    # The export holds both networks: what it was made of may go.
    (tmp_path / "exports" / "low").rename(tmp_path / "gone")
    drawn = clips(tmp_path, "exports/high")
    assert drawn.shape == (2, 8, 32, 64, 3)
    assert drawn.std() > 1

    for words, code, said in (
        (["data.size=32x64"], 2, "model.base is empty: name the export"),
        (["data.size=32x64", "model.base=nowhere"], 1, "nowhere; make one with `raygen export"),
        (["data.size=64x64", "model.base=gone"], 2, "data.size=16x32, and its clips"),
        (["data.size=33x64", "model.base=gone"], 2, "data.size"),
    ):
        assert said in raygen(tmp_path, *larger, "name=wrong", *words, code=code)
