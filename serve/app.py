"""Clips over HTTP, from one Ray Serve deployment.

    serve run serve.app:app export=exports/tiny
    curl -o wave.mp4 'http://127.0.0.1:8000/v1/clips?class=wave&seed=7'

    GET /v1/clips    one clip: ?class= &text= &seed= &format=mp4|webp|gif|png|npy &scale=
    GET /v1/models   what is served
    GET /healthz     whether it answers
    GET /docs        OpenAPI

Ray Serve listens on 127.0.0.1 unless told otherwise, and nothing here asks who is calling.
Errors are problem documents (RFC 9457).
"""

# No `from __future__ import annotations`: Serve pickles the FastAPI app, whose parameters then
# could not be resolved from strings.

import hashlib
import os
import random
import socket
from http import HTTPStatus
from typing import Annotated, Any, Literal
from urllib.parse import quote

import click
import ray
from fastapi import FastAPI, Header, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from ray import serve
from ray._private.utils import read_ray_address
from ray.serve import Application
from starlette.exceptions import HTTPException

from raygen import __version__, video
from raygen.data import store
from raygen.errors import ConfigError, ExportError, RaygenError
from raygen.export import load_generator
from serve.generator import ClipSource

SEEDS = 2**31  # a random seed is below this; a given one may be any signed 64-bit integer >= 0

PORT = 8000  # Serve's own default

Format = Literal["mp4", "webp", "gif", "png", "npy"]


class AppArgs(BaseModel):
    """Arguments of the application: `serve run serve.app:app export=exports/tiny`."""

    export: str = Field("", description="folder or s3:// prefix; empty: $RAYGEN_EXPORT")
    device: str = Field("cpu", description="torch device that the generator runs on")


class Model(BaseModel):
    """One model that answers here."""

    name: str
    digest: str = Field(description="first digits of the weights' SHA-256")
    classes: list[str]
    conditions: list[str] = Field(description="what a clip can be asked for by")
    frames: int = Field(description="frames of a clip")
    size: int = Field(description="height and width, pixels")
    fps: float = Field(description="frames per second")
    metrics: dict[str, Any] | None = Field(description="what `raygen evaluate` found, if it ran")


