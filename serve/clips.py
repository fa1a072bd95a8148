"""GET of models and of single clips; a clip's address under its model's digest never changes it.

GET /v1/models, /v1/models/{name}
GET /v1/models/{name}/clips/{seed}?class= &text= &frames= &fps= &truncation= &format= &scale=
"""

from __future__ import annotations

import hashlib
from http import HTTPStatus
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException

from raygen import __version__, video
from raygen.errors import ConfigError
from raygen.export import Generator
from serve.generator import PIECE, Ask
from serve.models import AnyModels, Served
from serve.negotiation import accepted
from serve.problems import documented
from serve.schemas import Format, Model

SEEDS = 2**63  # seeds are below it
FRAMES = 4096  # of a clip, at most
SCALE = 8
PIXELS = 2**26  # of a file that is made in one piece: 192 MiB as RGB
FOREVER = "max-age=31536000, immutable"

Name = Annotated[
    str, Field(max_length=200, pattern=r"^[\w.@-]+$", description="name, digest, or best")
]


class ClipPath(BaseModel):
    """A clip's place."""

    name: Name
    seed: int = Field(ge=0, lt=SEEDS)


class ClipQuery(BaseModel):
    """What a clip's address says behind its question mark; what is misspelt is refused."""

    model_config = ConfigDict(extra="forbid")

    class_name: str | None = Field(
        None, alias="class", description="left out, and no text: the seed's choice"
    )
    text: str | None = Field(
        None, max_length=1000, description="what it shows, for a model of text"
    )
    frames: int | None = Field(None, ge=1, le=FRAMES, description="for models of any_length")
    fps: float | None = Field(
        None, ge=1, le=240, description="frames per second, for models of any_length"
    )
    truncation: float = Field(1.0, ge=0, le=2, description="below 1: less varied, more usual")
    format: Format | None = Field(
        None, description="av1 is WebM, png a contact sheet; else by Accept"
    )
    scale: int = Field(1, ge=1, le=SCALE, description="enlarges all but png and npy")


class ClipHeaders(BaseModel):
    """What of a request's headers matters."""

    accept: str | None = None
    if_none_match: str | None = Field(None, alias="if-none-match")


def _parameters(**models: type[BaseModel]) -> dict[str, Any]:
    """OpenAPI's description of what a route reads itself, by where it stands.

    FastAPI would read it as well, but takes as long for that as all the rest of an answer.
    """
    found = []
    for place, model in models.items():
        schema = model.model_json_schema()
        for name, what in schema["properties"].items():
            required = name in schema.get("required", ())
            said = {"description": what.pop("description")} if "description" in what else {}
            found.append({"name": name, "in": place, "required": required, "schema": what} | said)
    return {"parameters": found}


MADE: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The file. A long mp4 is fragmented, and sent while it is made.",
        "content": {kind.split(";")[0]: {} for kind in video.MEDIA_TYPES.values()},
    },
    304: {"description": "The clip is the one in If-None-Match."},
    307: {"description": "The same clip under its model's digest."},
}


