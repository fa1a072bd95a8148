"""The whole of it on Ray Serve: a registry behind tokens, swapped under load, clips marked."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import ray
from ray import serve

from raygen import watermark
from raygen.errors import ConfigError, StorageError
from raygen.export import load_generator
from raygen.provenance import read_clip
from raygen.registry import Registry
from serve import tokens
from serve.app import AppArgs, build
from tests.small_runs import judged, make_export
from tests.test_serve_app import _free_port


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("exports")
    return [
        make_export(str(folder / f"e{seed}"), seed=seed, evaluation=judged(50.0 - seed), size=64)
        for seed in range(3)
    ]


@pytest.fixture(scope="module")
def client(
    tmp_path_factory: pytest.TempPathFactory, exports: list[str]
) -> Iterator[tuple[Registry, httpx.Client]]:
    folder = tmp_path_factory.mktemp("serve")
    registry = Registry(str(folder / "registry"))
    registry.publish(exports[0])
    token, line = tokens.make("alice", rate=1000, burst=1000)
    (folder / "tokens").write_text(line)
    args = AppArgs(
        registry=registry.uri,
        tokens=str(folder / "tokens"),
        watermark=True,
        drawing="plain",
        videos=str(folder / "videos"),
    )
    port = _free_port()
    application = build(args)
    ray.init("local", num_cpus=2, include_dashboard=False, configure_logging=False)
    serve.start(http_options={"port": port})
    serve.run(application, route_prefix="/")
    headers = {"Authorization": f"Bearer {token}"}
    url = f"http://127.0.0.1:{port}"
    with httpx.Client(base_url=url, timeout=120, headers=headers, follow_redirects=True) as client:
        yield registry, client
    serve.shutdown()
    ray.shutdown()


@pytest.mark.slow
def test_a_swap_under_load_loses_nothing_and_clips_say_what_drew_them(
    client: tuple[Registry, httpx.Client], exports: list[str]
) -> None:
    registry, http = client
    stop, answers = threading.Event(), []

    def ask(seed: int) -> None:
        while not stop.is_set():
            answer = http.get(f"/v1/models/best/clips/{seed}")
            answers.append((answer.status_code, answer.headers.get("x-raygen-model"), answer))
            seed += 1

    threads = [threading.Thread(target=ask, args=(100 * k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    try:
        for export in exports[1:]:
            digest = registry.publish(export).digest
            patience = time.monotonic() + 60
            while digest not in {model for _, model, _ in answers[-8:]}:
                assert time.monotonic() < patience
                time.sleep(0.05)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert {status for status, _, _ in answers} == {200}
    assert {model for _, model, _ in answers} == {load_generator(e).digest for e in exports}
    for _, model, answer in answers[:: len(answers) // 12]:
        found = watermark.detect(read_clip(answer.content))
        assert (found.present, found.digest) == (True, model[:8])


@pytest.mark.slow
def test_tokens_and_serves_headers(client: tuple[Registry, httpx.Client]) -> None:
    _, http = client
    assert httpx.get(f"{http.base_url}/v1/models").status_code == 401
    answer = http.get("/v1/models")
    assert answer.headers["ratelimit-policy"] == '"default";q=1000;w=1'
    # Serve would give up after a microsecond, and does where nothing takes the header out.
    hurried = http.get("/v1/models/best/clips/1", headers={"X-Request-Timeout-Seconds": "0.000001"})
    assert hurried.status_code == 200
    cached = http.get("/v1/models/best/clips/1").headers["cache-control"]
    assert "public" not in cached


def test_arguments_that_cannot_be_are_said_before_anything_starts(
    tmp_path: Path, exports: list[str]
) -> None:
    with pytest.raises(StorageError, match="no registry at"):
        build(AppArgs(registry=str(tmp_path)))
    with pytest.raises(ConfigError, match="say one of them"):
        build(AppArgs(registry=str(tmp_path), export=exports[0]))
    with pytest.raises(StorageError, match="cannot read"):
        build(AppArgs(export=exports[0], tokens=str(tmp_path / "none")))
