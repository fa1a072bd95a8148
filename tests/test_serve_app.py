"""A real Ray Serve instance on a free port, asked over HTTP."""

import io
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import av
import click
import httpx
import numpy as np
import pytest
import ray
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families
from ray import serve

from raygen import video
from raygen.cost.prices import price
from raygen.errors import ExportError
from raygen.export import export_run, load_generator
from serve.app import PORT, AppArgs, app, build
from tests.small_runs import CLASSES, make_run

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("serve")
    export_run(make_run(str(folder / "runs")), str(folder / "small"))
    return str(folder / "small")


@pytest.fixture(scope="module")
def client(exported: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    os.environ["RAY_AUTH_MODE"] = "disabled"
    port = _free_port()
    often = {"metrics_report_interval_ms": 1000}
    ray.init(
        "local",
        num_cpus=2,
        include_dashboard=False,
        configure_logging=False,
        _system_config=often,
    )
    serve.start(http_options={"port": port})
    videos = str(tmp_path_factory.mktemp("videos"))
    args = AppArgs(export=exported, drawing="plain", videos=videos)
    serve.run(build(args), route_prefix="/")
    url = f"http://127.0.0.1:{port}"
    with httpx.Client(base_url=url, timeout=120, follow_redirects=True) as client:
        yield client
    serve.shutdown()
    ray.shutdown()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def clip(
    client: httpx.Client, seed: object, headers: dict[str, str] | None = None, **params: object
) -> httpx.Response:
    """`best`'s clip; the redirect is followed."""
    asked = {name.rstrip("_"): str(value) for name, value in params.items()}
    return client.get(f"/v1/models/best/clips/{seed}", params=asked, headers=headers)


def test_prometheus_is_told_what_was_asked_and_drawn(client: httpx.Client) -> None:
    """The first of this file, before anything else is counted."""
    digest = client.get("/v1/models/best").json()["digest"]

    def fetch(seed: int) -> int:
        format = "npy" if seed < 3 else "mp4"
        return client.get(f"/v1/models/{digest}/clips/{seed}?format={format}").status_code

    with ThreadPoolExecutor(11) as pool:
        assert [*pool.map(fetch, range(11))] == [200] * 11
    assert client.get("/v1/models/none").status_code == 404
    (node,) = ray.nodes()
    address = f"http://127.0.0.1:{node['MetricsExportPort']}/metrics"
    one, clip = "/v1/models/{name}", "/v1/models/{name}/clips/{seed}"
    wanted = {
        ("requests_total", clip, "200"): 11.0,
        ("requests_total", one, "200"): 1.0,
        ("requests_total", one, "404"): 1.0,
        ("clips_total", "small"): 11.0,
        ("queue_seconds_count", "small"): 11.0,
        ("encoding_seconds_count", "npy"): 3.0,
        ("encoding_seconds_count", "mp4"): 8.0,
        # One of the node's two CPUs.
        ("replica_dollars_per_hour", ""): price("local").on_demand / 2,
    }
    patience = time.monotonic() + 60
    while not wanted.items() <= (found := scraped(address)).items():
        assert time.monotonic() < patience, wanted.items() - found.items()
        time.sleep(0.5)
    batches = found["batch_size_count", "small"]
    assert 2 <= batches <= 11
    assert found["generation_seconds_count", "small"] == batches
    for name in ("generation_seconds_sum", "queue_seconds_sum"):
        assert 0 < found[name, "small"] < 600


def scraped(address: str) -> dict[tuple[str, ...], float]:
    """raygen's own, by name and route and status, format or model."""
    samples = [
        sample
        for family in text_string_to_metric_families(httpx.get(address, timeout=60).text)
        for sample in family.samples
        if sample.name.startswith("ray_raygen_") and not sample.name.endswith("_bucket")
    ]
    found = {}
    for sample in samples:
        labels = sample.labels
        said = [labels[k] for k in ("route", "status", "format") if k in labels]
        key = (sample.name.removeprefix("ray_raygen_"), *(said or [labels.get("model", "")]))
        found[key] = sample.value
    return found


def test_a_clip_is_the_generators_and_plays(client: httpx.Client, exported: str) -> None:
    answer = clip(client, 7, class_="wave")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "video/mp4"
    expected_THWC = load_generator(exported).generate([7], [CLASSES.index("wave")])[0]
    assert answer.content == video.encode_mp4(expected_THWC, 12.5)
    with av.open(io.BytesIO(answer.content), "r") as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert np.stack(frames).shape == expected_THWC.shape

    raw = clip(client, 7, class_="wave", format="npy")
    assert np.array_equal(np.load(io.BytesIO(raw.content))[0], expected_THWC)


def test_best_leads_to_an_address_that_never_changes(client: httpx.Client, exported: str) -> None:
    digest = load_generator(exported).digest
    answer = clip(client, 3, class_="bend", scale=2)
    (led,) = answer.history
    assert (led.status_code, led.headers["cache-control"]) == (307, "no-cache")
    assert str(answer.url).endswith(f"/v1/models/{digest}/clips/3?class=bend&scale=2")
    assert answer.headers["cache-control"] == "max-age=31536000, immutable"
    assert answer.headers["x-raygen-model"] == digest
    assert answer.headers["x-raygen-class"] == "bend"
    assert answer.headers["x-raygen-seed"] == "3"
    assert client.get("/v1/models/small/clips/3?class=bend&scale=2").url == answer.url


def test_the_same_seed_gives_the_same_bytes_alone_and_in_a_batch(client: httpx.Client) -> None:
    def fetch(seed: int) -> httpx.Response:
        return clip(client, seed, class_="jump", format="npy")

    alone = [fetch(seed).content for seed in range(24)]
    with ThreadPoolExecutor(24) as pool:
        together = list(pool.map(fetch, range(24)))
    assert [answer.content for answer in together] == alone
    assert max(int(answer.headers["x-raygen-batch"]) for answer in together) > 1
    assert len(set(alone)) == 24


def test_without_a_class_the_seed_stands_for_one(client: httpx.Client) -> None:
    answers = [clip(client, seed) for seed in range(4)]
    assert [a.headers["x-raygen-class"] for a in answers] == [*CLASSES, CLASSES[0]]
    assert clip(client, 1, class_=CLASSES[1]).content == answers[1].content


def test_an_etag_saves_the_generation(client: httpx.Client) -> None:
    etag = clip(client, 7, class_="wave").headers["etag"]
    again = clip(client, 7, {"If-None-Match": etag}, class_="wave")
    assert (again.status_code, again.content) == (304, b"")
    assert clip(client, 8, {"If-None-Match": etag}, class_="wave").status_code == 200


@pytest.mark.parametrize(
    ("format", "media_type"),
    [("webp", "image/webp"), ("gif", "image/gif"), ("png", "image/png")],
)
def test_picture_formats(client: httpx.Client, format: str, media_type: str) -> None:
    answer = clip(client, 0, class_="wave", format=format, scale=2)
    assert answer.headers["content-type"] == media_type
    with Image.open(io.BytesIO(answer.content)) as image:
        assert image.size[1] == (80 if format == "png" else 32)


@pytest.mark.parametrize(
    ("seed", "params", "status", "words"),
    [
        ("0", {"class_": "wav"}, 404, "did you mean wave?"),
        ("0", {"class_": "wav"}, 404, "bend, jump, wave"),
        ("0", {"text": "a red circle"}, 422, "takes no text; it was trained with class"),
        ("0", {"frames": "9"}, 422, "8 frames at 12.5 a second and no others"),
        ("-1", {}, 422, "seed: Input should be greater than or equal to 0"),
        ("0", {"format": "avi"}, 422, "'webp', 'gif', 'png' or 'npy'"),
        ("0", {"scale": "9"}, 422, "scale"),
        ("0", {"clas": "wave"}, 422, "clas: there is no such field"),
    ],
)
def test_bad_requests_are_problem_documents(
    client: httpx.Client, seed: str, params: dict[str, str], status: int, words: str
) -> None:
    answer = clip(client, seed, None, **params)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["status"] == status
    assert words in answer.json()["detail"]


def test_an_unknown_path_or_model_is_a_problem_document(client: httpx.Client) -> None:
    for path in ("/v2/clips", "/v1/models/none", "/v1/models/none/clips/1"):
        answer = client.get(path)
        assert answer.status_code == 404
        assert answer.headers["content-type"] == "application/problem+json"


def test_models_and_health(client: httpx.Client) -> None:
    (model,) = client.get("/v1/models").json()
    assert (model["classes"], model["conditions"]) == (CLASSES, ["class"])
    assert (model["frames"], model["size"], model["fps"]) == (8, 16, 12.5)
    assert (model["any_length"], model["best"], model["drawing"]) == (False, True, "plain")
    assert model["metrics"] is None
    for name in ("best", "small", model["digest"]):
        assert client.get(f"/v1/models/{name}").json() == model
    assert client.get("/healthz").json() == {"status": "ok"}


def test_a_video_through_serve(client: httpx.Client) -> None:
    answer = client.post("/v1/videos", json={"n": 4}, headers={"Prefer": "wait=60"})
    assert (answer.status_code, answer.json()["state"]) == (201, "done")
    content = client.get(answer.json()["content"])
    assert content.headers["content-type"] == "video/mp4"
    assert client.delete(answer.headers["location"]).status_code == 204


def test_no_export_is_an_error_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAYGEN_EXPORT", raising=False)
    with pytest.raises(ExportError, match="RAYGEN_EXPORT"):
        build(AppArgs())
    monkeypatch.setenv("RAYGEN_EXPORT", str(tmp_path))
    with pytest.raises(ExportError, match="no export at"):
        build(AppArgs())


@pytest.mark.parametrize(
    ("args", "line"),
    [
        ({"exprt": "here"}, r"unknown key exprt; did you mean export\?"),
        ({"queue_s": "long"}, r"queue_s: must be a number.* \(got 'long'\)"),
        ({"queue_s": "-1"}, r"queue_s: must be greater than 0 \(got '-1'\)"),
        ({"watermark": "perhaps"}, r"watermark: must be a boolean.* \(got 'perhaps'\)"),
    ],
)
def test_a_mistaken_argument_is_named(args: dict[str, str], line: str) -> None:
    with pytest.raises(click.ClickException, match=f"^{line}$"):
        app(args)


def serve_run(argument: str) -> subprocess.CompletedProcess[str]:
    """`serve run` on the port 8000, expected to end by itself."""
    command = [sys.executable, "-m", "ray.serve.scripts", "run", "serve.app:app"]
    return subprocess.run(
        [*command, argument], cwd=ROOT, capture_output=True, text=True, timeout=300
    )


@pytest.mark.parametrize(
    ("argument", "line"),
    [("export={}", "Error: no export at {}"), ("exprt={}", "Error: unknown key exprt; did you")],
)
def test_serve_run_answers_what_it_cannot_serve_with_one_line(
    tmp_path: Path, argument: str, line: str
) -> None:
    result = serve_run(argument.format(tmp_path))
    assert result.returncode == 1
    assert line.format(tmp_path) in result.stderr
    assert "Traceback" not in result.stderr


def test_serve_run_answers_a_taken_port_with_one_line(exported: str) -> None:
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            taken.bind(("127.0.0.1", PORT))
            taken.listen()
        except OSError:
            pass  # something else has it, which serves as well
        result = serve_run(f"export={exported}")
    assert result.returncode == 1
    assert "Error: port 8000 is in use" in result.stderr
    assert "Traceback" not in result.stderr
