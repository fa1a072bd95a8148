"""Clips from an endpoint, for programs: `pip install 'raygen[client]'`.

    client = Client("http://127.0.0.1:8000", token="rg_...")
    client.generate(seeds=[7], classes=["wave"]).save("wave.mp4")

    async with AsyncClient(url) as client:
        made = await client.generate(n=16, texts=["a red circle moves right"], format="npy")

Both wait and ask again as the server says (Retry-After), and repeat what was lost on the way: a
request carries an Idempotency-Key, so that nothing is drawn twice.
"""

from __future__ import annotations

import asyncio
import base64
import random
import time
import uuid
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raygen.errors import ConfigError, ServiceError

try:
    import httpx
except ModuleNotFoundError:
    raise ConfigError("the client needs httpx: pip install 'raygen[client]'") from None

AGAIN = {408, 425, 429, 502, 503, 504}  # statuses after which another try may succeed
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.2, 10.0

# What one call does: requests and pauses (seconds) out, answers in, whoever sends them.
_Steps = Generator["httpx.Request | float", "httpx.Response | Exception", "httpx.Response"]


@dataclass(frozen=True)
class Generated:
    """A file of clips, and what drew them."""

    data: bytes
    format: str
    model: str  # digest
    seeds: list[int]
    classes: list[str | None]

    def save(self, path: str | Path) -> Path:
        """Writes the file; returns where it is. Raises ConfigError where it cannot be written."""
        path = Path(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(self.data)
        except OSError as error:
            raise ConfigError(f"cannot write {path}: {error.strerror}") from None
        return path


class _Asking:
    """What is asked, for both clients."""

    def __init__(self, url: str, token: str, patience_s: float) -> None:
        self.url, self.patience_s = url.rstrip("/"), patience_s
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}

    def _request(self, method: str, path: str, **options: Any) -> httpx.Request:
        headers = self._headers | options.pop("headers", {})
        try:
            return httpx.Request(method, self.url + path, headers=headers, **options)
        except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
            raise ConfigError(f"{self.url} is no URL: {error}", "url") from None

    def _insist(self, request: httpx.Request, until: float) -> _Steps:
        """The answer, asked for again as long as that may help. Raises ServiceError."""
        pause_s = FIRST_PAUSE_S
        while True:
            answer = yield request
            if isinstance(answer, httpx.Response) and answer.status_code not in AGAIN:
                if answer.is_success:
                    return answer
                raise ServiceError(f"{self.url}: {_said(answer)}", answer.status_code)
            said = _said(answer) if isinstance(answer, httpx.Response) else _why(answer)
            wait_s = _retry_after(answer) or pause_s * random.uniform(0.5, 1)
            if time.monotonic() + wait_s > until:
                status = answer.status_code if isinstance(answer, httpx.Response) else 0
                raise ServiceError(f"{self.url}: {said}", status)
            yield wait_s
            pause_s = min(LONGEST_PAUSE_S, 2 * pause_s)

    def _models(self) -> _Steps:
        until = time.monotonic() + self.patience_s
        return (yield from self._insist(self._request("GET", "/v1/models"), until))

    def _generate(
        self, wanted: dict[str, Any]
    ) -> Generator[httpx.Request | float, httpx.Response | Exception, Generated]:
        until = time.monotonic() + self.patience_s
        body = {name: value for name, value in wanted.items() if value is not None}
        image = body.pop("image", None)
        if image is not None:
            data = image if isinstance(image, bytes) else _read(image)
            body["image"] = base64.b64encode(data).decode()
        headers = {"Idempotency-Key": uuid.uuid4().hex}
        begin = self._request("POST", "/v1/videos", json=body, headers=headers)
        answer = yield from self._insist(begin, until)
        while True:
            video = answer.json()
            place = f"/v1/videos/{video['id']}"
            if video["state"] == "failed":
                raise ServiceError(f"{self.url}: {video['problem']['detail']}", answer.status_code)
            if video["state"] == "done":
                break
            if time.monotonic() > until:
                raise ServiceError(f"{self.url}: not done after {self.patience_s:g} s", 0)
            yield _retry_after(answer) or 1.0
            answer = yield from self._insist(self._request("GET", place), until)
        content = yield from self._insist(self._request("GET", place + "/content"), until)
        yield self._request("DELETE", place)  # whatever becomes of it: it is kept for an hour
        return Generated(
            content.content, video["format"], video["model"], video["seeds"], video["classes"]
        )


