"""For Serve's proxies: what they take from callers, and how they say what went wrong.

    RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=serve.edge:edge ray start --head

`serve run` sets that for a Ray that it starts itself. What only proxies may say to replicas is
taken out of requests, and errors that Serve answers by itself, in plain text or not at all, become
problem documents (RFC 9457). Proxies have seconds to start: nothing heavy is imported here.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from http import HTTPStatus

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

VARIABLE = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"
"""Ray's variable for what `edge` returns."""

# With these a client overrides what Serve was told: its time-out, and that a caller who has gone
# is not worked for.
CONTROLS = {b"x-request-timeout-seconds", b"x-request-disconnect-disabled"}

RETRY_S = 5  # where Serve says nothing of when to ask again
LOST = "the replica that drew this has gone; ask again"
SHOWN = 300  # characters of what Serve said
OWN = "/-/"  # Serve's own paths, whose plain answers are for load balancers

Headers = Sequence[tuple[bytes, bytes]]


class Edge:
    """Passes requests on without CONTROLS, and Serve's own errors back as problem documents."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers as the proxy does."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope["headers"] = [pair for pair in scope["headers"] if pair[0] not in CONTROLS]
        answer = _Answer(send, plain=scope["path"].startswith(OWN))
        await self._app(scope, receive, answer)
        if not answer.begun:
            # The replica died. The HTTP server would say so in plain text.
            await send_problem(send, HTTPStatus.SERVICE_UNAVAILABLE, LOST, [_retry(1)])


class _Answer:
    """What is sent, except that an error in plain text is kept to its end and sent as a problem."""

    def __init__(self, send: Send, plain: bool) -> None:
        self._send, self._plain = send, plain
        self.begun = False
        self._kept: Message | None = None
        self._body = b""

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.begun = True
            if not self._plain and _is_plain_error(message):
                self._kept = message
                return
        elif self._kept is not None:
            self._body += message.get("body", b"")
            if not message.get("more_body", False):
                await self._say(self._kept)
            return
        await self._send(message)

    async def _say(self, start: Message) -> None:
        headers = [
            (name, value)
            for name, value in start["headers"]
            if name.lower() not in (b"content-type", b"content-length")
        ]
        status = start["status"]
        if status in (408, 503) and not any(name.lower() == b"retry-after" for name, _ in headers):
            headers.append(_retry(RETRY_S))
        detail = " ".join(self._body.decode(errors="replace").split())[:SHOWN]
        await send_problem(self._send, status, detail, headers)


def _is_plain_error(start: Message) -> bool:
    kinds = [value for name, value in start["headers"] if name.lower() == b"content-type"]
    return start["status"] >= 400 and all(kind.startswith(b"text/plain") for kind in kinds)


def _retry(seconds: int) -> tuple[bytes, bytes]:
    return b"retry-after", str(seconds).encode()


async def send_problem(send: Send, status: int, detail: str, headers: Headers = ()) -> None:
    """Answers with a problem document."""
    try:
        title = HTTPStatus(status).phrase
    except ValueError:  # 499, which proxies write for a caller who has gone
        title = "Error"
    problem = {"type": "about:blank", "title": title, "status": int(status), "detail": detail}
    body = json.dumps(problem).encode()
    stated = [
        (b"content-type", b"application/problem+json"),
        (b"content-length", str(len(body)).encode()),
        *headers,
    ]
    await send({"type": "http.response.start", "status": int(status), "headers": stated})
    await send({"type": "http.response.body", "body": body})


def edge() -> list[Middleware]:
    """What Serve's proxies put before themselves."""
    return [Middleware(Edge)]
