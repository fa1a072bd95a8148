"""A proxy before a stand-in of AWS that writes down every call and refuses capacity on request.

It also mends two things: moto launches as few instances as it may (MinCount), where AWS launches as
many as it can, and knows no `resolve:ssm:` images.
"""

from __future__ import annotations

import http.client
import json
import re
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from urllib.parse import parse_qsl, urlencode, urlsplit

from tests.metadata import Server

# One of those that moto knows.
IMAGE = "ami-12c6146b"
_SCOPE = re.compile(r"Credential=([^/]+)/\d+/[^/]+/([^/]+)/")
_S3 = {  # (method, query key) of requests that are not named after their action
    ("PUT", ""): "PutObject",
    ("PUT", "partNumber"): "PutObject",
    ("POST", "uploads"): "PutObject",
    ("POST", "uploadId"): "PutObject",
    ("POST", "delete"): "DeleteObject",
    ("DELETE", ""): "DeleteObject",
    ("DELETE", "uploadId"): "AbortMultipartUpload",
    ("GET", "location"): "GetBucketLocation",
    ("GET", "uploads"): "ListBucketMultipartUploads",
    ("GET", "versions"): "ListBucketVersions",
}


@dataclass(frozen=True)
class Call:
    """Who (an access key, at an address) asked for what, as ec2 RunInstances; how AWS answered.

    `at` is when it had; `params` are those of the request as it came, of S3 its path; `refused` is
    the code of an injected error.
    """

    at: float
    who: str
    service: str
    action: str
    params: dict[str, str]
    status: int
    refused: str = ""
    address: str = ""

    @property
    def permission(self) -> str:
        """What an IAM policy calls it."""
        return f"{self.service}:{self.action}"

    @property
    def market(self) -> str:
        """That a RunInstances is for."""
        return self.params.get("InstanceMarketOptions.MarketType", "on-demand")


def read_calls(folder: Path, about: str = "") -> list[Call]:
    """All so far, or those in which some text stands."""
    place = folder / "calls.jsonl"
    text = place.read_text() if place.exists() else ""
    lines = text[: text.rfind("\n") + 1].splitlines()  # the last may still be written
    return [Call(**json.loads(line)) for line in lines if about in line]


def write_refusals(folder: Path, codes: Mapping[str, str]) -> None:
    """By market of RunInstances, or by other action: with which error to refuse from now on."""
    fresh = folder / "refusals.new"
    fresh.write_text(json.dumps(dict(codes)))
    fresh.replace(folder / "refusals.json")


def s3_action(method: str, path: str, query: Mapping[str, str]) -> str:
    """The action of IAM that an S3 request, by path, needs."""
    key = path.strip("/").partition("/")[2]
    for name in query:
        if (method, name) in _S3:
            return _S3[method, name]
    if method in ("GET", "HEAD"):
        return "GetObject" if key else "ListBucket"
    return _S3[method, ""] if key else {"PUT": "CreateBucket", "DELETE": "DeleteBucket"}[method]


class Proxy:
    """Between the machines of a bench in a folder and the server at a URL."""

    def __init__(self, folder: Path, server: str) -> None:
        self._folder, self._server = folder, urlsplit(server).netloc
        self._log = (folder / "calls.jsonl").open("a", buffering=1)
        self._lock = threading.Lock()
        write_refusals(folder, {})

    def serve(self, address: str, port: int) -> None:
        """For ever."""
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_all(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                headers = {k: v for k, v in self.headers.items() if k.lower() != "expect"}
                asks = self.client_address[0]
                status, answered, answer = proxy.answer(
                    self.command, self.path, headers, body, asks
                )
                self.send_response_only(status)
                for name, value in answered:
                    # Of an answer to HEAD the length is that of the object.
                    if name.lower() not in ("transfer-encoding", "connection", "content-length"):
                        self.send_header(name, value)
                length = str(len(answer))
                if self.command == "HEAD":
                    length = {k.lower(): v for k, v in answered}.get("content-length", length)
                self.send_header("Content-Length", length)
                self.end_headers()
                self.wfile.write(answer)

            do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = handle_all

            def log_message(self, *words: object) -> None:
                pass

        Server((address, port), Handler).serve_forever()

    def answer(
        self, method: str, path: str, headers: dict[str, str], body: bytes, address: str
    ) -> tuple[int, list[tuple[str, str]], bytes]:
        """Status, headers and body for who asks from an address, from the server or not."""
        split = urlsplit(path)
        query = dict(parse_qsl(split.query, keep_blank_values=True))
        scope = _SCOPE.search(headers.get("Authorization", headers.get("authorization", "")))
        who, service = scope.groups() if scope else ("", "s3")
        params: dict[str, str] = {}
        if service == "s3":
            action, params = s3_action(method, split.path, query), {"path": split.path}
        else:
            params = dict(parse_qsl(body.decode(), keep_blank_values=True))
            action = params.get("Action", headers.get("X-Amz-Target", "").rpartition(".")[2])
        refused, answer = "", b""
        answered: list[tuple[str, str]] = [("Content-Type", "text/xml")]
        if action == "RunInstances":
            body = _as_moto_has_it(params)
        if service == "ec2":
            market = params.get("InstanceMarketOptions.MarketType", "on-demand")
            refusals = json.loads((self._folder / "refusals.json").read_text())
            refused = refusals.get(market if action == "RunInstances" else action, "")
        if refused:
            status, answer = 500, _error(refused)
        else:
            status, answered, answer = self._forward(method, path, headers, body)
        call = Call(time.time(), who, service, action, params, status, refused, address)
        with self._lock:
            self._log.write(json.dumps(asdict(call)) + "\n")
        return status, answered, answer

    def _forward(
        self, method: str, path: str, headers: dict[str, str], body: bytes
    ) -> tuple[int, list[tuple[str, str]], bytes]:
        connection = http.client.HTTPConnection(self._server, timeout=120)
        try:
            connection.request(method, path, body, headers | {"Content-Length": str(len(body))})
            answer = connection.getresponse()
            return answer.status, answer.getheaders(), answer.read()
        finally:
            connection.close()


def _as_moto_has_it(params: Mapping[str, str]) -> bytes:
    image = params["ImageId"]
    known = {"ImageId": IMAGE if image.startswith("resolve:ssm:") else image}
    return urlencode({**params, **known, "MinCount": params["MaxCount"]}).encode()


def _error(code: str) -> bytes:
    said = f"<Code>{code}</Code><Message>We currently do not have sufficient capacity.</Message>"
    error = f"<Response><Errors><Error>{said}</Error></Errors><RequestID>1</RequestID></Response>"
    return error.encode()
