"""The middleware before a small API, behind a real HTTP server: who is let in, and how often."""

from __future__ import annotations

import logging
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
import uvicorn
from fastapi import FastAPI, Request, Response
from starlette.middleware import Middleware

from raygen.errors import ConfigError
from serve import tokens
from serve.edge import Edge
from serve.security import Guard, Security, SecurityArgs

Start = Callable[..., httpx.Client]


@pytest.fixture
def start() -> Iterator[Start]:
    """Serves an API behind Security with these arguments; returns a client of it."""
    running: list[tuple[uvicorn.Server, threading.Thread]] = []
    clients: list[httpx.Client] = []

    def run(edge: bool = True, address: str = "127.0.0.1", **args: object) -> httpx.Client:
        guard = Guard(SecurityArgs.model_validate(args))
        api = FastAPI(middleware=[Middleware(Security, guard=lambda: guard)])

        @api.get("/v1/clip")
        async def clip(request: Request) -> Response:
            assert "x-request-timeout-seconds" not in request.headers
            return Response(b"clip", headers={"Cache-Control": "public, immutable", "ETag": '"1"'})

        @api.post("/v1/videos")
        async def videos(request: Request) -> dict[str, int]:
            return {"bytes": len(await request.body())}

        @api.get("/")
        @api.get("/healthz")
        async def healthz() -> str:
            return "ok"

        app = Edge(api) if edge else api
        server = uvicorn.Server(uvicorn.Config(app, host="0.0.0.0", port=0, log_level="warning"))
        thread = threading.Thread(target=server.run)
        thread.start()
        running.append((server, thread))
        while not server.started:
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        clients.append(httpx.Client(base_url=f"http://{address}:{port}", timeout=60))
        return clients[-1]

    yield run
    for client in clients:
        client.close()
    for server, thread in running:
        server.should_exit = True
        thread.join()


