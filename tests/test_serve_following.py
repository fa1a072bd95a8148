"""Serving what a registry says is live: swaps under load, poisoned versions, rollback, memory."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import io
import json
import pickle
import re
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
import uvicorn
from fastapi import FastAPI, Response
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors

from raygen.data import store
from raygen.errors import ExportError, StorageError
from raygen.export import CONFIG, WEIGHTS, load_generator
from raygen.registry import Registry
from serve.following import Following
from serve.generator import Ask
from serve.models import ModelNotFound
from tests.small_runs import judged, make_export

POLL_S = 0.05


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Exports by digest, each better than the one before."""
    folder = tmp_path_factory.mktemp("exports")
    made = [
        make_export(str(folder / f"e{seed}"), seed=seed, evaluation=judged(50.0 - seed))
        for seed in range(4)
    ]
    return {load_generator(export).digest: export for export in made}


@pytest.fixture
def registry(tmp_path: Path, exports: dict[str, str]) -> Registry:
    """With the first export in it."""
    registry = Registry(str(tmp_path / "registry"))
    registry.publish(next(iter(exports.values())))
    return registry


def following(registry: Registry, **options: object) -> Following:
    options = {"drawing": "plain", "poll_s": POLL_S} | options
    return Following(registry.uri, **options)  # type: ignore[arg-type]


async def until(true: Callable[[], bool]) -> None:
    patience = time.monotonic() + 60
    while not true():
        assert time.monotonic() < patience
        await asyncio.sleep(0.01)


