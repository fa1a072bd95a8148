"""A checkpoint of one number of workers, read by another.

DeepSpeed's shards belong to the world size that wrote them; its universal format (arXiv
2406.18820) holds each parameter and its optimizer state whole. The conversion takes a few seconds
and the memory of one parameter.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from raygen.errors import CheckpointError

NETWORKS = ("generator", "critic")


def to_universal(folder: str, out: str) -> None:
    """Writes `folder`'s generator/ and critic/ to `out`, loadable at any world size.

    Raises CheckpointError where the shards are not whole.
    """
    for network in NETWORKS:
        # In a process of its own: the converter forks, and this one may hold a GPU.
        done = subprocess.run(
            [
                *(sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal"),
                "--inject_missing_state",
                *("--input_folder", str(Path(folder) / network)),
                *("--output_folder", str(Path(out) / network)),
                *("--num_extract_workers", "1", "--num_merge_workers", "1"),
            ],
            env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise CheckpointError(f"cannot convert the {network} of {folder}: {last}")
