"""The models of a registry: what is live there answers here a few seconds later.

    models = Following("s3://bucket/registry", device="cpu")
    served = await models.resolve("best")     # raises ModelNotFound

A new live version is loaded and smoke-tested beside the old one, in a thread, and answers from one
request to the next; those that had the old one finish with it, and it is unloaded after the last.
What fails stays out, and what was there goes on. One that was yanked answers no more.
"""

from __future__ import annotations

import asyncio
import copy
import logging
import math
import random
import time
import weakref
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

from raygen.errors import ExportError, RaygenError
from raygen.manifest import Signer
from raygen.registry import Registry
from raygen.releases import Shelf, Shelves, Version
from raygen.smoke import smoke_test
from serve.generator import QUEUE_S, ClipSource
from serve.models import ModelNotFound, Served
from serve.schemas import BEST, Model

POLL_S = 2.0  # between looks at the registry: one listing each
MEMORY_MIB = 4096  # of weights that are kept loaded

log = logging.getLogger("ray.serve")  # the one that Serve's replicas write

Key = tuple[str, str]  # name and digest


@dataclass(frozen=True)
class Followed(Served):
    """A version of a registry's model that is loaded and has passed its smoke test."""

    published: str = ""
    clip_ms: float = math.inf  # as its smoke test measured here
    size: int = 0  # bytes of its weights

    @property
    def name(self) -> str:
        """What it is published as, which may be another name than its run's."""
        return self.published


