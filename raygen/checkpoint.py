"""What a run goes on from: the newest whole state in memory or on storage.

    step-00000200/
      ema.safetensors       the averaged generator, whole
      generator/  critic/   DeepSpeed's shards
      state.json            step, data position, world size, config; size and sha256 of each file

state.json makes a checkpoint one (raygen.saver writes it last). One whose files are not what it
says is refused by name, and the one before it is taken; storage that does not answer ends the
session instead, or good checkpoints would be taken for bad. Copies in the memory of other nodes
(raygen.vault) are newer as a rule; they die with the driver.

Order, latents and augmentation are pure functions of (seed, step), so there is no random state to
keep, and the data position is the cursor of the plan.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ray.exceptions import RayError
from safetensors.torch import load_file

from raygen import packing, reshard
from raygen.config import Config
from raygen.data import store
from raygen.engine import Pair
from raygen.errors import CheckpointError, RaygenError, StorageError
from raygen.runs import EMA, STATE, Progress, Run, read_part, sealed, step_of, unsealed
from raygen.saver import Gather
from raygen.vault import Part, Vaults, Whole


@dataclass(frozen=True)
class Resumed:
    """Where a run stands; at its beginning there is no `folder`.

    `folder`: the state's files on this node. `saved_at`: the newest checkpoint on storage;
    `consumed`: what was trained on since, by all ranks: (step, row of the catalogue).
    """

    progress: Progress = field(default_factory=Progress)
    folder: str = ""
    world_size: int = 0
    stages: Mapping[str, int] = field(default_factory=dict)
    saved_at: int = 0
    consumed: tuple[tuple[int, int], ...] = ()
    health: Mapping[str, Any] = field(default_factory=dict)
    objective: Mapping[str, Any] = field(default_factory=dict)


class Resumption:
    """Fetches what there is to go on from; collective, as its methods are.

    One rank of each node fetches for all of its ranks (`nodes`: the node of each rank); `note` is
    told, on rank 0, what had to be passed over. With `before`, nothing from that step on is taken:
    the training had gone wrong. What is beyond the state that was found is removed,
    from storage and from memory, and so is what a torn checkpoint left.
    """

    def __init__(
        self,
        run: Run,
        vaults: Vaults,
        gather: Gather,
        note: Callable[[str], None],
        *,
        rank: int,
        nodes: Sequence[str],
        before: int | None = None,
    ) -> None:
        self.before = before
        self.run, self.vaults, self.gather, self.note = run, vaults, gather, note
        self._first, self._node, self._world_size = rank == 0, nodes[rank], len(nodes)
        # Ray Train's own local ranks go by address, which several nodes may share.
        self._fetches = nodes.index(self._node) == rank
        self._scratch = tempfile.mkdtemp(prefix="raygen-") if self._fetches else ""
        try:
            self.found = self._find()
        except RaygenError:
            shutil.rmtree(self._scratch, ignore_errors=True)
            raise
        self._converted: Future[None] | None = None
        if self.universal and self._fetches:
            # Takes seconds: beside the building of the engines.
            self._converted = ThreadPoolExecutor(1).submit(
                reshard.to_universal,
                self.found.folder,
                f"{self._scratch}/universal",
                [network for network, stage in self.found.stages.items() if stage],
            )

    @property
    def universal(self) -> bool:
        """Whether the shards belong to another number of workers, and must be converted."""
        found = self.found
        # Stage 0 has none: every rank holds all.
        return (
            bool(found.folder)
            and found.world_size != self._world_size
            and any(found.stages.values())
        )

    def load(self, pair: Pair) -> None:
        """Brings the pair to where the run stands."""
        found = self.found
        if found.folder:
            if self._converted is not None:
                self._converted.result()
            self.gather(None)
            converted = f"{Path(found.folder).parent}/universal" if self.universal else ""
            average = load_file(Path(found.folder) / EMA)
            pair.load(found.folder, average, found.objective, converted)
            self.gather(None)  # nobody deletes what another still reads
        if self._fetches:
            shutil.rmtree(self._scratch, ignore_errors=True)

    def _find(self) -> Resumed:
        candidates: list[tuple[str, int, Any]] = []
        if self._first:
            stored = [("storage", step_of(uri), uri) for uri in self.run.checkpoints()]
            held = [("memory", whole.step, whole) for whole in self.vaults.whole()]
            # Of the same step the copy in memory, which is nearer.
            candidates = [c for c in held + stored if self.before is None or c[1] < self.before]
            candidates.sort(key=lambda c: (c[1], c[0] == "memory"), reverse=True)
        candidates = self.gather(candidates)[0]
        damage = ""
        for kind, step, source in candidates:
            folder = f"{self._scratch}/{kind}-{step}"
            parts, problem = self._fetch(kind, source, folder)
            reports = self.gather((self._node, self._fetches, folder, problem))
            problems = [problem for *_, problem in reports if problem]
            if not problems:
                self._forget_after(step)
                folders = {node: folder for node, fetches, folder, _ in reports if fetches}
                saved = [at for kind, at, _ in candidates if kind == "storage" and at <= step]
                saved_at = max(saved, default=0)
                return _described(folders[self._node], saved_at, self.gather(parts)[0])
            if kind == "memory":
                continue
            for problem in problems:
                if not isinstance(problem, CheckpointError):
                    raise problem
            damage = damage or str(problems[0])
            if self._first:
                self.note(f"{problems[0]}; going on from the state before it")
        if damage:
            raise CheckpointError(
                f"{damage}, and no other checkpoint of {self.run.uri} is whole: put the file back, "
                "or begin anew with another name="
            )
        self._forget_after(0)
        return Resumed()

    def _forget_after(self, step: int) -> None:
        if self._first:
            self.run.discard_after(step)
            self.vaults.forget_after(step)

    def _fetch(self, kind: str, source: Any, folder: str) -> tuple[list[Part], RaygenError | None]:
        if not self._fetches:
            return [], None
        try:
            if kind == "memory":
                return _from_memory(source, folder), None
            _from_storage(source, folder)
        except RaygenError as error:
            return [], error
        except RayError as error:
            return [], StorageError(str(error))
        except OSError as error:
            return [], StorageError(f"no room for {source} in {folder}: {error.strerror}", folder)
        return [], None


def _described(folder: str, saved_at: int, parts: list[Part]) -> Resumed:
    state = unsealed((Path(folder) / STATE).read_bytes(), folder)
    progress, train = Progress.of(state), Config.parse(state["config"]).train
    consumed = [pair for part in parts for pair in part.consumed]
    return Resumed(
        progress,
        folder,
        state["world_size"],
        stages={"generator": train.zero_stage, "critic": train.critic_zero_stage},
        saved_at=saved_at,
        consumed=tuple((step, row) for step, row in consumed if step > saved_at),
        health=state["health"],
        objective=state.get("objective", {}),
    )


def _from_storage(uri: str, folder: str) -> None:
    """Raises CheckpointError where a file is missing or is not what state.json says."""
    state = store.read_bytes(store.join(uri, STATE))
    files = unsealed(state, store.join(uri, STATE))["files"]
    for name in files:
        _write(folder, name, read_part(uri, name, files))
    _write(folder, STATE, state)


def _from_memory(whole: Whole, folder: str) -> list[Part]:
    """The parts without their states. Raises RayError where a vault has died meanwhile."""
    parts = whole.fetch()
    for part in parts:
        for name, data in packing.serialize(packing.unpack(part.states)).items():
            _write(folder, name, data)
    assert parts[0].state is not None
    _write(folder, STATE, sealed(parts[0].state))
    return [replace(part, states=packing.pack({})) for part in parts]


def _write(folder: str, name: str, data: bytes) -> None:
    path = Path(folder) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
