"""A proxy in front of an S3 server that fails requests by rule.

    with S3Proxy(os.environ["AWS_ENDPOINT_URL"]) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        proxy.fail("GET /bucket/clip-3", "truncate", times=2)

What no rule matches passes byte for byte, one request a connection. The server must not verify
signatures: the Host that was signed is the proxy's.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

PASSED = "passed"
HEAD_END = b"\r\n\r\n"

ANSWERS = {
    "slowdown": (503, "SlowDown"),
    "internal": (500, "InternalError"),
    "bad-gateway": (502, "BadGateway"),
    "gateway-timeout": (504, "GatewayTimeout"),
    "expired": (400, "ExpiredToken"),
    "denied": (403, "AccessDenied"),
    "archived": (403, "InvalidObjectState"),
    "skewed": (403, "RequestTimeTooSkewed"),
}
"""Kinds that the proxy answers itself: HTTP status and S3's code."""

FAULTS = {
    "reset": "the connection is reset before an answer",
    "lost": "the server does what was asked, and the connection is reset before its answer",
    "truncate": "half the body comes, and then an orderly end",
    "torn": "half the body comes, and then a reset",
    "slow": "no byte comes for SILENCE_S",
    "half": "half of the request's body gets through, and then nothing until the client gives up",
    "replace": "other bytes lie there before the request gets through",
}
"""Kinds that concern the connection or the object."""

SILENCE_S = 60.0


@dataclass
class Rule:
    """Fails the next `times` requests (None: all) whose head contains `match`."""

    match: str
    kind: str
    times: int | None


class S3Proxy:
    """Serves `url` from a thread of its own; every method may be called from any thread.

    `counts` holds how many requests met each kind, or none ("passed"); `sent` is how many bytes
    went from the server to its clients.
    """

    def __init__(self, upstream: str) -> None:
        parts = urlsplit(upstream)
        self._upstream = (parts.hostname, parts.port)
        self._rules: list[Rule] = []
        self._serving: set[asyncio.Task[None] | None] = set()
        self._lock = threading.Lock()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self.counts: Counter[str] = Counter()
        self.sent = 0

    def __enter__(self) -> S3Proxy:
        self._thread.start()
        starting = asyncio.start_server(self._serve, "127.0.0.1", 0, backlog=1024)
        self._server = asyncio.run_coroutine_threadsafe(starting, self._loop).result(30)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(30)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(30)
        self._loop.close()

    def fail(self, match: str, kind: str, times: int | None = 1) -> None:
        """Adds a rule: of those that match a request, the first that is left applies.

        `match` is looked for in the request's head, where the target is unquoted:
        "GET /bucket/key?query HTTP/1.1" and the header lines.
        """
        assert kind in ANSWERS or kind in FAULTS, kind
        with self._lock:
            self._rules.append(Rule(match, kind, times))

    def heal(self) -> None:
        """Forgets all rules and counts."""
        with self._lock:
            self._rules.clear()
            self.counts.clear()
            self.sent = 0

    def _take(self, head: str) -> str:
        with self._lock:
            kind = PASSED
            for rule in self._rules:
                if rule.times != 0 and rule.match in head:
                    kind = rule.kind
                    if rule.times is not None:
                        rule.times -= 1
                    break
            self.counts[kind] += 1
            return kind

    async def _close(self) -> None:
        self._server.close()
        await asyncio.sleep(0)  # what was accepted a moment ago becomes a task
        while tasks := asyncio.all_tasks() - {asyncio.current_task()}:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
        await asyncio.sleep(0.01)  # connections close in the loop's next rounds

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # Once a client is gone, nothing in asyncio holds on to the task that served it.
        self._serving.add(asyncio.current_task())
        with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            head = await reader.readuntil(HEAD_END)
            line, _, headers = head.decode("latin-1").partition("\r\n")
            kind = self._take(f"{unquote(line)}\r\n{headers}")
            if kind in ANSWERS:
                await reader.readexactly(_length(head))
                writer.write(_answer(*ANSWERS[kind]))
                await writer.drain()
            elif kind == "reset":
                _reset(writer)
            else:
                if kind == "slow":
                    await asyncio.sleep(SILENCE_S)
                if kind == "replace":
                    await self._replace(line.split(" ")[1], _fields(head)["authorization"])
                await self._relay(head, reader, writer, kind)
        writer.close()
        self._serving.discard(asyncio.current_task())

    async def _relay(
        self, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, kind: str
    ) -> None:
        up_reader, up_writer = await asyncio.open_connection(*self._upstream)
        up_writer.write(_closing(head))
        most = int(_fields(head)["content-length"]) // 2 if kind == "half" else None
        upload = asyncio.create_task(_pump(reader, up_writer, most))
        try:
            if kind == "lost":
                await _final_head(up_reader, writer)
                _reset(writer)
            elif kind in ("truncate", "torn"):
                answer = await _final_head(up_reader, writer)
                writer.write(answer + await up_reader.readexactly(_length(answer) // 2))
                await writer.drain()
                if kind == "torn":
                    await asyncio.sleep(0.05)  # a reset overtakes what is still to be delivered
                    _reset(writer)
            else:
                while chunk := await up_reader.read(1 << 18):
                    self.sent += len(chunk)
                    writer.write(chunk)
                    await writer.drain()
        finally:
            upload.cancel()
            up_writer.close()

    async def _replace(self, target: str, authorization: str) -> None:
        up_reader, up_writer = await asyncio.open_connection(*self._upstream)
        body = b"not what was scanned"
        lines = (
            f"PUT {target.partition('?')[0]} HTTP/1.1",
            "Host: s3",
            f"Authorization: {authorization}",
            f"Content-Length: {len(body)}",
        )
        up_writer.write(_closing("\r\n".join((*lines, "", "")).encode("latin-1")) + body)
        answer = await up_reader.read()
        assert b" 200 " in answer.partition(b"\r\n")[0], answer
        up_writer.close()


async def _pump(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, most: int | None
) -> None:
    """Passes on what comes, `most` bytes at the most."""
    left = float("inf") if most is None else most
    with suppress(ConnectionError):
        while left and (chunk := await reader.read(int(min(left, 1 << 18)))):
            writer.write(chunk)
            await writer.drain()
            left -= len(chunk)


async def _final_head(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
    """The head of the answer; the go-ahead that some clients wait for is passed on."""
    while (head := await reader.readuntil(HEAD_END)).startswith(b"HTTP/1.1 100 "):
        writer.write(head)
    return head


def _closing(head: bytes) -> bytes:
    """The request's head, such that the server closes the connection after its answer."""
    return head.removesuffix(HEAD_END) + b"\r\nConnection: close" + HEAD_END


def _fields(head: bytes) -> dict[str, str]:
    lines = head.decode("latin-1").split("\r\n")[1:-2]
    return {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}


def _length(head: bytes) -> int:
    """Bytes of the body that follow at once: none where the client waits for a go-ahead."""
    fields = _fields(head)
    return 0 if "expect" in fields else int(fields.get("content-length", 0))


def _answer(status: int, code: str) -> bytes:
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{code}</Message></Error>"
    lines = ("Content-Type: application/xml", f"Content-Length: {len(body)}", "Connection: close")
    return "\r\n".join((f"HTTP/1.1 {status} {code}", *lines, "", body)).encode()


def _reset(writer: asyncio.StreamWriter) -> None:
    peer: socket.socket = writer.get_extra_info("socket")
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
