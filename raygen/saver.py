"""Saving the pair while it trains: a copy in memory now, everything else in a thread.

Every rank copies its own part (`Pair.states`), and its thread takes it from there: to the vaults
of two nodes each time, and to the run's storage when a checkpoint is due. A checkpoint becomes one
when rank 0 writes its state.json, with the checksum of every rank's files. A failing bucket or a
full disk costs that checkpoint, not the training and not the checkpoint before it.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, field
from typing import Any

import ray
from ray.exceptions import RayError

from raygen import packing
from raygen.data import lineage, quarantine, store
from raygen.data.catalog import Catalogue
from raygen.engine import Pair
from raygen.errors import StorageError
from raygen.runs import EMA, STATE, Progress, Run, checkpoint_name, sealed
from raygen.vault import Part

Gather = Callable[[Any], list[Any]]
"""Collective: what every rank gave it, by rank."""

VAULT_S = 60.0  # the last copies are waited for so long, where they are all there is


@dataclass(frozen=True)
class Moment:
    """What is kept beside the networks.

    `consumed`: (step, row) of the clips that this rank has trained on since the newest checkpoint
    on storage; `refused`: rows of the catalogue that could not be decoded, and why; `losses`: the
    newest; `health`: the state of raygen.health.
    """

    progress: Progress
    consumed: Sequence[tuple[int, int]]
    refused: Mapping[int, str]
    losses: Mapping[str, float]
    health: Mapping[str, Any]


@dataclass
class _Kept:
    """What this rank's thread did; `files`: name to size in bytes and sha256."""

    consumed: Sequence[tuple[int, int]]
    files: dict[str, tuple[int, str]] = field(default_factory=dict)
    error: str = ""


@dataclass(frozen=True)
class _Open:
    """A checkpoint on its way to storage."""

    moment: Moment
    state: dict[str, Any]
    kept: Future[_Kept]


class Saver:
    """Collective to build, and so are `take`, `commit` and `finish`.

    `near` are the vaults for this rank's part; `note` is told, on rank 0, what could not be
    written. `saved_at` is the newest step that is whole on storage, known to rank 0 first and to
    all after `finish`; `tried_at` the newest that was to be, `kept_at` the newest that was taken.
    """

    def __init__(
        self,
        pair: Pair,
        run: Run,
        catalogue: Catalogue,
        *,
        rank: int,
        world_size: int,
        near: Sequence[Any],
        gather: Gather,
        saved_at: int,
        note: Callable[[str], None],
    ) -> None:
        self.pair, self.run, self.catalogue = pair, run, catalogue
        self.rank, self.world_size, self.near = rank, world_size, near
        self.gather, self.note = gather, note
        self.saved_at = self.tried_at = self.kept_at = saved_at
        self.snapshot_s = self.checkpoint_s = 0.0
        self._group: str = gather(uuid.uuid4().hex)[0]
        self._thread = ThreadPoolExecutor(1, "saver")
        self._newest: Future[_Kept] | None = None
        self._copies: list[Future[None]] = []
        self._open: _Open | None = None
        self._commit: Future[None] | None = None

    @property
    def busy(self) -> bool:
        """Whether this rank's thread is still at work, or its copies on their way."""
        jobs = (self._newest, self._commit, *self._copies)
        return any(job is not None and not job.done() for job in jobs)

    @property
    def open(self) -> bool:
        """Whether a checkpoint waits for `commit`; alike on every rank."""
        return self._open is not None

    def take(self, moment: Moment, *, to_storage: bool) -> None:
        """Copies the state after `moment.progress.step` and returns.

        With `to_storage` no other checkpoint may be open.
        """
        began = time.monotonic()
        states, average = self.pair.states(), self.pair.ema.gather()
        if self.rank == 0:
            states[EMA] = average
        step = self.kept_at = moment.progress.step
        state = asdict(moment.progress) | {
            "world_size": self.world_size,
            "config": self.pair.config.dump(),
            "losses": dict(moment.losses),
            "health": dict(moment.health),
            "objective": self.pair.objective.state(),
        }
        part = Part(
            self._group,
            step,
            self.rank,
            self.world_size,
            packing.pack(states),
            tuple(moment.consumed),
            state if self.rank == 0 else None,
        )
        uri = self.run.path(checkpoint_name(step)) if to_storage else None
        stalled = time.monotonic() - began
        kept = self._thread.submit(self._keep, part, states, uri, stalled)
        self._newest = kept
        if to_storage:
            self.tried_at = step
            self._open = _Open(moment, state, kept)

    def commit(self) -> None:
        """Makes the open checkpoint one; waits for the slowest rank's thread."""
        assert self._open is not None
        open_, self._open = self._open, None
        everyones: list[_Kept] = self.gather(open_.kept.result())
        if self.rank == 0:
            if self._commit is not None:
                self._commit.result()  # done by now: what a bug in it raised is not to be lost
            self._commit = self._thread.submit(self._write_state, open_, everyones)

    def finish(self) -> None:
        """Waits until what was begun is on storage, or cannot be."""
        if self.open:
            self.commit()
        if self._commit is not None:
            self._commit.result()
        self.saved_at = max(self.gather(self.saved_at))
        if self._newest is not None and self.saved_at < self.kept_at:
            # What is not on storage is to be in the vaults before these workers are gone.
            self._newest.result()
            wait(self._copies, VAULT_S)

    def _keep(
        self,
        part: Part,
        states: Mapping[str, Any],
        uri: str | None,
        stalled_s: float,
    ) -> _Kept:
        began = time.thread_time()
        self._copies = self._send(part)
        self.snapshot_s = stalled_s + time.thread_time() - began
        kept = _Kept(part.consumed)
        if uri is not None:
            try:
                for name, data in packing.serialize(states).items():
                    store.write_bytes(store.join(uri, name), data)
                    kept.files[name] = len(data), hashlib.sha256(data).hexdigest()
            except StorageError as error:
                kept.error = str(error)
            self.checkpoint_s = stalled_s + time.thread_time() - began
        return kept

    def _send(self, part: Part) -> list[Future[None]]:
        """Done when the vaults have it. One that died with its node is no loss here."""
        if not self.near:
            return []
        try:
            once = ray.put(part)
            return [vault.keep.remote(once).future() for vault in self.near]
        except RayError:  # no room for another copy: the next one is newer
            return []

    def _write_state(self, open_: _Open, everyones: Sequence[_Kept]) -> None:
        moment, step = open_.moment, open_.moment.progress.step
        uri = self.run.path(checkpoint_name(step))
        try:
            for kept in everyones:
                if kept.error:
                    raise StorageError(kept.error)
            consumed = [pair for kept in everyones for pair in kept.consumed]
            # Left by a checkpoint of which only this much was written.
            lineage.forget_after(self.run.uri, self.saved_at)
            # What was taken before the checkpoint that came before was known to be whole.
            lineage.add(self.run.uri, step, [pair for pair in consumed if pair[0] > self.saved_at])
            quarantine.add(self.run.uri, self.catalogue, moment.refused)
            files = {name: entry for kept in everyones for name, entry in kept.files.items()}
            store.write_bytes(store.join(uri, STATE), sealed(open_.state | {"files": files}))
        except StorageError as error:
            self.note(f"step {step} is not saved: {error}; training goes on, and tries again later")
            # A full disk needs the room; where storage does not answer, a resumption removes it.
            with contextlib.suppress(StorageError):
                self.run.discard(step)
            return
        self.saved_at = step
