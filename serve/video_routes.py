"""POST of many or large clips, which may take their time.

    POST   /v1/videos                201 and its state, or 202 where it is not done yet
    GET    /v1/videos/{id}
    GET    /v1/videos/{id}/content   the file, by ranges if asked
    DELETE /v1/videos/{id}

`Prefer: respond-async` or `wait=N` says how long an answer may take, `Idempotency-Key` makes a
POST safe to repeat. A POST that accepts the file's type and no JSON is answered with the file.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import io
import json
import random
import time
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import APIRouter, Header, Path, Request, Response
from fastapi.responses import FileResponse, JSONResponse
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

from raygen import picture, video
from raygen.errors import ConfigError
from serve.clips import MADE, caption, class_of, file_name, refuse_large, told
from serve.drawing import MAX_BATCH, Point
from serve.generator import Ask, Overloaded
from serve.models import AnyModels, Served
from serve.negotiation import preference
from serve.problems import documented
from serve.schemas import Video, VideoRequest
from serve.videos import OPEN, KeyReused, Progress, Videos, new_id

SEEDS = 2**31  # random ones are below it
WAIT_S = 50  # at most, less than Serve's own time-out
LISTS = {"seeds", "classes", "texts"}

Id = Annotated[str, Path(max_length=64)]
SCHEMA = {"$ref": "#/components/schemas/VideoRequest"}
BODY: dict[str, Any] = {
    "required": True,
    "content": {
        "application/json": {"schema": SCHEMA},
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "properties": {
                    "image": {"type": "string", "format": "binary"},
                    "seeds": {"type": "array", "items": {"type": "integer"}},
                    "classes": {"type": "array", "items": {"type": "string"}},
                    "n": {"type": "integer"},
                },
                "description": "Fields as in JSON; lists repeat them.",
                "additionalProperties": False,
            }
        },
    },
}

BEGUN: dict[int | str, dict[str, Any]] = {
    201: {"description": "It is done, or has failed.", "model": Video},
    202: {"description": "It is being drawn.", "model": Video},
}
CONTENT: dict[int | str, dict[str, Any]] = {200: MADE[200]}


def video_routes(models: AnyModels, videos: Videos) -> APIRouter:
    """The routes over these models; what they make is kept in `videos`."""
    routes = APIRouter(tags=["videos"])

    @routes.post(
        "/v1/videos",
        status_code=HTTPStatus.CREATED,
        response_model=Video,
        openapi_extra={"requestBody": BODY},
        responses=BEGUN
        | documented(
            HTTPStatus.BAD_REQUEST,
            HTTPStatus.NOT_FOUND,
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            HTTPStatus.UNPROCESSABLE_ENTITY,
            HTTPStatus.SERVICE_UNAVAILABLE,
        ),
    )
    async def create(
        request: Request,
        prefer: Annotated[str | None, Header()] = None,
        idempotency_key: Annotated[str | None, Header(max_length=255)] = None,
        accept: Annotated[str | None, Header()] = None,
    ) -> Response:
        """Draw several clips into one file."""
        body = await request.body()
        wanted = await _wanted(request, body)
        served = await models.resolve(wanted.model)
        asks = _asks(served, wanted)
        times = served.generator.times(wanted.frames, wanted.fps)
        refuse_large(served.generator, wanted.clips, times, wanted.scale, wanted.format)
        new = _described(served, wanted, asks)
        begun: Video | None = None
        if idempotency_key is not None:
            # The caller is what serve.security calls it: keys of several do not meet.
            key = f"{request.scope.get('raygen.caller', '')} {idempotency_key}"
            try:
                begun = videos.claim(key, hashlib.sha256(body).hexdigest(), new.id)
            except KeyReused as error:
                raise HTTPException(HTTPStatus.UNPROCESSABLE_ENTITY, str(error)) from None
        if begun is None:
            if videos.open >= OPEN:
                raise Overloaded(10)
            served.source.admit(wanted.clips)
            videos.start(new, _maker(served, wanted, asks))
        id = (begun or new).id
        prefers = preference(prefer)
        wait_s = WAIT_S if prefers.wait_s is None else min(prefers.wait_s, WAIT_S)
        if not prefers.respond_async:
            await videos.wait(id, wait_s)
        now = videos.read(id)
        if now is None:
            raise HTTPException(HTTPStatus.NOT_FOUND, f"video {id} was deleted meanwhile")
        headers = {"Location": f"{request.url.path}/{id}"} | told(served, [a.label for a in asks])
        if str(prefers):
            headers["Preference-Applied"] = str(prefers)
        if begun is not None:
            headers["Idempotency-Replayed"] = "true"
        essence = video.MEDIA_TYPES[now.format].split(";")[0]
        if now.state == "done" and accept and essence in accept and "json" not in accept:
            return _file(videos, now, headers, HTTPStatus.CREATED)
        done = now.state in ("done", "failed")
        status = HTTPStatus.CREATED if done else HTTPStatus.ACCEPTED
        if not done:
            headers["Retry-After"] = "1"
        return JSONResponse(now.model_dump(), status, headers)

    @routes.get(
        "/v1/videos/{id}",
        responses=documented(HTTPStatus.NOT_FOUND, HTTPStatus.UNPROCESSABLE_ENTITY),
    )
    async def one(id: Id) -> Video:
        """How far it is."""
        return _known(videos, id)

    @routes.get(
        "/v1/videos/{id}/content",
        response_class=Response,
        responses=CONTENT
        | documented(HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT, HTTPStatus.UNPROCESSABLE_ENTITY),
    )
    async def content(id: Id) -> Response:
        """Its file, once it is done."""
        known = _known(videos, id)
        if known.state != "done":
            said = known.problem.detail if known.problem else "not done yet"
            raise HTTPException(HTTPStatus.CONFLICT, f"video {id}: {said}", {"Retry-After": "1"})
        return _file(videos, known, {"Cache-Control": "private, max-age=3600"}, HTTPStatus.OK)

    @routes.delete(
        "/v1/videos/{id}",
        status_code=HTTPStatus.NO_CONTENT,
        response_class=Response,
        responses=documented(HTTPStatus.NOT_FOUND, HTTPStatus.UNPROCESSABLE_ENTITY),
    )
    async def delete(id: Id) -> Response:
        """Forget it, and stop drawing it."""
        if not videos.delete(id):
            raise _unknown(id)
        return Response(status_code=HTTPStatus.NO_CONTENT)

    return routes


async def _wanted(request: Request, body: bytes) -> VideoRequest:
    """The request, from JSON or from a form. Raises pydantic's ValidationError, HTTPException."""
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind == "application/json":
        try:
            return VideoRequest.model_validate(json.loads(body))
        except (ValueError, RecursionError) as error:
            if isinstance(error, RecursionError | json.JSONDecodeError | UnicodeDecodeError):
                raise HTTPException(HTTPStatus.BAD_REQUEST, "the body is no JSON") from None
            raise
    if kind == "multipart/form-data":
        form = await request.form(max_files=1, max_fields=300)
        fields: dict[str, Any] = {}
        for name in form:
            values = form.getlist(name)
            fields[name] = list(values) if name in LISTS else values[-1]
        if isinstance(fields.get("image"), UploadFile):
            data = await fields["image"].read()
            fields["image"] = base64.b64encode(data).decode()
        return VideoRequest.model_validate(fields)
    raise HTTPException(
        HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "send application/json or multipart/form-data"
    )


