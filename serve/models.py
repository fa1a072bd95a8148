"""The models that answer: by name, by digest, or as `best`.

    models = Models(export, device="cpu")
    served = await models.resolve("best")     # raises ModelNotFound
    drawn = await served.source.draw(...)

A request keeps the `Served` that it resolved to its end, whatever becomes of `best` meanwhile.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from raygen.errors import RaygenError
from raygen.export import Generator, load_generator
from raygen.manifest import Signer
from raygen.models import any_length
from serve.generator import QUEUE_S, ClipSource
from serve.schemas import BEST, Model


class ModelNotFound(RaygenError):
    """No model of that name or digest answers here."""


@dataclass(frozen=True)
class Served:
    """A model that is loaded, behind its batcher."""

    source: ClipSource
    best: bool = True

    @property
    def generator(self) -> Generator:
        """What draws."""
        return self.source.generator

    @property
    def name(self) -> str:
        """What it is published as."""
        return self.generator.name

    @property
    def digest(self) -> str:
        """What its weights are: URLs under it never change their content."""
        return self.generator.digest

    @property
    def card(self) -> Model:
        """What callers are told of it."""
        generator = self.generator
        return Model(
            name=self.name,
            digest=self.digest,
            best=self.best,
            classes=generator.classes,
            conditions=list(generator.conditions.kinds),
            frames=generator.data.frames,
            size=generator.data.size,
            height=generator.data.height,
            width=generator.data.width,
            fps=generator.fps,
            any_length=any_length(generator.module),
            metrics=generator.evaluation,
            drawing=str(self.source.drawing),
            clips_per_s=self.source.clips_per_s,
        )


class AnyModels(Protocol):
    """What the routes ask: `Models`, or `serve.following.Following`."""

    def names(self) -> list[str]:
        """The names that `resolve` knows, `best` not among them."""

    def cards(self) -> list[Model]:
        """What callers are told of each."""

    async def resolve(self, name: str) -> Served:
        """The model of a name or digest, or `best`. Raises ModelNotFound naming those there are."""


class Models:
    """One export, which is `best` too."""

    def __init__(
        self,
        export: str,
        device: str,
        drawing: str = "auto",
        watermark: bool = False,
        signer: Signer | None = None,
        queue_s: float = QUEUE_S,
    ) -> None:
        """Loads it. `drawing`: as `serve.drawing.choose`. Raises ExportError."""
        generator = load_generator(export, device)
        self._only = Served(ClipSource(generator, drawing, queue_s, watermark, signer))

    def names(self) -> list[str]:
        """The names that `resolve` knows, `best` not among them."""
        return [self._only.name]

    def cards(self) -> list[Model]:
        """What callers are told of each."""
        return [self._only.card]

    async def resolve(self, name: str) -> Served:
        """The model of a name or digest, or `best`. Raises ModelNotFound naming those there are."""
        if name not in (BEST, self._only.name, self._only.digest):
            known = ", ".join([BEST, *self.names()])
            raise ModelNotFound(f"no model {name!r} here; there are {known}")
        return self._only