class Following:
    """All models of a registry; `best` is the live version of `name`, by default its first model.

    As `serve.models.Models` for whom a request concerns. `memory_mib` bounds the weights that are
    kept: beyond it those asked for longest ago are unloaded, and loaded again when asked for.
    """

    def __init__(
        self,
        registry: str,
        device: str = "cpu",
        drawing: str = "auto",
        name: str = "",
        *,
        watermark: bool = False,
        signer: Signer | None = None,
        queue_s: float = QUEUE_S,
        poll_s: float = POLL_S,
        memory_mib: float = MEMORY_MIB,
    ) -> None:
        """Loads what is live of `name`.

        Raises StorageError where there is no registry, ConfigError where it has no such model,
        ExportError where nothing of it is live or that fails its smoke test here.
        """
        self._registry = Registry(registry)
        self._device, self._drawing = device, drawing
        self._watermark, self._signer, self._queue_s = watermark, signer, queue_s
        self._poll_s, self._memory = poll_s, memory_mib * (1 << 20)
        self._version, self._shelves = self._read()
        self._default = name or next(iter(self._shelves))
        self._loaded: OrderedDict[Key, Followed] = OrderedDict()
        self._loading: dict[Key, asyncio.Task[Followed]] = {}
        self._live: dict[str, str] = {}  # digests by name, of those that passed
        self._canary: dict[str, tuple[str, float]] = {}  # digest and share
        self._refused: dict[Key, str] = {}
        self._cards: dict[Key, Model] = {}
        self._said: dict[str, str] = {}  # what the log was told last of each name
        self._looked_at = -math.inf
        self._turn = asyncio.Lock()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="registry")
        self._watch: asyncio.Task[None] | None = None
        shelf = self._shelves.named(self._default)
        if shelf.live is None:
            raise ExportError(f"no version of {shelf.name} in {registry} is live", registry)
        self._keep(self._load(shelf, shelf.live))
        self._live[shelf.name] = shelf.live.digest

    def names(self) -> list[str]:
        """The names that `resolve` knows, `best` not among them."""
        self._start()
        return [name for name, shelf in self._shelves.items() if shelf.live is not None]

    def cards(self) -> list[Model]:
        """What callers are told of each model whose live version works here."""
        self._start()
        return [self._card(name, digest) for name, digest in self._live.items()]

    async def resolve(self, name: str) -> Served:
        """The live version of a name or of `best`, or the version of a digest.

        Raises ModelNotFound naming those there are, StorageError where one has to be loaded and
        cannot be had.
        """
        self._start()
        name = self._default if name == BEST else name
        if name not in self._shelves and self._versions(name) is None:
            await self._look()  # another replica may have seen it first
        if name in self._shelves:
            return await self._get(name, self._choose(name))
        key = self._versions(name)
        if key is None:
            known = ", ".join([BEST, *self.names()])
            raise ModelNotFound(f"no model {name!r} here; there are {known}")
        return await self._get(*key)

    async def close(self) -> None:
        """Ends the watching; the models go when nobody has them any more."""
        if self._watch is not None:
            self._watch.cancel()
        self._loaded.clear()
        self._thread.shutdown(wait=False)

    def _choose(self, name: str) -> str:
        """The digest that answers for `name` this time. Raises ModelNotFound."""
        canary = self._canary.get(name)
        if canary is not None and random.random() < canary[1]:
            return canary[0]
        if name in self._live:
            return self._live[name]
        live = self._shelves[name].live
        if live is None:
            raise ModelNotFound(f"no version of {name} is live")
        return live.digest

    def _versions(self, digest: str) -> Key | None:
        for name, shelf in self._shelves.items():
            if digest in shelf.versions and digest not in shelf.yanked:
                return name, digest
        return None

    async def _get(self, name: str, digest: str) -> Followed:
        key = (name, digest)
        if key in self._loaded:
            self._loaded.move_to_end(key)
            return self._loaded[key]
        if key in self._refused:
            raise ModelNotFound(self._refused[key])
        if key not in self._loading:
            task = asyncio.create_task(self._fetch(key))
            self._loading[key] = task
            task.add_done_callback(lambda _: self._loading.pop(key, None))
        # Whoever gives up does not end it for the others.
        return await asyncio.shield(self._loading[key])

    async def _fetch(self, key: Key) -> Followed:
        name, digest = key
        shelf = self._shelves[name]
        loop = asyncio.get_running_loop()
        try:
            served = await loop.run_in_executor(
                self._thread, self._load, shelf, shelf.versions[digest]
            )
        except ExportError as error:
            self._refused[key] = str(error)
            raise ModelNotFound(str(error)) from None
        if digest in self._shelves[name].yanked:
            raise ModelNotFound(f"{digest} of {name} was yanked")
        self._keep(served)
        weakref.finalize(served, _let_go, loop, served.source)
        return served

    def _load(self, shelf: Shelf, version: Version) -> Followed:
        generator = self._registry.load(version, self._device)
        clip_ms = smoke_test(generator, uri=f"{shelf.name} {version.digest}")
        tensors = generator.module.state_dict().values()
        return Followed(
            ClipSource(generator, self._drawing, self._queue_s, self._watermark, self._signer),
            published=shelf.name,
            clip_ms=clip_ms,
            size=sum(tensor.numel() * tensor.element_size() for tensor in tensors),
        )

    def _keep(self, served: Followed) -> None:
        key = (served.name, served.digest)
        self._loaded[key] = served
        used = sum(each.size for each in self._loaded.values())
        for other in [*self._loaded]:
            # What the default model is just now stays, whatever it takes.
            if used <= self._memory or other in (
                key,
                (self._default, self._live.get(self._default)),
            ):
                continue
            used -= self._loaded.pop(other).size
        self._cards[key] = served.card

    def _card(self, name: str, digest: str) -> Model:
        served = self._loaded.get((name, digest))
        best = {"best": name == self._default}
        if served is not None:
            return served.card.model_copy(update=best)
        return self._cards[name, digest].model_copy(
            update=best | {"drawing": None, "clips_per_s": None}
        )

    def _start(self) -> None:
        if self._watch is None:
            loop = asyncio.get_running_loop()
            for served in self._loaded.values():  # the first, which no loop saw
                weakref.finalize(served, _let_go, loop, served.source)
            self._watch = loop.create_task(self._watching())

    async def _watching(self) -> None:
        followed = -1
        while True:
            shelves = self._shelves
            if self._version != followed and await self._follow(shelves):
                followed = self._version if shelves is self._shelves else -1
            await asyncio.sleep(self._poll_s)
            try:
                await self._look(self._poll_s / 2)
            except RaygenError as error:  # what is loaded goes on
                self._say("", f"the registry cannot be read: {error}")

    async def _look(self, pause_s: float = 1.0) -> None:
        """Reads the registry as it now is, so long after it was last read at the earliest."""
        asked = time.monotonic()
        async with self._turn:
            if self._looked_at >= asked:  # for another request
                return
            await asyncio.sleep(self._looked_at + pause_s - asked)
            self._looked_at = time.monotonic()
            loop = asyncio.get_running_loop()
            version, shelves = await loop.run_in_executor(self._thread, self._read)
            if version > self._version:
                self._version, self._shelves = version, shelves
                self._refused.clear()

    def _read(self) -> tuple[int, Shelves]:
        shelves = copy.deepcopy(self._registry.refresh())
        return self._registry.version, shelves

    async def _follow(self, shelves: Shelves) -> bool:
        """Makes live here what is live there; whether the storage let it."""
        settled = True
        for name, shelf in shelves.items():
            for key in [key for key in self._loaded if key[0] == name and key[1] in shelf.yanked]:
                del self._loaded[key]
            if self._live.get(name) in shelf.yanked or shelf.live is None:
                self._live.pop(name, None)
            if self._canary.get(name, ("", 0.0)) != (shelf.canary, shelf.share):
                self._canary.pop(name, None)
            try:
                if shelf.live is not None and self._live.get(name) != shelf.live.digest:
                    await self._check(shelf, shelf.live.digest)
                    was = self._live.get(name, "nothing")
                    self._live[name] = shelf.live.digest
                    self._say(name, f"{name} is {shelf.live.digest} from now on; it was {was}")
                if shelf.canary and name not in self._canary:
                    await self._check(shelf, shelf.canary)
                    self._canary[name] = (shelf.canary, shelf.share)
            except RaygenError as error:
                self._say(name, f"{name} stays as it is: {error}")
                settled = settled and isinstance(error, ModelNotFound)
        return settled

    async def _check(self, shelf: Shelf, digest: str) -> None:
        """Raises ModelNotFound where it fails here, StorageError where it cannot be had."""
        served = await self._get(shelf.name, digest)
        if served.clip_ms > shelf.limit_ms:
            raise ModelNotFound(
                f"{digest} takes {served.clip_ms:.0f} ms a clip here, and {shelf.limit_ms:g} are "
                "the limit"
            )

    def _say(self, name: str, text: str) -> None:
        if self._said.get(name) != text:
            self._said[name] = text
            log.warning("%s", text)


def check(registry: str, name: str = "") -> None:
    """Raises as Following does, short of drawing: where nothing is live, or it is damaged."""
    target = Registry(registry)
    shelves = target.refresh()
    shelf = shelves.named(name) if name else next(iter(shelves.values()))
    if shelf.live is None:
        raise ExportError(f"no version of {shelf.name} in {registry} is live", registry)
    target.load(shelf.live)


def _let_go(loop: asyncio.AbstractEventLoop, source: ClipSource) -> None:
    with suppress(RuntimeError):  # the loop may have ended before
        loop.call_soon_threadsafe(source.close)