class Client(_Asking):
    """An endpoint at `url`. `patience_s`: how long a call may take, tries again included."""

    def __init__(
        self, url: str, *, token: str = "", patience_s: float = 300, timeout_s: float = 90
    ) -> None:
        super().__init__(url, token, patience_s)
        self._http = httpx.Client(timeout=timeout_s)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Lets the connections go."""
        self._http.close()

    def models(self) -> list[dict[str, Any]]:
        """What answers there. Raises ServiceError."""
        found: list[dict[str, Any]] = self._run(self._models()).json()
        return found

    def generate(
        self,
        *,
        model: str = "best",
        n: int | None = None,
        seeds: Sequence[int] = (),
        classes: Sequence[str] = (),
        texts: Sequence[str] = (),
        image: str | Path | bytes | None = None,
        interpolate: bool = False,
        frames: int | None = None,
        fps: float | None = None,
        truncation: float = 1.0,
        format: str = "mp4",
        scale: int = 1,
    ) -> Generated:
        """A file of clips, as POST /v1/videos describes it; `image` is a picture's path or bytes.

        Raises ServiceError for what the server refuses or cannot do within `patience_s`.
        """
        return self._run(self._generate(_wanted(locals())))  # type: ignore[no-any-return]

    def _run(self, steps: Generator[Any, Any, Any]) -> Any:
        answer: Any = None
        while True:
            try:
                step = steps.send(answer)
            except StopIteration as end:
                return end.value
            if isinstance(step, float):
                time.sleep(step)
                answer = None
                continue
            try:
                answer = self._http.send(step)
            except httpx.TransportError as error:
                answer = error


class AsyncClient(_Asking):
    """As Client, to be awaited."""

    def __init__(
        self, url: str, *, token: str = "", patience_s: float = 300, timeout_s: float = 90
    ) -> None:
        super().__init__(url, token, patience_s)
        self._http = httpx.AsyncClient(timeout=timeout_s)

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Lets the connections go."""
        await self._http.aclose()

    async def models(self) -> list[dict[str, Any]]:
        """What answers there. Raises ServiceError."""
        found: list[dict[str, Any]] = (await self._run(self._models())).json()
        return found

    async def generate(
        self,
        *,
        model: str = "best",
        n: int | None = None,
        seeds: Sequence[int] = (),
        classes: Sequence[str] = (),
        texts: Sequence[str] = (),
        image: str | Path | bytes | None = None,
        interpolate: bool = False,
        frames: int | None = None,
        fps: float | None = None,
        truncation: float = 1.0,
        format: str = "mp4",
        scale: int = 1,
    ) -> Generated:
        """As Client.generate."""
        return await self._run(self._generate(_wanted(locals())))  # type: ignore[no-any-return]

    async def _run(self, steps: Generator[Any, Any, Any]) -> Any:
        answer: Any = None
        while True:
            try:
                step = steps.send(answer)
            except StopIteration as end:
                return end.value
            if isinstance(step, float):
                await asyncio.sleep(step)
                answer = None
                continue
            try:
                answer = await self._http.send(step)
            except httpx.TransportError as error:
                answer = error


def _wanted(arguments: dict[str, Any]) -> dict[str, Any]:
    wanted = {name: value for name, value in arguments.items() if name != "self"}
    return wanted | {name: list(wanted[name]) for name in ("seeds", "classes", "texts")}


def _read(path: str | Path) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}", "image") from None


def _retry_after(answer: httpx.Response | Exception) -> float:
    """Seconds that the server asks to wait; 0 where it says none, or a date."""
    if isinstance(answer, httpx.Response):
        stated = answer.headers.get("retry-after", "")
        return float(stated) if stated.isdigit() else 0.0
    return 0.0


def _said(answer: httpx.Response) -> str:
    if answer.headers.get("content-type", "").startswith("application/problem+json"):
        return str(answer.json()["detail"])
    return f"{answer.status_code} {answer.reason_phrase}"


def _why(error: Exception) -> str:
    return f"cannot be reached: {' '.join(str(error).split()) or type(error).__name__}"
