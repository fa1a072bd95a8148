"""Who may ask, how often and how much: a pure ASGI middleware before the API.

    guard = Guard(SecurityArgs(tokens="tokens.txt", origins="https://example.org"))
    api = FastAPI(middleware=[Middleware(Security, guard=lambda: guard)])

Without tokens only callers on this machine are answered, however the port is bound. Errors are
problem documents (RFC 9457); allowances follow draft-ietf-httpapi-ratelimit-headers. Nothing of a
request is logged here, neither its body nor its token. Each replica counts for itself.
"""

from __future__ import annotations

import asyncio
import functools
import ipaddress
import math
import os
import time
from collections.abc import Callable
from http import HTTPStatus

from pydantic import Field
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from raygen.errors import RaygenError
from raygen.tree import Section
from serve import tokens
from serve.edge import CONTROLS, send_problem
from serve.tokens import Bucket, Caller

RELOAD_S = 5.0  # between looks at the file of tokens
LOCAL_NAMES = {b"localhost", b"127.0.0.1", b"[::1]"}
HEALTH = "/healthz"  # answered to everybody
OPEN = {"/", "/docs", "/openapi.json"}  # answered without a token
OPEN_BELOW = "/static/"
SENT = ["Authorization", "Content-Type", "Idempotency-Key", "If-None-Match", "Prefer"]
READ = ["ETag", "Location", "Preference-Applied", "RateLimit", "RateLimit-Policy", "Retry-After"]
READ += [f"X-Raygen-{name}" for name in ("Batch", "Class", "Model", "Seed")]


class SecurityArgs(Section):
    """Arguments of the application that say who may ask, and how much."""

    tokens: str = Field(
        "", description=f"file or s3:// of hashed tokens; empty: ${tokens.VARIABLE}, or nobody asks"
    )
    token_lines: str = Field("", description="the lines of such a file themselves")
    origins: str = Field("", description="web pages that may ask: https://a.org,https://b.org")
    max_body: int = Field(24 << 20, ge=1024, description="bytes of a request's body, at most")
    rate: float = Field(50.0, gt=0, description="requests a second of all callers without a token")
    burst: int = Field(200, ge=1, description="requests at once of all callers without a token")


class Guard:
    """What the middleware asks: the callers and their allowances. Raises as `tokens.read`."""

    def __init__(self, args: SecurityArgs) -> None:
        self.uri = args.tokens
        text = args.token_lines or os.environ.get(tokens.VARIABLE, "")
        if self.uri:
            self.callers = tokens.read(self.uri)
        else:
            self.callers = tokens.parse(text, f"${tokens.VARIABLE}") if text else []
        self.origins = [origin.strip() for origin in args.origins.split(",") if origin.strip()]
        self.max_body = args.max_body
        self.anyone = Caller("anyone", b"", Bucket(args.rate, args.burst))
        self._read_at = time.monotonic()
        self._reading: asyncio.Task[None] | None = None

    @property
    def closed(self) -> bool:
        """Whether a token is needed."""
        return bool(self.callers)

    def look(self, now: float) -> None:
        """Reads the file of tokens again, beside the requests, if it is time to."""
        if self.uri and now - self._read_at > RELOAD_S:
            self._read_at = now
            self._reading = asyncio.create_task(self._reload())

    async def _reload(self) -> None:
        try:
            new = await asyncio.to_thread(tokens.read, self.uri)
        except RaygenError:  # a file that is being edited, a storage that is away
            return
        self.callers = tokens.kept(self.callers, new)


class Refusal(Exception):
    """A request that the API does not see, and the answer to it."""

    def __init__(self, status: HTTPStatus, detail: str, **headers: str) -> None:
        super().__init__(detail)
        self.status, self.detail = status, detail
        self.headers = [(name.replace("_", "-").lower(), value) for name, value in headers.items()]


