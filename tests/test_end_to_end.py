"""The demo's whole path, from a bucket of clips to a clip over HTTP, with little training."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from raygen.data import decode
from raygen.runs import Run


def test_from_a_bucket_of_clips_to_a_clip_over_http(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "raygen",
        "demo",
        "--minutes",
        "1",
        "--folder",
        str(tmp_path),
    ]
    demo = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert demo.returncode == 0, demo.stdout + demo.stderr
    assert "Done in" in demo.stdout
    run = Run.open(str(tmp_path / "runs" / "demo"))
    assert f"{run.status['step']} steps" in demo.stdout
    for name, frames in (("fetched.mp4", 16), ("clips.mp4", 16)):
        clip = decode.decode_all((tmp_path / name).read_bytes(), fps=16, size=64, seconds=1.0)
        assert clip.shape == (frames, 64, 64, 3)
        assert clip.std() > 1
    assert (tmp_path / "contact-sheet.png").read_bytes().startswith(b"\x89PNG")
    document = json.loads((tmp_path / "export" / "config.json").read_text())
    assert document["classes"] == run.classes
    assert document["evaluation"]["judge_accuracy"] > 0.8