class Problem(BaseModel):
    """What went wrong (RFC 9457)."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str


def _problem(status: HTTPStatus, detail: str) -> JSONResponse:
    problem = Problem(title=status.phrase, status=status, detail=detail)
    return JSONResponse(problem.model_dump(), status, media_type="application/problem+json")


async def _not_served(request: Request, error: ConfigError) -> JSONResponse:
    unknown = error.key == "class"
    status = HTTPStatus.NOT_FOUND if unknown else HTTPStatus.UNPROCESSABLE_ENTITY
    return _problem(status, str(error))


async def _bad_parameter(request: Request, error: RequestValidationError) -> JSONResponse:
    first = error.errors()[0]
    detail = f"{first['loc'][-1]}: {first['msg']} (got {first['input']!r})"
    return _problem(HTTPStatus.UNPROCESSABLE_ENTITY, detail)


async def _http_error(request: Request, error: HTTPException) -> JSONResponse:
    return _problem(HTTPStatus(error.status_code), error.detail)


api = FastAPI(
    title="raygen",
    version=__version__,
    description="Clips from a trained generator. The same conditions and seed give the same clip.",
    # Here and not by decorators below: Serve keeps the app as it is where the class is decorated.
    exception_handlers={
        ConfigError: _not_served,
        RequestValidationError: _bad_parameter,
        HTTPException: _http_error,
    },
)


@serve.deployment(name="clips", max_ongoing_requests=64)
@serve.ingress(api)
class Clips:
    """The replica: HTTP, batcher, generator and encoders in one process."""

    def __init__(self, export: str, device: str) -> None:
        self.source = ClipSource(load_generator(export, device))

    @api.get(
        "/v1/clips",
        response_class=Response,
        responses={
            200: {
                "description": "The clip.",
                "content": {media_type: {} for media_type in video.MEDIA_TYPES.values()},
            },
            304: {"description": "The clip is the one in If-None-Match."},
            404: {
                "description": "The model has no such class.",
                "content": {"application/problem+json": {"schema": Problem.model_json_schema()}},
            },
        },
    )
    async def clip(
        self,
        class_name: Annotated[
            str | None,
            Query(alias="class", description="class; left out, and no text: a random one"),
        ] = None,
        text: Annotated[
            str | None, Query(max_length=1000, description="what it shows, for a model of text")
        ] = None,
        seed: Annotated[
            int | None, Query(ge=0, lt=2**63, description="seed; left out: a random one")
        ] = None,
        format: Annotated[Format, Query(description="png is a contact sheet")] = "mp4",
        scale: Annotated[
            int, Query(ge=1, le=8, description="enlarges mp4, webp and gif by repeating pixels")
        ] = 1,
        if_none_match: Annotated[str | None, Header()] = None,
    ) -> Response:
        """Generate one clip. What was drawn is in the X-Raygen headers."""
        generator = self.source.generator
        kinds = generator.conditions.kinds
        if text and "text" not in kinds:
            raise generator.conditioner.refuse("text")
        drawn = class_name is None and not text and "class" in kinds
        fixed = not drawn and seed is not None
        if drawn:
            class_name = random.choice(generator.classes)
        if seed is None:
            seed = random.randrange(SEEDS)
        label = None if class_name is None else generator.class_id(class_name)
        what = f"{__version__} {generator.digest} {label} {text!r} {seed} {format} {scale}"
        etag = f'"{hashlib.sha256(what.encode()).hexdigest()[:20]}"'
        headers = {
            "X-Raygen-Model": generator.digest,
            "X-Raygen-Class": quote(class_name or ""),  # headers are Latin-1
            "X-Raygen-Seed": str(seed),
            # Another model may answer at this URL tomorrow: keep, but ask each time.
            "Cache-Control": "no-cache" if fixed else "no-store",
            "ETag": etag,
        }
        if if_none_match is not None and etag in if_none_match:
            return Response(status_code=HTTPStatus.NOT_MODIFIED, headers=headers)
        data, batch = await self.source.clip(seed, label, text, format, scale)
        headers["X-Raygen-Batch"] = str(batch)
        headers["Content-Disposition"] = f'inline; filename="{generator.digest}-{seed}.{format}"'
        return Response(data, media_type=video.MEDIA_TYPES[format], headers=headers)

    @api.get("/v1/models")
    async def models(self) -> list[Model]:
        """What is served."""
        generator = self.source.generator
        return [
            Model(
                name=generator.name,
                digest=generator.digest,
                classes=generator.classes,
                conditions=list(generator.conditions.kinds),
                frames=generator.data.frames,
                size=generator.data.size,
                fps=generator.fps,
                metrics=generator.evaluation,
            )
        ]

    @api.get("/healthz")
    async def healthz(self) -> dict[str, str]:
        """Whether a replica answers."""
        return {"status": "ok"}


def build(args: AppArgs) -> Application:
    """The Serve application over an export. Raises ExportError where that cannot be read."""
    export = args.export or os.environ.get("RAYGEN_EXPORT", "")
    if not export:
        raise ExportError(
            "no export to serve; say export=FOLDER_OR_S3_URI, or set RAYGEN_EXPORT "
            "(`raygen export RUN -o FOLDER` makes one)"
        )
    # Read it here as well: a replica that cannot would be restarted again and again.
    load_generator(export, "cpu")
    return Clips.bind(store.absolute(export), args.device)  # type: ignore[no-any-return, attr-defined]


def app(args: AppArgs) -> Application:
    """What `serve run serve.app:app` calls: as `build`, with its error as one line."""
    try:
        application = build(args)
        _refuse_taken_port()
    except RaygenError as error:
        raise click.ClickException(str(error)) from None
    return application


def _refuse_taken_port() -> None:
    # Serve's own answer is a page of traceback. On a running Ray the port may be its own proxy's.
    if ray.is_initialized() or "RAY_ADDRESS" in os.environ or read_ray_address():
        return
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", PORT))
        except OSError:
            raise ConfigError(
                f"port {PORT} is in use; stop what listens there, or set another port in "
                "serve/config.yaml and `serve run` that"
            ) from None
