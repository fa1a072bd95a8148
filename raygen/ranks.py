"""Joins the ranks of a job, and builds what DeepSpeed compiles where it first runs."""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path

import deepspeed
import torch
from deepspeed.comm.torch import build_shm_op
from torch.utils import cpp_extension

from raygen import heap

# Its shared-memory communication, which `init_distributed` loads on a CPU.
_OPERATOR = "deepspeed_shm_comm"
_LOCK = "raygen.lock"


def join(device: torch.device) -> None:
    """Makes the process group of the rank that RANK, WORLD_SIZE and MASTER_ADDR describe.

    NCCL where `device` is a GPU, gloo on a CPU. Returns when all ranks have come.
    """
    if device.type == "cpu":
        heap.keep()
        _build()
    deepspeed.init_distributed("nccl" if device.type == "cuda" else "gloo")


def _build() -> None:
    """Builds and loads the operator, one process of the machine at a time.

    PyTorch marks a build by a file that a killed process leaves behind, and whoever finds it waits
    for ever. Our own lock ends with its process: with it in hand, such a file is nobody's.
    """
    # What PyTorch itself asks for the folder: TORCH_EXTENSIONS_DIR, or one in the user's cache.
    folder = Path(cpp_extension._get_build_directory(_OPERATOR, verbose=False))
    with (folder / _LOCK).open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        (folder / "lock").unlink(missing_ok=True)
        with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
            build_shm_op()  # the next call finds it loaded