def clip_routes(models: AnyModels) -> APIRouter:
    """The routes over these models."""
    routes = APIRouter()

    # The first of the routes, which are gone through for each request.
    @routes.get(
        "/v1/models/{name}/clips/{seed}",
        tags=["clips"],
        response_class=Response,
        openapi_extra=_parameters(path=ClipPath, query=ClipQuery, header=ClipHeaders),
        responses=MADE
        | documented(
            HTTPStatus.NOT_FOUND,
            HTTPStatus.NOT_ACCEPTABLE,
            HTTPStatus.UNPROCESSABLE_ENTITY,
            HTTPStatus.SERVICE_UNAVAILABLE,
        ),
    )
    async def clip(request: Request) -> Response:
        """One clip: the same address gives the same clip, for ever where it has a digest."""
        path = ClipPath.model_validate(request.path_params)
        query = ClipQuery.model_validate(dict(request.query_params))
        served, seed = await models.resolve(path.name), path.seed
        if path.name != served.digest:
            asked = f"?{request.url.query}" if request.url.query else ""
            # Relative, so that it holds behind any prefix.
            place = f"../../{served.digest}/clips/{seed}{asked}"
            return RedirectResponse(place, headers={"Cache-Control": "no-cache"})
        chosen = query.format or accepted(request.headers.get("accept"))
        if chosen is None:
            there = ", ".join(dict.fromkeys(m.split(";")[0] for m in video.MEDIA_TYPES.values()))
            raise HTTPException(HTTPStatus.NOT_ACCEPTABLE, f"there are {there}")
        generator = served.generator
        label = class_of(generator, seed, query.class_name, query.text)
        times = generator.times(query.frames, query.fps)
        ask = Ask(
            seed,
            label,
            query.text or None,
            truncation=query.truncation,
            times=tuple(times) if times else None,
        )
        rate, scale = query.fps or generator.fps, query.scale
        streamed = chosen == "mp4" and times is not None and len(times) > PIECE
        if not streamed:
            refuse_large(generator, 1, times, scale, chosen)
        etag = _etag(served, ask, rate, chosen, scale)
        headers = told(served, [label]) | {
            "X-Raygen-Seed": str(seed),
            "Cache-Control": FOREVER,
            "ETag": etag,
        }
        if query.format is None:
            headers["Vary"] = "Accept"
        known = request.headers.get("if-none-match")
        if known is not None and (etag in known or known == "*"):
            return Response(status_code=HTTPStatus.NOT_MODIFIED, headers=headers)
        headers["Content-Disposition"] = file_name(f"{served.digest}-{seed}", chosen)
        media_type = video.MEDIA_TYPES[chosen]
        source = served.source
        if streamed:
            source.admit(len(times or ()) // PIECE)
            parts = source.stream(await source.point(ask), rate, scale)
            return StreamingResponse(parts, media_type=media_type, headers=headers)
        source.admit(1)
        drawn = await source.draw(ask)
        data = await source.encode(
            [drawn.clip_THWC], chosen, rate, [caption(generator, ask)], scale
        )
        headers["X-Raygen-Batch"] = str(drawn.batch)
        return Response(data, media_type=media_type, headers=headers)

    @routes.get("/v1/models", tags=["models"])
    async def list_models() -> list[Model]:
        """What answers here."""
        return models.cards()

    @routes.get(
        "/v1/models/{name}",
        tags=["models"],
        responses=documented(HTTPStatus.NOT_FOUND, HTTPStatus.UNPROCESSABLE_ENTITY),
    )
    async def one_model(name: Name) -> Model:
        """One model, by name, digest, or as `best`."""
        return (await models.resolve(name)).card

    return routes


def class_of(
    generator: Generator, seed: int, name: str | None, text: str | None = None
) -> int | None:
    """The class's id; without a name and a text the one that the seed stands for.

    Raises ConfigError for one that the model does not know, and for text that it does not take.
    """
    kinds = generator.conditions.kinds
    if name is not None:
        if "class" not in kinds:
            raise generator.conditioner.refuse("class")
        return generator.class_id(name)
    if text and "text" not in kinds:
        raise generator.conditioner.refuse("text")
    if "class" not in kinds or text:
        return None
    return seed % len(generator.classes)


def refuse_large(
    generator: Generator, clips: int, times: list[float] | None, scale: int, format: str
) -> None:
    """Raises ConfigError for a file too large to be made in one piece."""
    frames = generator.data.frames if times is None else len(times)
    factor = 1 if format in ("png", "npy") else scale
    height, width = generator.data.height * factor, generator.data.width * factor
    if clips * frames * height * width > PIXELS:
        raise ConfigError(
            f"{clips} clips of {frames} frames of {height}x{width} are more than the {PIXELS:,} "
            "pixels of one file; ask for fewer, or for one clip as mp4, which may be long",
            "frames",
        )


def told(served: Served, labels: list[int | None]) -> dict[str, str]:
    """Headers that say what drew the clips, and of which classes."""
    classes = served.generator.classes
    names = [quote("" if label is None else classes[label]) for label in labels]
    return {"X-Raygen-Model": served.digest, "X-Raygen-Class": ",".join(names)}


def file_name(stem: str, format: str) -> str:
    """A Content-Disposition that names a file shown in place."""
    suffix = "webm" if format == "av1" else format
    return f'inline; filename="{stem}.{suffix}"'


def caption(generator: Generator, ask: Ask) -> str:
    """What is written beside a clip on a contact sheet."""
    said = [] if ask.label is None else [generator.classes[ask.label]]
    return ", ".join(said + ([ask.text] if ask.text else []))


def _etag(served: Served, ask: Ask, rate: float, format: str, scale: int) -> str:
    """Of the bytes: replicas that draw differently, as on other processors, have others.

    A signed file has other bytes each time, and the same clip in it: its tag is a weak one.
    """
    drawing, marked = served.source.drawing, served.source.watermark
    what = f"{__version__} {served.digest} {drawing} {marked} {ask} {rate} {format} {scale}"
    weak = "W/" if served.source.signer is not None and format == "mp4" else ""
    return f'{weak}"{hashlib.sha256(what.encode()).hexdigest()[:20]}"'
