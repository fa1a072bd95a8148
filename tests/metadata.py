"""Instance metadata services: AWS's IMDSv2, which wants a token, GCP's; and what serves them."""

from __future__ import annotations

import json
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Protocol

TTL = "x-aws-ec2-metadata-token-ttl-seconds"


class Cloud(Protocol):
    """What an HTTP service says; a token that it gives goes over so many machines."""

    hop_limit: int

    def answer(self, method: str, path: str, headers: dict[str, str]) -> tuple[int, str]:
        """A status and a body; header names are in lower case."""


class Page:
    """The same body for whatever is asked."""

    hop_limit = 64

    def __init__(self, body: str) -> None:
        self._body = body

    def answer(self, method: str, path: str, headers: dict[str, str]) -> tuple[int, str]:
        return 200, self._body


class Aws:
    """IMDSv2 of one machine. Tokens hold as long as they were asked for; v1 gets 401."""

    hop_limit = 64

    def __init__(self, market: str = "spot", type_: str = "g5.xlarge", zone: str = "us-east-1b"):
        self._type, self._zone, self._market = type_, zone, market
        self._tokens: dict[str, float] = {}
        self.said: dict[str, str] = {}

    def notice(self, seconds: float) -> None:
        """The machine is taken back in so many seconds."""
        when = datetime.fromtimestamp(time.time() + seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        self.said["spot/instance-action"] = json.dumps({"action": "terminate", "time": when})

    def rebalance(self) -> None:
        """It is at more risk than others."""
        said = json.dumps({"noticeTime": "2026-01-02T03:04:05Z"})
        self.said["events/recommendations/rebalance"] = said

    def forget(self) -> None:
        """No token holds any more."""
        self._tokens.clear()

    def answer(self, method: str, path: str, headers: dict[str, str]) -> tuple[int, str]:
        if path == "/latest/api/token":
            seconds = headers.get(TTL, "")
            if method != "PUT" or not seconds:
                return (405, "") if method != "PUT" else (400, "")
            token = secrets.token_hex(8)
            self._tokens[token] = time.time() + float(seconds)
            return 200, token
        if self._tokens.get(headers.get("x-aws-ec2-metadata-token", ""), 0.0) < time.time():
            return 401, ""
        if path == "/latest/dynamic/instance-identity/document":
            document = {
                "instanceType": self._type,
                "availabilityZone": self._zone,
                "instanceId": "i-0123",
                "pendingTime": "2026-01-02T03:04:05Z",
            }
            return 200, json.dumps(document)
        asked = path.removeprefix("/latest/meta-data/")
        if asked == "instance-life-cycle":
            return 200, self._market
        return (200, self.said[asked]) if asked in self.said else (404, "")


class Gcp:
    """Compute Engine's, of one machine. Without its header it gives 403."""

    hop_limit = 64

    def __init__(self, preemptible: str = "TRUE", zone: str = "us-central1-a"):
        self.said = {
            "machine-type": "projects/123/machineTypes/g2-standard-4",
            "zone": f"projects/123/zones/{zone}",
            "scheduling/preemptible": preemptible,
            "id": "4567",
            "preempted": "FALSE",
            "maintenance-event": "NONE",
        }

    def answer(self, method: str, path: str, headers: dict[str, str]) -> tuple[int, str]:
        if headers.get("metadata-flavor") != "Google":
            return 403, ""
        if method != "GET":
            return 405, ""
        asked = path.removeprefix("/computeMetadata/v1/instance/")
        return (200, self.said[asked]) if asked in self.said else (404, "")


class Server(ThreadingHTTPServer):
    """For as many clients at once as hosts have processes."""

    request_queue_size = 128


def serve(find: Callable[[str], Cloud | None], address: str, port: int) -> Server:
    """What is found for the address that asks answers it, in a thread; without, 404."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            cloud = find(self.client_address[0])
            headers = {name.lower(): value for name, value in self.headers.items()}
            status, body = 404, ""
            if cloud is not None:
                status, body = cloud.answer(self.command, self.path, headers)
                if self.command == "PUT":
                    # Each machine that hands an answer on takes one off.
                    ttl = socket.IPPROTO_IP, socket.IP_TTL, cloud.hop_limit
                    self.connection.setsockopt(*ttl)
            self.send_response(status)
            if self.command == "PUT" and TTL in headers:
                self.send_header(TTL, headers[TTL])
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body.encode())

        do_PUT = do_POST = do_GET

        def log_message(self, *words: object) -> None:
            pass

    server = Server((address, port), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


@contextmanager
def served(cloud: Cloud) -> Iterator[str]:
    """Its address, as in http://127.0.0.1:1234."""
    server = serve(lambda asks: cloud, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
