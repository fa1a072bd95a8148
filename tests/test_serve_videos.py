"""Videos by POST, long clips, and what a client would rather have, over HTTP."""

import base64
import io
import json
import os
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import av
import httpx
import numpy as np
import pytest
from PIL import Image

from raygen import video
from raygen.export import export_run, load_generator
from serve import videos as videos_module
from serve.api import build_api
from serve.generator import PIECE
from serve.models import Models
from serve.negotiation import Preference, accepted, preference
from serve.videos import LOST_S, Videos
from tests.served import answering
from tests.small_runs import make_run

MIXED = {"kinds": ["class", "text", "image"], "drop": 0.1}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Of any length, asked for by class, text and first frame."""
    folder = tmp_path_factory.mktemp("served")
    run = make_run(str(folder / "runs"), "residual", conditions=MIXED)
    export_run(run, str(folder / "small"))
    return str(folder / "small")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("videos")


@pytest.fixture(scope="module")
def client(exported: str, folder: Path) -> Iterator[httpx.Client]:
    api = build_api(Models(exported, "cpu", "plain"), Videos(folder))
    with answering(api) as url, httpx.Client(base_url=url, timeout=120) as client:
        yield client


def frames_of(data: bytes) -> video.Clips:
    with av.open(io.BytesIO(data), "r") as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def address(client: httpx.Client, seed: int = 7) -> str:
    (model,) = client.get("/v1/models").json()
    return f"/v1/models/{model['digest']}/clips/{seed}"


def picture() -> bytes:
    pixels_HWC = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels_HWC).save(file, "PNG")
    return file.getvalue()


def test_a_video_is_its_clips(client: httpx.Client, exported: str) -> None:
    wanted = {"seeds": [3, 4], "classes": ["bend", "wave"], "format": "npy"}
    answer = client.post("/v1/videos", json=wanted)
    assert answer.status_code == 201
    document = answer.json()
    assert (document["state"], document["drawn"], document["clips"]) == ("done", 2, 2)
    assert answer.headers["location"] == f"/v1/videos/{document['id']}"
    assert client.get(answer.headers["location"]).json() == document
    content = client.get(document["content"])
    assert content.headers["content-type"] == "application/x-npy"
    expected_NTHWC = load_generator(exported).generate([3, 4], [0, 2])
    assert np.array_equal(np.load(io.BytesIO(content.content)), expected_NTHWC)
    part = client.get(document["content"], headers={"Range": "bytes=10-19"})
    assert (part.status_code, part.content) == (206, content.content[10:20])


def test_a_form_with_a_picture_gives_clips_that_begin_with_it(client: httpx.Client) -> None:
    fields = {"n": "2", "texts": "a red circle", "format": "npy"}
    answer = client.post("/v1/videos", data=fields, files={"image": picture()})
    clips_NTHWC = np.load(io.BytesIO(client.get(answer.json()["content"]).content))
    first_HWC = np.asarray(Image.open(io.BytesIO(picture())))
    assert np.array_equal(clips_NTHWC[:, 0], np.stack([first_HWC] * 2))
    assert len(set(answer.json()["seeds"])) == 2
    as_json = {"image": base64.b64encode(picture()).decode(), "seeds": answer.json()["seeds"]}
    same = client.post("/v1/videos", json=as_json | {"texts": ["a red circle"], "format": "npy"})
    assert client.get(same.json()["content"]).content == (
        client.get(answer.json()["content"]).content
    )


def test_interpolation_begins_and_ends_as_its_ends(client: httpx.Client, exported: str) -> None:
    wanted = {"interpolate": True, "n": 5, "seeds": [1, 2], "classes": ["bend", "jump"]}
    answer = client.post("/v1/videos", json=wanted | {"format": "npy"})
    clips_NTHWC = np.load(io.BytesIO(client.get(answer.json()["content"]).content))
    expected_NTHWC = load_generator(exported).interpolate(5, (1, 2), (0, 1))
    assert np.array_equal(clips_NTHWC, expected_NTHWC)


def test_the_file_itself_for_who_accepts_it(client: httpx.Client) -> None:
    wanted = {"seeds": [1, 2, 3, 4]}
    answer = client.post("/v1/videos", json=wanted, headers={"Accept": "video/mp4"})
    assert (answer.status_code, answer.headers["content-type"]) == (201, "video/mp4")
    assert frames_of(answer.content).shape == (8, 34, 34, 3)
    assert client.get(answer.headers["location"]).json()["state"] == "done"


def test_respond_async_answers_at_once_and_delete_forgets(client: httpx.Client) -> None:
    wanted = {"n": 64, "frames": 200}
    answer = client.post("/v1/videos", json=wanted, headers={"Prefer": "respond-async"})
    assert answer.status_code == 202
    assert answer.headers["preference-applied"] == "respond-async"
    place = answer.headers["location"]
    assert client.get(f"{place}/content").status_code == 409
    assert client.delete(place).status_code == 204
    for gone in (client.get(place), client.get(f"{place}/content"), client.delete(place)):
        assert gone.status_code == 404
        assert gone.headers["content-type"] == "application/problem+json"


def test_an_idempotency_key_begins_one_video(client: httpx.Client) -> None:
    headers = {"Idempotency-Key": "a key"}

    def post(_: int) -> httpx.Response:
        return client.post("/v1/videos", json={"n": 2}, headers=headers)

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(post, range(8)))
    assert {answer.status_code for answer in answers} == {201}
    assert len({answer.json()["id"] for answer in answers}) == 1
    replayed = [answer.headers.get("idempotency-replayed") for answer in answers]
    assert sorted(map(str, replayed)) == ["None"] + ["true"] * 7
    other = client.post("/v1/videos", json={"n": 3}, headers=headers)
    assert other.status_code == 422
    assert "another request" in other.json()["detail"]


def test_replicas_of_a_machine_know_each_others_videos(
    client: httpx.Client, exported: str, folder: Path
) -> None:
    made = client.post("/v1/videos", json={"n": 1}, headers={"Idempotency-Key": "shared"}).json()
    other = build_api(Models(exported, "cpu", "plain"), Videos(folder))
    with answering(other) as url:
        assert httpx.get(f"{url}/v1/videos/{made['id']}").json() == made
        assert httpx.get(f"{url}{made['content']}").status_code == 200
        again = httpx.post(f"{url}/v1/videos", json={"n": 1}, headers={"Idempotency-Key": "shared"})
        assert again.json()["id"] == made["id"]
        assert httpx.delete(f"{url}/v1/videos/{made['id']}").status_code == 204
    assert client.get(f"/v1/videos/{made['id']}").status_code == 404


def test_a_video_whose_replica_died_has_failed(client: httpx.Client, folder: Path) -> None:
    made = client.post("/v1/videos", json={"n": 1}).json()
    path = folder / made["id"] / "video.json"
    path.write_text(json.dumps(made | {"state": "running"}))
    assert client.get(f"/v1/videos/{made['id']}").json()["state"] == "running"
    then = time.time() - LOST_S - 1
    os.utime(path, (then, then))
    lost = client.get(f"/v1/videos/{made['id']}").json()
    assert (lost["state"], lost["problem"]["status"]) == ("failed", 503)


def test_old_videos_make_room(
    client: httpx.Client, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = client.post("/v1/videos", json={"n": 1, "format": "npy"}).json()
    monkeypatch.setattr(videos_module, "KEPT_BYTES", 1)
    new = client.post("/v1/videos", json={"n": 1}).json()
    assert client.get(f"/v1/videos/{old['id']}").status_code == 404
    assert client.get(f"/v1/videos/{new['id']}").status_code == 200


@pytest.mark.parametrize(
    ("wanted", "status", "words"),
    [
        ({"n": 65}, 422, "n: Input should be less than or equal to 64"),
        ({"seeds": [1, 2], "n": 3}, 422, "2 seeds for 3"),
        ({"model": "none"}, 404, "no model 'none' here; there are best, small"),
        ({"classes": ["wav"]}, 404, "did you mean wave?"),
        ({"image": "?"}, 422, "no base64"),
        ({"image": base64.b64encode(b"no picture").decode()}, 422, "no picture that can be read"),
        ({"frames": 4096, "n": 64, "scale": 2}, 422, "ask for fewer"),
        ({"colour": "red"}, 422, "colour: there is no such field"),
    ],
)
def test_bad_posts_are_problem_documents(
    client: httpx.Client, wanted: dict[str, object], status: int, words: str
) -> None:
    answer = client.post("/v1/videos", json=wanted)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert words in answer.json()["detail"]


@pytest.mark.parametrize(
    ("kind", "body", "status"),
    [
        ("application/json", b"{", 400),
        ("application/json", b"\xff", 400),
        ("application/json", b"[" * 100_000, 400),
        ("application/json", b"[]", 422),
        ("text/plain", b"n=1", 415),
        ("multipart/form-data", b"n=1", 400),
    ],
)
def test_bodies_that_are_none(client: httpx.Client, kind: str, body: bytes, status: int) -> None:
    answer = client.post("/v1/videos", content=body, headers={"Content-Type": kind})
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"


def test_pictures_cut_short_or_spoilt_are_refused_or_drawn(client: httpx.Client) -> None:
    whole, random = picture(), np.random.default_rng(1)
    spoilt = [whole[:cut] for cut in range(0, len(whole), 97)]
    for _ in range(30):
        bits = np.frombuffer(whole, np.uint8).copy()
        bits[random.integers(0, len(bits), 3)] ^= np.uint8(1 << random.integers(0, 8))
        spoilt.append(bits.tobytes())
    for data in spoilt:
        answer = client.post("/v1/videos", files={"image": data}, data={"format": "npy"})
        assert answer.status_code in (201, 422), answer.text


def test_a_long_clip_is_streamed_and_begins_as_the_short_one(
    client: httpx.Client, exported: str
) -> None:
    frames = 3 * PIECE + 5
    params: dict[str, str | int] = {"class": "wave", "frames": frames}
    parts = []
    with client.stream("GET", address(client), params=params) as answer:
        assert answer.headers["content-type"] == "video/mp4"
        assert "content-length" not in answer.headers
        parts = list(answer.iter_raw())
    long_THWC = frames_of(b"".join(parts))
    assert len(parts) >= 4
    assert long_THWC.shape == (frames, 16, 16, 3)
    generator = load_generator(exported)
    expected_THWC = generator.generate([7], [2], times=[float(t) for t in range(frames)])[0]
    difference = long_THWC.astype(float) - expected_THWC
    assert 10 * np.log10(255**2 / np.mean(difference**2)) > 30
    again = client.get(address(client), params=params)
    assert again.content == b"".join(parts)


def test_a_client_that_leaves_a_long_clip_stops_it(client: httpx.Client) -> None:
    with client.stream("GET", address(client), params={"frames": 4096}) as answer:
        next(answer.iter_raw())
    # All of it would keep others waiting for longer than this client's own time-out.
    assert client.get(address(client), params={"format": "npy"}).status_code == 200


def test_frames_rate_and_truncation_are_the_generators(client: httpx.Client, exported: str) -> None:
    params: dict[str, str | float] = {"class": "wave", "frames": 6, "fps": 25, "truncation": 0.5}
    raw = client.get(address(client), params=params | {"format": "npy"})
    generator = load_generator(exported)
    times = generator.times(6, 25)
    expected_NTHWC = generator.generate([7], [2], truncation=0.5, times=times)
    assert np.array_equal(np.load(io.BytesIO(raw.content)), expected_NTHWC)
    with av.open(io.BytesIO(client.get(address(client), params=params).content), "r") as played:
        assert played.streams.video[0].average_rate == 25


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("*/*", "video/mp4"),
        ("video/webm", "video/webm"),
        ("image/*", "image/webp"),
        ("image/gif;q=0.5, image/png;q=0.9", "image/png"),
        ("text/html, video/*;q=0.8", "video/mp4"),
    ],
)
def test_accept_chooses_the_format(client: httpx.Client, accept: str, kind: str) -> None:
    answer = client.get(address(client), headers={"Accept": accept})
    assert answer.headers["content-type"].split(";")[0] == kind
    assert answer.headers["vary"] == "Accept"


def test_nothing_acceptable_is_406_and_format_needs_no_accept(client: httpx.Client) -> None:
    headers = {"Accept": "text/html"}
    refused = client.get(address(client), headers=headers)
    assert refused.status_code == 406
    assert "video/webm" in refused.json()["detail"]
    chosen = client.get(address(client), params={"format": "gif"}, headers=headers)
    assert chosen.headers["content-type"] == "image/gif"
    assert "vary" not in chosen.headers


def test_headers_of_preference() -> None:
    assert accepted(None) == accepted("") == "mp4"
    assert accepted("video/webm; codecs=av01.0.05M.08, video/*;q=0.1") == "av1"
    assert accepted("video/mp4;q=0, video/*") == "webm"
    assert accepted("audio/*") is None
    assert preference(None) == Preference()
    assert preference("handling=lenient, Wait=10;x=1") == Preference(False, 10)
    assert str(preference("respond-async, wait=5")) == "respond-async"
    assert str(preference("wait=x")) == ""


def test_openapi_names_every_route_and_body(client: httpx.Client) -> None:
    document = client.get("/openapi.json").json()
    assert set(document["paths"]) == {
        "/v1/models",
        "/v1/models/{name}",
        "/v1/models/{name}/clips/{seed}",
        "/v1/videos",
        "/v1/videos/{id}",
        "/v1/videos/{id}/content",
        "/healthz",
    }
    used = set(re.findall(r"#/components/schemas/(\w+)", json.dumps(document)))
    assert used <= set(document["components"]["schemas"])
    assert client.get("/docs").status_code == 200