def _asks(served: Served, wanted: VideoRequest) -> list[Ask]:
    """The clips that are asked for, or the two ends. Raises ConfigError."""
    generator, count = served.generator, wanted.asked
    kinds = generator.conditions.kinds
    seeds = wanted.seeds or [random.randrange(SEEDS) for _ in range(count)]
    classes: list[Any] = [None] * count
    if wanted.classes:
        classes = wanted.classes * (count if len(wanted.classes) == 1 else 1)
    texts: list[Any] = [None] * count
    if wanted.texts:
        texts = wanted.texts * (count if len(wanted.texts) == 1 else 1)
    image_HWC = None
    if wanted.image is not None:
        if "image" not in kinds:
            raise generator.conditioner.refuse("image")
        try:
            data = base64.b64decode(wanted.image, validate=True)
        except (binascii.Error, ValueError):
            raise ConfigError("image: no base64", "image") from None
        image_HWC = picture.read(io.BytesIO(data), generator.data.size)
    times = generator.times(wanted.frames, wanted.fps)
    return [
        Ask(
            seed,
            class_of(generator, seed, name, text),
            text or None,
            image_HWC,
            wanted.truncation,
            tuple(times) if times else None,
        )
        for seed, name, text in zip(seeds, classes, texts, strict=True)
    ]


def _described(served: Served, wanted: VideoRequest, asks: list[Ask]) -> Video:
    id, names = new_id(), served.generator.classes
    return Video(
        id=id,
        state="queued",
        model=served.digest,
        seeds=[ask.seed for ask in asks],
        classes=[None if ask.label is None else names[ask.label] for ask in asks],
        clips=wanted.clips,
        drawn=0,
        format=wanted.format,
        created=time.time(),
        content=f"/v1/videos/{id}/content",
        problem=None,
    )


def _maker(served: Served, wanted: VideoRequest, asks: list[Ask]) -> Any:
    """What makes the file: draws its clips, a batch of them waiting at a time."""
    source = served.source

    async def make(progress: Progress) -> bytes:
        if wanted.interpolate:
            points = await source.path(wanted.clips, asks[0], asks[1])
        else:
            points = [await source.point(ask) for ask in asks]
        turn, drawn = asyncio.Semaphore(MAX_BATCH), 0

        async def one(point: Point) -> video.Clips:
            nonlocal drawn
            async with turn:
                clip_THWC = (await source.draw_point(point)).clip_THWC
            drawn += 1
            progress(drawn)
            return clip_THWC

        clips = await asyncio.gather(*(one(point) for point in points))
        rate = wanted.fps or served.generator.fps
        labels = [""] * len(clips)
        if not wanted.interpolate:
            labels = [caption(served.generator, ask) for ask in asks]
        return await source.encode(clips, wanted.format, rate, labels, wanted.scale)

    return make


def _known(videos: Videos, id: str) -> Video:
    known = videos.read(id)
    if known is None:
        raise _unknown(id)
    return known


def _unknown(id: str) -> HTTPException:
    return HTTPException(
        HTTPStatus.NOT_FOUND, f"no video {id[:64]!r} here; videos are kept for an hour"
    )


def _file(
    videos: Videos, known: Video, headers: dict[str, str], status: HTTPStatus
) -> FileResponse:
    headers = headers | {"Content-Disposition": file_name(known.id, known.format)}
    media_type = video.MEDIA_TYPES[known.format]
    return FileResponse(videos.content(known), status, headers, media_type)