class Security:
    """The middleware. `guard` is called once, at the first request."""

    def __init__(self, app: ASGIApp, guard: Callable[[], Guard]) -> None:
        self._app, self._find = app, guard
        self._guard: Guard | None = None
        self._chain: ASGIApp = self._answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request, or lets the API do it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if self._guard is None:
            self._guard = self._find()
            if self._guard.origins:
                self._chain = CORSMiddleware(
                    self._answer,
                    allow_origins=self._guard.origins,
                    allow_methods=["GET", "POST", "DELETE"],
                    allow_headers=SENT,
                    expose_headers=READ,
                )
        await self._chain(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        guard = self._guard
        assert guard is not None
        headers = dict(scope["headers"])
        try:
            caller = _admit(guard, scope, headers)
            wait = caller.bucket.take(time.monotonic()) if caller else 0.0
            if caller and wait:
                raise Refusal(
                    HTTPStatus.TOO_MANY_REQUESTS,
                    f"{caller.name} has used up its {caller.bucket.rate:g} requests a second",
                    Retry_After=str(math.ceil(wait)),
                    **_allowance(caller.bucket),
                )
            _check_length(headers, guard.max_body)
            scope["raygen.caller"] = caller.name if caller else ""
        except Refusal as refusal:
            await _refuse(refusal, send)
            return
        received = 0

        async def limited() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > guard.max_body:
                # One that the API answers as it does its own: in the midst of it.
                refusal = _too_large(guard.max_body)
                raise HTTPException(refusal.status, refusal.detail)
            return message

        async def marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = _with(message.get("headers", ()), caller, guard.closed)
            await send(message)

        await self._app(scope, limited, marked)


def _admit(guard: Guard, scope: Scope, headers: dict[bytes, bytes]) -> Caller | None:
    """Who asks; None where nobody needs to be known. Raises Refusal."""
    path = scope["path"]
    if path == HEALTH:
        return None
    if not guard.closed and not _local(scope, headers):
        raise Refusal(
            HTTPStatus.FORBIDDEN,
            "without tokens only callers on the machine itself are answered; start with "
            "tokens=FILE (`python -m serve.tokens NAME --file FILE` makes one)",
        )
    if CONTROLS & headers.keys():  # Serve has obeyed it already where no Edge took it out
        name = min(CONTROLS & headers.keys()).decode()
        raise Refusal(HTTPStatus.BAD_REQUEST, f"the header {name} is not for callers to send")
    if path in OPEN or path.startswith(OPEN_BELOW):
        return None
    if not guard.closed:
        return guard.anyone
    guard.look(time.monotonic())
    scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
    if scheme.lower() != b"bearer":
        raise Refusal(
            HTTPStatus.UNAUTHORIZED,
            "send Authorization: Bearer TOKEN",
            WWW_Authenticate='Bearer realm="raygen"',
        )
    caller = tokens.find(guard.callers, token.strip())
    if caller is None:
        raise Refusal(
            HTTPStatus.UNAUTHORIZED,
            "this token is not known, or no longer",
            WWW_Authenticate='Bearer realm="raygen", error="invalid_token"',
        )
    return caller


def _local(scope: Scope, headers: dict[bytes, bytes]) -> bool:
    """Whether the request came to a loopback address and means to.

    A name of another's that leads to this machine (DNS rebinding) would let web pages ask.
    """
    name = headers.get(b"host", b"localhost").lower()
    name = name[: name.find(b"]") + 1] if name.startswith(b"[") else name.partition(b":")[0]
    server = scope.get("server")
    return (server is None or _loopback(server[0])) and name in LOCAL_NAMES


@functools.lru_cache(64)
def _loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


def _check_length(headers: dict[bytes, bytes], limit: int) -> None:
    stated = headers.get(b"content-length", b"0")
    if not stated.isdigit():
        raise Refusal(HTTPStatus.BAD_REQUEST, "Content-Length is no number")
    if int(stated) > limit:
        raise _too_large(limit)


def _too_large(limit: int) -> Refusal:
    return Refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"a body has at most {limit} bytes")


def _allowance(bucket: Bucket) -> dict[str, str]:
    window = max(1, math.ceil(bucket.burst / bucket.rate))
    return {
        "RateLimit_Policy": f'"default";q={bucket.burst};w={window}',
        "RateLimit": f'"default";r={int(bucket.left)};t={math.ceil(bucket.full_in)}',
    }


def _with(
    headers: list[tuple[bytes, bytes]], caller: Caller | None, closed: bool
) -> list[tuple[bytes, bytes]]:
    """An answer's headers, with the caller's allowance."""
    found = list(headers)
    if closed:
        # What is cached for everybody would be had without a token.
        found = [
            (name, value.replace(b"public", b"private") if name == b"cache-control" else value)
            for name, value in found
        ]
    if caller is not None:
        found += [
            (name.replace("_", "-").lower().encode(), value.encode())
            for name, value in _allowance(caller.bucket).items()
        ]
    return [*found, (b"x-content-type-options", b"nosniff")]


async def _refuse(refusal: Refusal, send: Send) -> None:
    told = [("cache-control", "no-store"), *refusal.headers]
    headers = [(name.encode(), value.encode()) for name, value in told]
    await send_problem(send, refusal.status, refusal.detail, headers)
