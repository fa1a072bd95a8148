"""The Python client against the real API: made, saved, waited for, asked again."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from raygen.cli import app, invoke
from raygen.client import AsyncClient, Client
from raygen.errors import ConfigError, ServiceError
from raygen.export import Generator, load_generator
from serve import tokens
from serve.api import build_api
from serve.models import Models
from serve.security import Guard, Security, SecurityArgs
from serve.videos import Videos
from tests.served import answering
from tests.small_runs import make_export


class Failing:
    """Before the API: what `plan` says, an answer each, until it is empty; then the API."""

    def __init__(self, api: ASGIApp) -> None:
        self.api = api
        self.plan: list[tuple[int, dict[str, str]]] = []
        self.asked: list[tuple[str, str, bytes]] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        key = dict(scope["headers"]).get(b"idempotency-key", b"")
        self.asked.append((scope["method"], scope["path"], key))
        if self.plan:
            status, headers = self.plan.pop(0)
            if status == 0:  # done, and the answer lost on the way

                async def lost(message: object) -> None:
                    return

                await self.api(scope, receive, lost)
                status = 502
            await PlainTextResponse("no", status, headers)(scope, receive, send)
            return
        await self.api(scope, receive, send)


@pytest.fixture(scope="module")
def generator(tmp_path_factory: pytest.TempPathFactory) -> Generator:
    return load_generator(make_export(str(tmp_path_factory.mktemp("export") / "small")))


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str, Failing]]:
    """URL, token, and what stands before the API."""
    folder = tmp_path_factory.mktemp("client")
    export = make_export(str(folder / "small"))
    token, line = tokens.make("alice", rate=6, burst=40)
    guard = Guard(SecurityArgs(token_lines=line))
    secure = Middleware(Security, guard=lambda: guard)
    models = Models(export, "cpu", "plain")
    failing = Failing(build_api(models, Videos(folder / "videos"), [secure]))
    with answering(failing) as url:
        yield url, token, failing


@pytest.fixture
def client(served: tuple[str, str, Failing]) -> Iterator[Client]:
    served[2].plan.clear()
    served[2].asked.clear()
    with Client(served[0], token=served[1], patience_s=60) as client:
        yield client


def test_a_file_of_clips(client: Client, generator: Generator, tmp_path: Path) -> None:
    made = client.generate(seeds=[7, 8], classes=["wave", "bend"], format="npy")
    expected = generator.generate([7, 8], [2, 0])
    assert np.array_equal(np.load(io.BytesIO(made.data)), expected)
    assert (made.model, made.seeds, made.classes) == (generator.digest, [7, 8], ["wave", "bend"])
    path = client.generate(n=2, format="webp", scale=2).save(tmp_path / "new" / "a.webp")
    with Image.open(path) as image:
        assert image.height == 32
    assert [model["digest"] for model in client.models()] == [generator.digest]


def test_it_waits_and_asks_again_and_draws_once(
    client: Client, served: tuple[str, str, Failing]
) -> None:
    failing = served[2]
    failing.plan = [(503, {"Retry-After": "1"}), (0, {}), (408, {})]
    client.generate(seeds=[3])
    posts = [key for method, _, key in failing.asked if method == "POST"]
    assert len(posts) == 4
    assert len(set(posts)) == 1
    gets = {path for method, path, _ in failing.asked if method == "GET"}
    assert len(gets) == 1  # one video's content: the lost one's


def test_what_cannot_be_is_said_once(client: Client, served: tuple[str, str, Failing]) -> None:
    with pytest.raises(ServiceError, match="did you mean wave") as found:
        client.generate(classes=["wav"])
    assert found.value.status == 404
    assert len(served[2].asked) == 1
    with pytest.raises(ServiceError, match="Bearer") as found, Client(served[0]) as stranger:
        stranger.generate()
    assert found.value.status == 401
    with pytest.raises(ServiceError, match="cannot be reached"):
        Client("http://127.0.0.1:9", patience_s=0.5).models()
    with pytest.raises(ConfigError, match="cannot read"):
        client.generate(image="no-such-picture.png")
    served[2].plan = [(503, {"Retry-After": "3600"})]
    with pytest.raises(ServiceError) as found:
        client.generate()
    assert found.value.status == 503


def test_many_at_once(served: tuple[str, str, Failing], generator: Generator) -> None:
    """More than the token's allowance: those that are refused come again."""

    async def run() -> list[bytes]:
        async with AsyncClient(served[0], token=served[1], patience_s=100) as client:
            made = await asyncio.gather(
                *(client.generate(seeds=[s], classes=["jump"], format="npy") for s in range(16))
            )
        return [each.data for each in made]

    headers = {"Authorization": f"Bearer {served[1]}"}
    while httpx.get(f"{served[0]}/v1/models", headers=headers).status_code != 429:
        pass  # until the allowance is used up, however slow the machine is
    served[2].asked.clear()
    found = [np.load(io.BytesIO(data))[0] for data in asyncio.run(run())]
    assert np.array_equal(np.stack(found), generator.generate(range(16), [1] * 16))
    assert len(served[2].asked) > 3 * 16


def test_the_command(
    served: tuple[str, str, Failing],
    generator: Generator,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    url, token, _ = served
    monkeypatch.setenv("RAYGEN_TOKEN", token)
    out = tmp_path / "out.npy"
    asked = ["generate", "best", "--url", url, "--class", "wave", "--class", "bend", "--n", "3"]
    with pytest.raises(SystemExit) as ended:
        invoke("raygen", app, [*asked, "--seed", "5", "-o", str(out)])
    assert ended.value.code == 0, capsys.readouterr().err
    assert np.array_equal(np.load(out), generator.generate([5, 6, 7], [2, 0, 2]))
