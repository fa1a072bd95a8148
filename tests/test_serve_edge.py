"""What Serve's proxies say by themselves, as Ray writes it, behind the middleware and real HTTP."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
from ray.serve._private.http_util import convert_object_to_asgi_messages, retry_after_headers
from starlette.types import Receive, Scope, Send

from serve.edge import Edge
from tests.served import answering

DROPPED = "Request dropped due to backpressure."


async def proxy(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers /STATUS and /STATUS/SECONDS as Ray's proxy does; /gone as where a replica died."""
    parts = scope["path"].removeprefix("/-").strip("/").split("/")
    if parts == ["gone"]:
        return
    headers = retry_after_headers(float(parts[1]) if len(parts) > 1 else None)
    for message in convert_object_to_asgi_messages(DROPPED, int(parts[0]), headers):
        await send(message)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with answering(Edge(proxy)) as url:
        yield url


@pytest.mark.parametrize(
    ("path", "status", "retry"),
    [
        ("/503", 503, "5"),
        ("/503/12", 503, "12"),
        ("/408", 408, "5"),
        ("/404", 404, None),
        ("/500", 500, None),
        ("/gone", 503, "1"),
    ],
)
def test_errors_are_problem_documents(url: str, path: str, status: int, retry: str | None) -> None:
    answer = httpx.get(url + path)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers.get("retry-after") == retry
    problem = answer.json()
    assert (problem["type"], problem["status"]) == ("about:blank", status)
    assert problem["title"]
    said = "the replica that drew this has gone; ask again" if path == "/gone" else DROPPED
    assert problem["detail"] == said


def test_what_is_no_error_or_for_load_balancers_stays_as_it_is(url: str) -> None:
    for path in ("/200", "/-/503"):
        answer = httpx.get(url + path)
        assert (answer.status_code, answer.text) == (int(path[-3:]), DROPPED)
        assert answer.headers["content-type"] == "text/plain; charset=utf-8"
