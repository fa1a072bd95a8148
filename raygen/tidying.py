"""Checkpoints that newer ones replace are removed, in a thread: storage may be slow."""

from __future__ import annotations

import contextlib
from concurrent.futures import Future, ThreadPoolExecutor

from raygen.errors import StorageError
from raygen.runs import Run, step_of


class Tidier:
    """Keeps the newest `keep` checkpoints of a run, the best, and the last that is sure to be good.

    That one is from before `onset`, the step up to which all was well: a rewind goes back to it.
    """

    def __init__(self, run: Run, keep: int) -> None:
        self._run, self._keep = run, keep
        self._thread = ThreadPoolExecutor(1, "tidy")
        self._doing: Future[None] | None = None
        self._at = 0

    def look(self, saved_at: int, onset: int, judged: int | None) -> None:
        """The newest checkpoint is of step `saved_at`; that of step `judged` is being judged."""
        if saved_at > self._at and (self._doing is None or self._doing.done()):
            self._at = saved_at
            self._doing = self._thread.submit(self._prune, onset, judged)

    def finish(self, onset: int) -> None:
        """Returns when what is to be removed at the end is."""
        self._thread.submit(self._prune, onset, None).result()

    def rewound(self, step: int) -> None:
        """The newest checkpoint is of `step` again."""
        self._at = step

    def good_before(self, onset: int) -> str | None:
        """The newest checkpoint from before `onset`."""
        good = [uri for uri in self._run.checkpoints() if step_of(uri) < onset]
        return good[-1] if good else None

    def _prune(self, onset: int, judged: int | None) -> None:
        # What storage refuses to do now is done after the next checkpoint.
        with contextlib.suppress(StorageError):
            good = self.good_before(onset)
            spare = (judged, None if good is None else step_of(good))
            self._run.prune(self._keep, spare)
