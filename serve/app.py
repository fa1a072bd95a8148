"""Clips over HTTP, from one Ray Serve deployment.

    serve run serve.app:app export=exports/tiny
    serve run serve.app:app registry=s3://bucket/registry tokens=tokens.txt watermark=true
    curl -Lo wave.mp4 'http://127.0.0.1:8000/v1/models/best/clips/7?class=wave'

What it answers is in serve/api.py. Ray Serve listens on 127.0.0.1 unless told otherwise.
"""

from __future__ import annotations

import logging
import os
import socket
import tempfile
import threading
from pathlib import Path
from typing import Any

import click
import ray
from fastapi import FastAPI
from pydantic import Field
from ray import serve
from ray._private.utils import read_ray_address
from ray.serve import Application
from starlette.middleware import Middleware

from raygen import heap
from raygen.data import store
from raygen.errors import ConfigError, ExportError, RaygenError
from raygen.export import load_generator
from raygen.manifest import Signer
from raygen.tree import validated
from serve import costs, edge, metrics
from serve.api import build_api
from serve.drawing import parse
from serve.following import Following, check
from serve.generator import QUEUE_S
from serve.models import AnyModels, Models
from serve.security import Guard, Security, SecurityArgs
from serve.tokens import VARIABLE
from serve.videos import Videos

PORT = 8000  # Serve's own default
VIDEOS = "raygen-videos"  # in the temporary folder, unless told otherwise

log = logging.getLogger("ray.serve")


class AppArgs(SecurityArgs):
    """Arguments of the application: `serve run serve.app:app export=exports/tiny`."""

    export: str = Field("", description="folder or s3:// prefix; empty: $RAYGEN_EXPORT")
    registry: str = Field("", description="in place of an export: what is live there")
    model: str = Field("", description="of the registry, that answers as best; empty: its first")
    watermark: bool = Field(
        False, description="an invisible one in all but npy and png; `raygen verify` reads it"
    )
    certificate: str = Field(
        "", description="PEM chain with which mp4 are signed (C2PA); streamed ones are not"
    )
    key: str = Field("", description="PEM key of its first certificate; every replica reads both")
    device: str = Field("cpu", description="torch device that the generator runs on")
    drawing: str = Field(
        "auto",
        description="auto: measured at the start; plain: as `raygen generate`; or what /v1/models "
        "of another replica shows, so that all draw alike",
    )
    queue_s: float = Field(
        QUEUE_S, gt=0, description="seconds of drawing that may wait; what comes then gets a 503"
    )
    videos: str = Field(
        "", description="folder for what POST makes; on several machines one that they share"
    )


@serve.deployment(
    name="clips",
    max_ongoing_requests=512,
    ray_actor_options={"runtime_env": {"env_vars": heap.ENVIRONMENT}},
)
@serve.ingress()
class Clips:
    """The replica: HTTP, batcher and generator in one process, which has encoders beside it."""

    def __init__(self, args: AppArgs) -> None:
        signer = _signer(args)
        self.models: AnyModels = (
            Following(
                args.registry,
                args.device,
                args.drawing,
                args.model,
                watermark=args.watermark,
                signer=signer,
                queue_s=args.queue_s,
            )
            if args.registry
            else Models(
                args.export, args.device, args.drawing, args.watermark, signer, args.queue_s
            )
        )
        self.guard = Guard(args)
        folder = Path(args.videos or Path(tempfile.gettempdir()) / f"{VIDEOS}-{os.getuid()}")
        self.videos = Videos(folder)
        # A machine without a metadata service takes a moment to say so.
        threading.Thread(target=_tell_costs, daemon=True).start()
        for card in self.models.cards():
            log.info("serving %s (%s), drawn as %s", card.name, card.digest, card.drawing)

    def __serve_build_asgi_app__(self) -> FastAPI:
        """What Serve calls once the replica is there."""
        secure = Middleware(Security, guard=lambda: self.guard)
        return build_api(self.models, self.videos, [secure])


def _tell_costs() -> None:
    dollars = costs.hourly()
    if dollars is not None:
        metrics.costs(dollars)


def build(args: AppArgs) -> Application:
    """The Serve application over an export or a registry.

    Raises ExportError where that cannot be read, ConfigError and StorageError for other arguments.
    """
    lines = os.environ.get(VARIABLE, "")
    if args.tokens:
        args = args.model_copy(update={"tokens": store.absolute(args.tokens)})
    elif lines:  # replicas on other machines have not this environment
        args = args.model_copy(update={"token_lines": lines})
    Guard(args)
    if _signer(args) is not None:
        places = {name: store.absolute(getattr(args, name)) for name in ("certificate", "key")}
        args = args.model_copy(update=places)
    # Where Ray is not yet running, its proxies get this environment.
    os.environ.setdefault(edge.VARIABLE, "serve.edge:edge")
    if args.drawing != "auto":
        parse(args.drawing)
    if args.registry:
        if args.export:
            raise ConfigError("export and registry: say one of them")
        check(args.registry, args.model)
        bound = args.model_copy(update={"registry": store.absolute(args.registry)})
        return Clips.bind(bound)  # type: ignore[no-any-return, attr-defined]
    export = args.export or os.environ.get("RAYGEN_EXPORT", "")
    if not export:
        raise ExportError(
            "no export to serve; say export=FOLDER_OR_S3_URI, or set RAYGEN_EXPORT "
            "(`raygen export RUN -o FOLDER` makes one)"
        )
    # Read it here as well: a replica that cannot would be restarted again and again.
    load_generator(export, "cpu")
    bound = args.model_copy(update={"export": store.absolute(export)})
    return Clips.bind(bound)  # type: ignore[no-any-return, attr-defined]


def app(args: dict[str, Any]) -> Application:
    """What `serve run serve.app:app key=value ...` calls, with any error as one line."""
    try:
        application = build(validated(AppArgs, args, {}))
        _refuse_taken_port()
    except RaygenError as error:
        raise click.ClickException(str(error)) from None
    return application


def _signer(args: AppArgs) -> Signer | None:
    """What signs; None where nothing is to. Raises ConfigError and StorageError."""
    if bool(args.certificate) != bool(args.key):
        raise ConfigError("certificate and key: say both, or neither")
    return Signer(args.certificate, args.key) if args.certificate else None


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
