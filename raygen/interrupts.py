"""Ctrl-C, counted: the first asks to save and end, the second to end at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def counted_interrupts(interrupts: list[int]) -> Iterator[None]:
    """`interrupts` grows by one with each Ctrl-C; outside the main thread it stays empty."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, lambda number, frame: interrupts.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