@pytest.fixture
def served(s3: str, exports: dict[str, str]) -> Iterator[tuple[Registry, str]]:
    """A registry on S3, and the URL of a server of it: GET /SEED answers an npy of its clip."""
    registry = Registry(f"{s3}/registry")
    registry.publish(next(iter(exports.values())))
    models = following(registry)
    api = FastAPI()

    @api.get("/{seed}")
    async def clip(seed: int) -> Response:
        served = await models.resolve("best")
        drawn = await served.source.draw(Ask(seed, label=1))
        data = await served.source.encode([drawn.clip_THWC], "npy", served.generator.fps)
        return Response(data, headers={"X-Raygen-Model": served.digest})

    server = uvicorn.Server(uvicorn.Config(api, host="127.0.0.1", port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield registry, f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join()


def test_swaps_under_load_lose_nothing_and_mix_nothing(
    exports: dict[str, str], served: tuple[Registry, str]
) -> None:
    """Better versions, one after the other, and back again, while four threads ask."""
    registry, url = served
    stop = threading.Event()
    answers: list[tuple[int, int, str, bytes]] = []

    def ask(first: int) -> None:
        with httpx.Client(base_url=url, timeout=120) as client:
            seed = first
            while not stop.is_set():
                answer = client.get(f"/{seed % 16}")
                model = answer.headers.get("x-raygen-model", "")
                answers.append((seed % 16, answer.status_code, model, answer.content))
                seed += 1

    threads = [threading.Thread(target=ask, args=(4 * k,)) for k in range(4)]
    for thread in threads:
        thread.start()

    def seen(digest: str) -> None:
        patience, begun = time.monotonic() + 60, len(answers)
        while digest not in {model for _, _, model, _ in answers[begun:]}:
            assert time.monotonic() < patience
            time.sleep(0.02)

    try:
        digests = list(exports)
        for digest in digests[1:]:
            registry.publish(exports[digest])
            seen(digest)
        for digest in reversed(digests[:-1]):
            registry.rollback("")
            seen(digest)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert {status for _, status, _, _ in answers} == {200}
    expected = {
        digest: load_generator(export).generate(range(16), [1] * 16)
        for digest, export in exports.items()
    }
    for seed, _, model, content in answers:
        assert np.array_equal(np.load(io.BytesIO(content))[0], expected[model][seed])
    assert {model for _, _, model, _ in answers} == set(exports)


def smuggle(registry: Registry, export: str, how: str) -> str:
    """Enters a poisoned version by hand, past `publish`; its digest."""
    weights = Path(export, WEIGHTS).read_bytes()
    if how == "nan":
        tensors = load_safetensors(weights)
        next(iter(tensors.values())).view(-1)[0] = torch.nan
        weights = save_safetensors(tensors)
    if how == "pickle":
        weights = pickle.dumps({"weights": 1})
    sha256 = hashlib.sha256(weights).hexdigest()
    document = json.loads(Path(export, CONFIG).read_text()) | {"sha256": sha256}
    config = json.dumps(document).encode()
    folder = hashlib.sha256(config).hexdigest()
    place = store.join(registry.uri, "models", folder)
    store.write_bytes(store.join(place, WEIGHTS), weights[: -100 if how == "truncated" else None])
    store.write_bytes(store.join(place, CONFIG), config + (b" " if how == "altered" else b""))
    event = {
        "event": "published",
        "name": "small",
        "digest": sha256[:12],
        "folder": folder,
        "figures": {"score": 0.1, "clip_ms": 0.0},
        "at": time.time(),
    }
    number = registry.version + 1
    store.write_bytes(
        store.join(registry.uri, "log", f"{number:08d}.json"), json.dumps(event).encode()
    )
    return sha256[:12]


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("nan", "are not all numbers"),
        ("truncated", "is damaged"),
        ("pickle", "is no complete export"),
        ("altered", "is not what was published"),
        ("slow", r"takes \d+ ms a clip here, and 0.001 are the limit"),
    ],
)
def test_what_is_poisoned_in_the_registry_never_goes_live(
    registry: Registry,
    exports: dict[str, str],
    how: str,
    said: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    first, second, third, _ = exports

    async def run() -> None:
        models = await started(following(registry))
        if how == "slow":
            registry.rank("", limits=["clip_ms<=0.001"])
        poisoned = smuggle(registry, exports[second], how)
        live = registry.refresh()["small"].live
        assert live is not None
        assert live.digest == poisoned
        await until(lambda: re.search(said, caplog.text) is not None)
        assert (await models.resolve("best")).digest == first
        assert [card.digest for card in models.cards()] == [first]
        registry.rank("", limits=[])
        registry.yank("", poisoned, "poisoned")
        registry.publish(exports[third])
        await until(lambda: models._live["small"] == third)
        await models.close()

    asyncio.run(run())


async def started(models: Following) -> Following:
    await models.resolve("best")
    return models


def test_names_digests_and_what_there_is_not(registry: Registry, exports: dict[str, str]) -> None:
    first, second, *_ = exports
    registry.publish(exports[second], "other")

    async def run() -> None:
        models = await started(following(registry))
        assert sorted(models.names()) == ["other", "small"]
        assert (await models.resolve("small")).digest == first
        other = await models.resolve("other")
        assert (other.digest, other.name, other.card.name) == (second, "other", "other")
        assert (await models.resolve(second)) is other
        await until(lambda: len(models.cards()) == 2)
        assert [(c.name, c.best) for c in models.cards()] == [("small", True), ("other", False)]
        with pytest.raises(ModelNotFound, match="there are best, small, other"):
            await models.resolve("another")
        await models.close()

    asyncio.run(run())


def test_what_others_saw_first_is_found(registry: Registry, exports: dict[str, str]) -> None:
    async def run() -> None:
        models, digest = following(registry, poll_s=60.0), [*exports][1]
        with pytest.raises(ModelNotFound):
            await models.resolve(digest)  # it has just looked, when that is published
        registry.publish(exports[digest])
        found = await asyncio.gather(*(models.resolve(digest) for _ in range(8)))
        assert {served.digest for served in found} == {digest}
        await models.close()

    asyncio.run(run())


def test_what_is_yanked_answers_no_more(registry: Registry, exports: dict[str, str]) -> None:
    first, second, *_ = exports
    registry.publish(exports[second])

    async def run() -> None:
        models = await started(following(registry))
        assert (await models.resolve("best")).digest == second
        registry.yank("", second, "a face in it")
        await until(lambda: models._live.get("small") == first)
        with pytest.raises(ModelNotFound):
            await models.resolve(second)
        assert (await models.resolve("best")).digest == first
        registry.yank("", first, "there too")
        await until(lambda: not models._live)
        with pytest.raises(ModelNotFound, match="no version of small is live"):
            await models.resolve("best")
        await models.close()

    asyncio.run(run())


def test_a_canary_gets_its_share(registry: Registry, exports: dict[str, str]) -> None:
    first, second, *_ = exports
    registry.publish(exports[second])
    registry.pin("", first)
    registry.canary("", second, 0.25)

    async def run() -> None:
        models = await started(following(registry))
        await until(lambda: "small" in models._canary)
        digests = [(await models.resolve("best")).digest for _ in range(2000)]
        assert 0.2 < digests.count(second) / 2000 < 0.3  # five standard deviations
        assert set(digests) == {first, second}
        registry.canary("", "", 0.0)
        await until(lambda: not models._canary)
        assert (await models.resolve("best")).digest == first
        await models.close()

    asyncio.run(run())


def test_memory_is_bounded_and_what_is_unloaded_goes_after_its_last_request(
    registry: Registry, exports: dict[str, str]
) -> None:
    for digest, export in exports.items():
        registry.publish(export, f"m{digest}")

    async def run() -> None:
        one = following(registry)._loaded["small", next(iter(exports))].size
        models = await started(following(registry, memory_mib=2.5 * one / (1 << 20)))
        await until(lambda: len(models.cards()) == 5)
        assert len(models._loaded) == 2
        held = await models.resolve("m" + list(exports)[1])
        module = weakref.ref(held.generator.module)
        for digest in [*exports][2:]:
            await models.resolve(f"m{digest}")
        assert ("m" + list(exports)[1], list(exports)[1]) not in models._loaded
        drawn = await held.source.draw(Ask(3, label=1))  # it was unloaded, and this request had it
        assert drawn.clip_THWC.shape == (8, 16, 16, 3)
        del held
        await asyncio.sleep(0.1)
        gc.collect()
        assert module() is None
        again = await models.resolve("m" + list(exports)[1])
        assert again.digest == list(exports)[1]
        await models.close()

    asyncio.run(run())


def test_a_registry_that_cannot_be_read_changes_nothing(
    tmp_path: Path, exports: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    registry = Registry(str(tmp_path / "registry"))
    first, second, *_ = exports
    registry.publish(exports[first])

    async def run() -> None:
        models = await started(following(registry))
        entry = store.join(registry.uri, "log", "00000002.json")
        store.write_bytes(entry, b"damaged")
        await until(lambda: "cannot be read" in caplog.text)
        assert (await models.resolve("best")).digest == first
        store.delete(entry)
        registry.publish(exports[second])
        await until(lambda: models._live["small"] == second)
        await models.close()

    asyncio.run(run())


def test_nothing_to_serve_is_said_at_once(tmp_path: Path, exports: dict[str, str]) -> None:
    with pytest.raises(StorageError, match="no registry at"):
        Following(str(tmp_path / "registry"))
    registry = Registry(str(tmp_path / "registry"))
    first, *_ = exports
    registry.publish(exports[first])
    registry.yank("", first, "why not")
    with pytest.raises(ExportError, match="no version of small in "):
        Following(registry.uri)
