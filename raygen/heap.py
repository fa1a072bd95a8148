"""Memory that is freed and wanted again with each step or batch."""

from __future__ import annotations

import ctypes
import sys

# Of <malloc.h>; glibc takes no larger threshold, and an int.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_LARGEST, _NEVER = 32 << 20, (1 << 31) - 1

ENVIRONMENT = {
    "MALLOC_TRIM_THRESHOLD_": str(_NEVER),
    "MALLOC_MMAP_THRESHOLD_": str(_LARGEST),
    "MALLOC_ARENA_MAX": "1",
}
"""What `keep` says, for a process to come: its threads have one arena from the first of them on.

Where there are several already, a new thread may get any, and then gives back what it frees.
"""


def keep() -> None:
    """From now on this process keeps what it frees, where its C library is glibc.

    By default a large tensor's memory goes back to the kernel when it is freed and comes from it
    again for the next one, page by page: up to a seventh of the time of drawing a clip on a CPU,
    and up to a tenth of a small step's. What is kept is the peak of what was in use.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "gnu_get_libc_version"):
        libc.mallopt(_M_MMAP_THRESHOLD, _LARGEST)
        libc.mallopt(_M_TRIM_THRESHOLD, _NEVER)
        # Another thread's own arena is of pieces that go back whole, whatever the threshold.
        libc.mallopt(_M_ARENA_MAX, 1)
