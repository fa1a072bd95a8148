"""The ASGI application that a replica answers with: all routes, errors, metrics.

api = build_api(models, Videos(folder))

GET    /v1/models, /v1/models/{name}
GET    /v1/models/{name}/clips/{seed}    one clip, cacheable for ever under a digest
POST   /v1/videos                        many or large ones; see serve.video_routes
GET    /healthz                          whether it answers
GET    /docs                             OpenAPI
GET    /                                 the page, of serve/static/
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.responses import FileResponse
from fastapi.staticfiles import StaticFiles
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from raygen import __version__
from serve import metrics
from serve.clips import clip_routes
from serve.models import AnyModels
from serve.problems import HANDLERS
from serve.schemas import Problem, VideoRequest
from serve.video_routes import video_routes
from serve.videos import Videos

STATIC = Path(__file__).with_name("static")


def build_api(models: AnyModels, videos: Videos, middleware: Sequence[Middleware] = ()) -> FastAPI:
    """The application; `middleware`, outermost first, sees every request before any route."""
    api = FastAPI(
        title="raygen",
        version=__version__,
        description="Clips from a trained generator. One address of a clip, always the same clip.",
        exception_handlers=HANDLERS,
        middleware=[Middleware(Counted), *middleware],
    )
    api.include_router(clip_routes(models))
    api.include_router(video_routes(models, videos))

    @api.get("/healthz", tags=["health"])
    async def healthz() -> dict[str, str]:
        """Whether a replica answers."""
        return {"status": "ok"}

    @api.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(STATIC / "index.html")

    api.mount("/static", StaticFiles(directory=STATIC))
    described = api.openapi

    def openapi() -> dict[str, Any]:
        """As FastAPI has it, and what it does not see: the bodies that routes read themselves."""
        document = described()
        schemas = document["components"]["schemas"]
        for schema in (Problem, VideoRequest):
            schemas.setdefault(
                schema.__name__,
                schema.model_json_schema(ref_template="#/components/schemas/{model}"),
            )
        return document

    api.openapi = openapi  # type: ignore[method-assign]
    return api


class Counted:
    """Counts answers by route and status."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers as the application does."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def counting(message: Message) -> None:
            if message["type"] == "http.response.start":
                # Routing has left its template here: addresses themselves are without number.
                route = getattr(scope.get("route"), "path", "other")
                metrics.answered(route, message["status"])
            await send(message)

        await self._app(scope, receive, counting)
