"""Memory that a process frees and wants again."""

from __future__ import annotations

import subprocess
import sys

ROUNDS, TENSORS, MEGABYTES, PAGE = 20, 4, 24, 4096
PROGRAM = f"""
import resource, sys
import torch
from raygen import heap
if sys.argv[1] == "kept":
    heap.keep()
def step():
    held = [torch.ones({MEGABYTES} << 18) for _ in range({TENSORS})]
for _ in range(5):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range({ROUNDS}):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def test_what_was_freed_is_not_fetched_from_the_kernel_again() -> None:
    def faults(how: str) -> int:
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=True
        )
        return int(done.stdout)

    pages = ROUNDS * TENSORS * (MEGABYTES << 20) // PAGE
    assert faults("kept") < pages // 10 < faults("as it is")
