"""A registry: a folder or s3:// prefix of published generators, of which it says the best.

    raygen publish runs/tiny s3://bucket/registry
    raygen models s3://bucket/registry --by score --limit 'clip_ms<=200'

    registry = Registry("s3://bucket/registry")
    generator = registry.load(registry.refresh().named("tiny").live)

    models/SHA256/      an export as `raygen export` writes it, named by its config.json, which
                        holds the SHA-256 of the weights: what is read is checked against its name
    log/00000001.json   what happened, one object an event (raygen.releases)

Nothing is visible before its event is, and an event is one object that is written only if it is
not there: of two publishers at once one comes second and decides again with the first one's event
before it. A publisher that is killed leaves objects that no event names. Only safetensors and JSON
are read, never a pickle.
"""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from raygen.data import store
from raygen.errors import ConfigError, ExportError, StorageError
from raygen.export import CARD, CONFIG, WEIGHTS, Generator, export_run, load_generator
from raygen.releases import RANKED, Limit, Shelf, Shelves, Version, figures_of, known
from raygen.runs import Run
from raygen.smoke import smoke_test

LOG, MODELS = "log", "models"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_ENTRY = re.compile(r"\d{8}\.json")
_RESERVED = {"best"}  # what serving calls the live version of whatever there is


class Registry:
    """The registry at `uri`; opening it reads nothing. For several threads and processes.

    Methods that change it return the model as it was left, and raise ConfigError for what cannot
    be, StorageError where the storage fails.
    """

    def __init__(self, uri: str) -> None:
        self.uri = store.absolute(uri)
        self._lock = threading.RLock()
        self._shelves = Shelves()
        self._count = 0

    @property
    def version(self) -> int:
        """How many events were read so far."""
        return self._count

    def refresh(self) -> Shelves:
        """The models, with all that has happened; one listing where nothing has.

        Raises StorageError where there is no registry or it is damaged.
        """
        with self._lock:
            self._read()
            if not self._count:
                raise StorageError(
                    f"no registry at {self.uri}; `raygen publish RUN {self.uri}` begins one",
                    self.uri,
                )
            return self._shelves

    def check(self, name: str) -> None:
        """Raises as `publish` would for a name that none can have and a storage that fails."""
        _check_name(name)
        store.check_writable(self.uri)
        with self._lock:
            self._read()

    def publish(self, export: str, name: str = "") -> Version:
        """Publishes an export under `name`, its run's by default.

        Raises ExportError where it is damaged or fails its smoke test, which it must pass within
        the model's limits; then nothing is written.
        """
        generator = load_generator(export)
        name = name or generator.name
        _check_name(name)
        with self._lock:
            self._read()
            limit_ms = self._shelves[name].limit_ms if name in self._shelves else float("inf")
        clip_ms = smoke_test(generator, limit_ms, export)
        files = {
            part: store.read_bytes(store.join(export, part)) for part in (WEIGHTS, CARD, CONFIG)
        }
        folder = hashlib.sha256(files[CONFIG]).hexdigest()
        for part, data in files.items():
            store.write_bytes(store.join(self.uri, MODELS, folder, part), data)
        figures = figures_of(generator.evaluation, round(clip_ms, 3))
        digest = generator.digest

        def decide(shelves: Shelves) -> dict[str, Any]:
            if name in shelves and digest in shelves[name].yanked:
                why = shelves[name].yanked[digest]
                raise ConfigError(f"{digest} of {name} was yanked ({why}) and stays so", "digest")
            values = {"digest": digest, "folder": folder, "figures": figures}
            return _event("published", name, **values)

        return self._commit(decide)[name].versions[digest]

    def publish_run(self, run: Run, name: str = "") -> Version:
        """Exports the run's newest averaged generator and publishes that. Raises alike."""
        with tempfile.TemporaryDirectory(prefix="raygen-") as folder:
            export_run(run, str(Path(folder) / "export"))
            return self.publish(str(Path(folder) / "export"), name)

    def rank(self, name: str, by: str | None = None, limits: Sequence[str] | None = None) -> Shelf:
        """Says what the best is: told by a figure of RANKED, of those that meet the limits.

        What is None stays as it is.
        """
        if by is not None:
            known(by, tuple(RANKED))
        parsed = None if limits is None else [str(Limit.parse(limit)) for limit in limits]

        def decide(shelves: Shelves) -> dict[str, Any]:
            shelf = shelves.named(name)
            kept = [str(limit) for limit in shelf.limits]
            values = {"by": by or shelf.by, "limits": kept if parsed is None else parsed}
            return _event("ranked", shelf.name, **values)

        return self._change(decide)

    def pin(self, name: str, digest: str) -> Shelf:
        """Makes a version live whatever is best; an empty `digest` lets the best be live again."""

        def decide(shelves: Shelves) -> dict[str, Any]:
            shelf = shelves.named(name)
            return _event("pinned", shelf.name, digest=digest and _sound(shelf, digest))

        return self._change(decide)

    def rollback(self, name: str) -> Shelf:
        """Makes live, and pins, what was live before; again, what was before that."""
        seen = ""

        def decide(shelves: Shelves) -> dict[str, Any]:
            nonlocal seen
            shelf = shelves.named(name)
            seen = seen or shelf.history[-1]
            if shelf.history[-1] != seen:
                raise ConfigError(
                    f"somebody else has just made {shelf.history[-1]} live in place of {seen}; "
                    "look, and roll back again if you still want to"
                )
            if shelf.before is None:
                raise ConfigError(f"nothing was live of {shelf.name} before {seen}")
            return _event("rolled_back", shelf.name, digest=shelf.before)

        return self._change(decide)

    def yank(self, name: str, digest: str, why: str) -> Shelf:
        """Takes a version out of service for good."""

        def decide(shelves: Shelves) -> dict[str, Any]:
            shelf = shelves.named(name)
            return _event("yanked", shelf.name, digest=shelf.find(digest).digest, why=why)

        return self._change(decide)

    def canary(self, name: str, digest: str, share: float) -> Shelf:
        """Gives a version a share, 0 to 1, of what asks for the best; 0 ends that."""

        def decide(shelves: Shelves) -> dict[str, Any]:
            shelf = shelves.named(name)
            chosen = _sound(shelf, digest) if share else ""
            return _event("canary", shelf.name, digest=chosen, share=share)

        return self._change(decide)

    def folder(self, version: Version) -> str:
        """Where the version's export lies."""
        return store.join(self.uri, MODELS, version.folder)

    def load(self, version: Version, device: str = "cpu") -> Generator:
        """The generator. Raises ExportError where it is not, to the bit, what was published."""
        uri = self.folder(version)
        found = hashlib.sha256(store.read_bytes(store.join(uri, CONFIG))).hexdigest()
        generator = load_generator(uri, device)
        if found != version.folder or generator.digest != version.digest:
            raise ExportError(f"{uri} is not what was published as {version.digest}", uri)
        return generator

    def _change(self, decide: Callable[[Shelves], dict[str, Any]]) -> Shelf:
        self.refresh()
        name = ""

        def named(shelves: Shelves) -> dict[str, Any]:
            nonlocal name
            event = decide(shelves)
            name = event["name"]
            return event

        return self._commit(named)[name]

    def _commit(self, decide: Callable[[Shelves], dict[str, Any]]) -> Shelves:
        """Writes what `decide` makes of the newest state; no other event comes between."""
        with self._lock:
            while True:
                self._read()
                event = decide(self._shelves)
                uri = store.join(self.uri, LOG, _numbered(self._count + 1))
                if store.write_bytes(uri, json.dumps(event).encode(), only_if_absent=True):
                    self._take(event, uri)
                    return self._shelves

    def _read(self) -> None:
        log = store.join(self.uri, LOG)
        if not store.is_s3(log) and not Path(log).is_dir():
            return
        after = store.join(log, _numbered(self._count)) if self._count else ""
        for item in store.list_objects(log, start_after=after):
            if _ENTRY.fullmatch(item.uri.rpartition("/")[2]):
                try:
                    event = json.loads(store.read_bytes(item.uri))
                except ValueError:
                    event = None
                self._take(event, item.uri)

    def _take(self, event: Any, uri: str) -> None:
        try:
            self._shelves.add(event)
        except (KeyError, TypeError, ValueError, ConfigError):
            raise StorageError(
                f"{uri} is damaged, or a newer raygen wrote it: put back what was, or upgrade",
                uri,
            ) from None
        self._count += 1


def _event(kind: str, name: str, **values: Any) -> dict[str, Any]:
    # The writer tells apart two events that are otherwise the same: see store.write_bytes.
    written = {"at": time.time(), "writer": uuid.uuid4().hex[:12]}
    return {"event": kind, "name": name, **values, **written}


def _sound(shelf: Shelf, digest: str) -> str:
    version = shelf.find(digest)
    if version.digest in shelf.yanked:
        raise ConfigError(
            f"{version.digest} of {shelf.name} was yanked: {shelf.yanked[version.digest]}", "digest"
        )
    return version.digest


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name) or name in _RESERVED:
        raise ConfigError(
            f"{name!r} is no name for a model; take 1 to 64 letters, digits, dots, dashes and "
            "underscores, beginning with a letter or digit, and not best",
            "name",
        )


def _numbered(number: int) -> str:
    return f"{number:08d}.json"