def outside() -> str:
    """An address of this machine that is not loopback."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing
        except OSError:
            pytest.skip("this machine has no address but loopback")
        return str(probe.getsockname()[0])


def with_token(file: Path, name: str = "alice", **allowed: float) -> dict[str, str]:
    """Adds a token to the file; returns the headers that carry it."""
    token, line = tokens.make(name, **allowed)  # type: ignore[arg-type]
    with file.open("a") as lines:
        lines.write(line + "\n")
    return {"Authorization": f"Bearer {token}"}


def refused(answer: httpx.Response, status: int, words: str) -> None:
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["status"] == status
    assert words in answer.json()["detail"]


def test_without_tokens_this_machine_alone_is_answered(start: Start) -> None:
    client = start()
    assert client.get("/v1/clip").content == b"clip"
    port = client.base_url.port
    assert client.get("/v1/clip", headers={"Host": f"localhost:{port}"}).status_code == 200
    rebound = client.get("/v1/clip", headers={"Host": f"attacker.example:{port}"})
    refused(rebound, 403, "without tokens only callers on the machine itself")
    far = f"http://{outside()}:{port}"
    for path in ("/v1/clip", "/"):
        for host in ("localhost", outside()):
            answer = httpx.get(far + path, headers={"Host": host})
            refused(answer, 403, "without tokens only callers on the machine itself")
    assert httpx.get(far + "/healthz").status_code == 200


def test_a_token_opens_and_nothing_else_does(start: Start, tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    good = with_token(file)
    other = with_token(file, "bob")
    client = start(tokens=str(file), address=outside())
    for headers in (good, other, {"Authorization": good["Authorization"].replace("B", "b", 1)}):
        assert client.get("/v1/clip", headers=headers).content == b"clip"
    assert client.get("/").status_code == 200  # the page asks for the token itself
    answer = client.get("/v1/clip")
    refused(answer, 401, "Authorization: Bearer")
    assert answer.headers["www-authenticate"] == 'Bearer realm="raygen"'
    digest = file.read_text().split()[1]
    for wrong in (good["Authorization"] + "x", good["Authorization"][:-1], f"Bearer {digest}"):
        answer = client.get("/v1/clip", headers={"Authorization": wrong})
        refused(answer, 401, "not known")
        assert 'error="invalid_token"' in answer.headers["www-authenticate"]
    basic = client.get("/v1/clip", headers={"Authorization": "Basic YTpi"})
    refused(basic, 401, "Bearer")


def test_what_needs_a_token_is_not_cached_for_all(start: Start, tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    headers = with_token(file)
    closed = start(tokens=str(file)).get("/v1/clip", headers=headers)
    assert closed.headers["cache-control"] == "private, immutable"
    assert start().get("/v1/clip").headers["cache-control"] == "public, immutable"
    assert closed.headers["x-content-type-options"] == "nosniff"


def test_tokens_from_the_environment_and_revoked_in_the_file(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serve.security.RELOAD_S", 0.05)
    file = tmp_path / "tokens"
    alice, bob = with_token(file), with_token(file, "bob")
    client = start(tokens=str(file))
    assert client.get("/v1/clip", headers=bob).status_code == 200
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("half a li")  # being written
    time.sleep(0.1)
    assert client.get("/v1/clip", headers=bob).status_code == 200
    file.write_text(lines[0])
    patience = time.monotonic() + 60
    while client.get("/v1/clip", headers=bob).status_code == 200:
        assert time.monotonic() < patience
        time.sleep(0.05)
    assert client.get("/v1/clip", headers=alice).status_code == 200
    monkeypatch.setenv("RAYGEN_TOKENS", lines[1])
    client = start()
    assert client.get("/v1/clip", headers=bob).status_code == 200
    assert client.get("/v1/clip", headers=alice).status_code == 401


def test_an_allowance_is_a_tokens_own(start: Start, tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    alice = with_token(file, rate=0.01, burst=3)
    bob = with_token(file, "bob", rate=1000, burst=1000)
    client = start(tokens=str(file))
    answers = [client.get("/v1/clip", headers=alice) for _ in range(4)]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
    left = [answer.headers["ratelimit"].split(";")[1] for answer in answers]
    assert left == ["r=2", "r=1", "r=0", "r=0"]
    assert answers[0].headers["ratelimit-policy"] == '"default";q=3;w=300'
    refused(answers[3], 429, "alice has used up its 0.01 requests a second")
    assert 0 < int(answers[3].headers["retry-after"]) <= 100
    with ThreadPoolExecutor(8) as pool:
        statuses = list(
            pool.map(lambda _: client.get("/v1/clip", headers=bob).status_code, range(100))
        )
    assert statuses == [200] * 100


def test_a_bucket_fills_again() -> None:
    bucket = tokens.Bucket(rate=2.0, burst=3)
    now = bucket.at
    assert [bucket.take(now) for _ in range(4)] == [0, 0, 0, 0.5]
    assert bucket.take(now + 0.25) == pytest.approx(0.25)
    assert bucket.take(now + 0.5) == 0
    assert [bucket.take(now + 1000) for _ in range(4)] == [0, 0, 0, 0.5]


def test_bodies_are_bounded_stated_or_not_and_never_logged(
    start: Start, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    client = start(max_body=2000)
    secret = b"a-secret-text"
    assert client.post("/v1/videos", content=secret * 100).json() == {"bytes": 1300}
    refused(client.post("/v1/videos", content=secret * 200), 413, "at most 2000 bytes")
    unstated = client.post("/v1/videos", content=iter([secret * 100, secret * 100]))
    assert unstated.status_code == 413
    with socket.create_connection(("127.0.0.1", client.base_url.port)) as raw:
        raw.sendall(b"POST /v1/videos HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n")
        assert b" 400 " in raw.recv(4096)
    written = capfd.readouterr()
    assert "a-secret-text" not in caplog.text + written.out + written.err


def test_web_pages_on_the_list_may_ask(start: Start, tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    headers = with_token(file)
    client = start(tokens=str(file), origins="https://a.example, https://b.example")
    asks = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "prefer"}
    for origin, status in (("https://b.example", 200), ("https://c.example", 400)):
        answer = client.options("/v1/videos", headers={"Origin": origin, **asks})
        assert answer.status_code == status
        assert (answer.headers.get("access-control-allow-origin") == origin) == (status == 200)
    answer = client.get("/v1/clip", headers=headers | {"Origin": "https://a.example"})
    assert answer.headers["access-control-allow-origin"] == "https://a.example"
    assert "RateLimit" in answer.headers["access-control-expose-headers"]
    refusal = client.get("/v1/clip", headers={"Origin": "https://a.example"})
    assert refusal.status_code == 401  # and the page can read why
    assert refusal.headers["access-control-allow-origin"] == "https://a.example"
    plain = start().get("/v1/clip", headers={"Origin": "https://a.example"})
    assert "access-control-allow-origin" not in plain.headers


def test_serves_own_headers_are_not_for_callers(start: Start) -> None:
    header = {"X-Request-Timeout-Seconds": "-1"}
    assert start().get("/v1/clip", headers=header).status_code == 200  # stripped at the edge
    answer = start(edge=False).get("/v1/clip", headers=header)
    refused(answer, 400, "x-request-timeout-seconds is not for callers to send")


@pytest.mark.parametrize(
    "text", ["", "# nothing", "alice", "alice rg_a-token-itself", "a {0}\na {0}", "a {0} rate=0"]
)
def test_files_of_tokens_that_are_none(tmp_path: Path, text: str) -> None:
    file = tmp_path / "tokens"
    file.write_text(text.format("0" * 64))
    with pytest.raises(ConfigError) as found:
        Guard(SecurityArgs(tokens=str(file)))
    assert "rg_a-token-itself" not in str(found.value)


def test_the_command_makes_a_token(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "tokens"
    made = []
    for name in ("alice", "bob"):
        tokens.add(name, file, rate=2.5)
        made.append(capsys.readouterr().out.strip())
    callers = tokens.read(str(file))
    assert [caller.name for caller in callers] == ["alice", "bob"]
    assert [tokens.find(callers, token.encode()) for token in made] == callers
    assert callers[0].bucket.rate == 2.5
    assert made[0] not in file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    with pytest.raises(ConfigError, match="each name once"):
        tokens.add("alice", file)
    with pytest.raises(ConfigError, match="is no name"):
        tokens.add("al ice", file)
