"""How a rank joins its group."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

JOIN = """
import torch
from torch import distributed
from raygen import ranks
ranks.join(torch.device("cpu"))
total = torch.ones(1)
distributed.all_reduce(total)
print("joined", int(total))
distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_a_killed_build_holds_up_nobody(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    rank = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    environment = os.environ | rank | {"MASTER_PORT": str(port), "DS_ACCELERATOR": "cpu"}
    folder = tmp_path / "deepspeed_shm_comm"
    folder.mkdir()
    (folder / "lock").touch()  # what is left of a process that was killed while it built
    result = subprocess.run(
        [sys.executable, "-c", JOIN],
        env=environment | {"TORCH_EXTENSIONS_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert "joined 1" in result.stdout, result.stderr
    assert (folder / "deepspeed_shm_comm.so").is_file()
