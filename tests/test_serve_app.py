"""A real Ray Serve instance on a free port, asked over HTTP."""

import io
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import av
import httpx
import numpy as np
import pytest
import ray
from PIL import Image
from ray import serve

from raygen import video
from raygen.errors import ExportError
from raygen.export import export_run, load_generator
from serve.app import PORT, AppArgs, build
from tests.small_runs import CLASSES, make_run

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("serve")
    export_run(make_run(str(folder / "runs")), str(folder / "small"))
    return str(folder / "small")


@pytest.fixture(scope="module")
def client(exported: str) -> Iterator[httpx.Client]:
    os.environ["RAY_AUTH_MODE"] = "disabled"
    port = _free_port()
    ray.init("local", num_cpus=2, include_dashboard=False, configure_logging=False)
    serve.start(http_options={"port": port})
    serve.run(build(AppArgs(export=exported)), route_prefix="/")
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120) as client:
        yield client
    serve.shutdown()
    ray.shutdown()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_a_clip_is_the_generators_and_plays(client: httpx.Client, exported: str) -> None:
    answer = client.get("/v1/clips", params={"class": "wave", "seed": 7})
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "video/mp4"
    expected_THWC = load_generator(exported).generate([7], [CLASSES.index("wave")])[0]
    assert answer.content == video.encode_mp4(expected_THWC, 12.5)
    with av.open(io.BytesIO(answer.content), "r") as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert np.stack(frames).shape == expected_THWC.shape

    raw = client.get("/v1/clips", params={"class": "wave", "seed": 7, "format": "npy"})
    assert np.array_equal(np.load(io.BytesIO(raw.content))[0], expected_THWC)


def test_headers_say_what_was_drawn(client: httpx.Client, exported: str) -> None:
    answer = client.get("/v1/clips", params={"class": "bend", "seed": 3})
    assert answer.headers["x-raygen-model"] == load_generator(exported).digest
    assert answer.headers["x-raygen-class"] == "bend"
    assert answer.headers["x-raygen-seed"] == "3"
    assert answer.headers["cache-control"] == "no-cache"


def test_the_same_seed_gives_the_same_bytes_alone_and_in_a_batch(client: httpx.Client) -> None:
    def fetch(seed: int) -> httpx.Response:
        return client.get("/v1/clips", params={"class": "jump", "seed": seed, "format": "npy"})

    alone = [fetch(seed).content for seed in range(24)]
    with ThreadPoolExecutor(24) as pool:
        together = list(pool.map(fetch, range(24)))
    assert [answer.content for answer in together] == alone
    assert max(int(answer.headers["x-raygen-batch"]) for answer in together) > 1
    assert len(set(alone)) == 24


def test_without_a_seed_or_class_one_is_drawn_and_named(client: httpx.Client) -> None:
    first, second = client.get("/v1/clips"), client.get("/v1/clips")
    assert first.headers["x-raygen-seed"] != second.headers["x-raygen-seed"]
    assert first.headers["cache-control"] == "no-store"
    drawn = {"class": first.headers["x-raygen-class"], "seed": first.headers["x-raygen-seed"]}
    assert client.get("/v1/clips", params=drawn).content == first.content


def test_an_etag_saves_the_generation(client: httpx.Client) -> None:
    params = {"class": "wave", "seed": "7"}
    etag = client.get("/v1/clips", params=params).headers["etag"]
    again = client.get("/v1/clips", params=params, headers={"If-None-Match": etag})
    assert (again.status_code, again.content) == (304, b"")
    other = client.get("/v1/clips", params=params | {"seed": "8"}, headers={"If-None-Match": etag})
    assert other.status_code == 200


@pytest.mark.parametrize(
    ("format", "media_type"),
    [("webp", "image/webp"), ("gif", "image/gif"), ("png", "image/png")],
)
def test_picture_formats(client: httpx.Client, format: str, media_type: str) -> None:
    answer = client.get("/v1/clips", params={"class": "wave", "format": format, "scale": 2})
    assert answer.headers["content-type"] == media_type
    with Image.open(io.BytesIO(answer.content)) as image:
        assert image.size[1] == (80 if format == "png" else 32)


@pytest.mark.parametrize(
    ("params", "status", "words"),
    [
        ({"class": "wav"}, 404, "did you mean wave?"),
        ({"class": "wav"}, 404, "bend, jump, wave"),
        ({"text": "a red circle"}, 422, "takes no text; it was trained with class"),
        ({"seed": "-1"}, 422, "seed: Input should be greater than or equal to 0"),
        ({"format": "avi"}, 422, "'mp4', 'webp', 'gif', 'png' or 'npy'"),
        ({"scale": "9"}, 422, "scale"),
    ],
)
def test_bad_requests_are_problem_documents(
    client: httpx.Client, params: dict[str, str], status: int, words: str
) -> None:
    answer = client.get("/v1/clips", params=params)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["status"] == status
    assert words in answer.json()["detail"]


def test_an_unknown_path_is_a_problem_document(client: httpx.Client) -> None:
    answer = client.get("/v2/clips")
    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/problem+json"


def test_models_health_and_openapi(client: httpx.Client) -> None:
    (model,) = client.get("/v1/models").json()
    assert (model["classes"], model["conditions"]) == (CLASSES, ["class"])
    assert (model["frames"], model["size"], model["fps"]) == (8, 16, 12.5)
    assert model["metrics"] is None
    assert client.get("/healthz").json() == {"status": "ok"}
    paths = client.get("/openapi.json").json()["paths"]
    assert set(paths) == {"/v1/clips", "/v1/models", "/healthz"}
    names = [parameter["name"] for parameter in paths["/v1/clips"]["get"]["parameters"]]
    assert names == ["class", "text", "seed", "format", "scale", "if-none-match"]
    assert client.get("/docs").status_code == 200


def test_no_export_is_an_error_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAYGEN_EXPORT", raising=False)
    with pytest.raises(ExportError, match="RAYGEN_EXPORT"):
        build(AppArgs())
    monkeypatch.setenv("RAYGEN_EXPORT", str(tmp_path))
    with pytest.raises(ExportError, match="no export at"):
        build(AppArgs())


def serve_run(export: str) -> subprocess.CompletedProcess[str]:
    """`serve run` on the port 8000, expected to end by itself."""
    command = [sys.executable, "-m", "ray.serve.scripts", "run", "serve.app:app"]
    return subprocess.run(
        [*command, f"export={export}"], cwd=ROOT, capture_output=True, text=True, timeout=300
    )


def test_serve_run_answers_a_missing_export_with_one_line(tmp_path: Path) -> None:
    result = serve_run(str(tmp_path))
    assert result.returncode == 1
    assert f"Error: no export at {tmp_path}" in result.stderr
    assert "Traceback" not in result.stderr


def test_serve_run_answers_a_taken_port_with_one_line(exported: str) -> None:
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            taken.bind(("127.0.0.1", PORT))
            taken.listen()
        except OSError:
            pass  # something else has it, which serves as well
        result = serve_run(exported)
    assert result.returncode == 1
    assert "Error: port 8000 is in use" in result.stderr
    assert "Traceback" not in result.stderr
