"""Uploads of anything: answered with a clip or a problem document, never with an error of ours."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator

import httpx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from serve.api import build_api
from serve.models import Models
from serve.videos import Videos
from tests.served import answering
from tests.small_runs import make_export

FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "TGA", "ICO", "DDS")
MODES = ("RGB", "L", "P", "1", "RGBA", "CMYK", "I;16")


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    folder = tmp_path_factory.mktemp("fuzz")
    conditions = {"kinds": ["class", "image"]}
    models = Models(make_export(str(folder / "e"), conditions=conditions), "cpu", "plain")
    api = build_api(models, Videos(folder / "videos"))
    with answering(api) as url, httpx.Client(base_url=url, timeout=120) as client:
        yield client


@st.composite
def pictures(draw: st.DrawFn) -> bytes:
    """A picture of some kind, with bytes of it changed, taken out, put in, or cut off."""
    mode, format = draw(st.sampled_from(MODES)), draw(st.sampled_from(FORMATS))
    size = draw(st.tuples(st.integers(1, 40), st.integers(1, 40)))
    noise = np.random.default_rng(draw(st.integers(0, 9))).integers(0, 256, (*size, 3), np.uint8)
    file = io.BytesIO()
    try:
        Image.fromarray(noise).convert("L" if mode == "I;16" else mode).convert(mode).save(
            file, format
        )
    except (OSError, ValueError, KeyError):  # no such mode in that format
        Image.fromarray(noise).save(file, "PNG")
    data = bytearray(file.getvalue())
    for _ in range(draw(st.integers(0, 6))):
        # The beginning is where sizes and lengths are.
        place = draw(st.integers(0, min(len(data), draw(st.sampled_from((64, len(data)))))))
        end = draw(st.integers(place, min(len(data), place + 8)))
        data[place:end] = draw(st.binary(max_size=8))
    return bytes(data[: draw(st.integers(0, len(data)))] if draw(st.booleans()) else data)


UPLOADS = st.one_of(st.binary(max_size=400), pictures())
MANY = settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def is_answered(answer: httpx.Response) -> None:
    # 201 of a body as well: an empty form asks for a clip of any kind.
    assert answer.status_code in (201, 400, 413, 415, 422), answer.text
    if answer.status_code != 201:
        assert answer.headers["content-type"] == "application/problem+json"
    else:
        assert answer.json()["state"] == "done", answer.text
        assert httpx.delete(str(answer.url.join(answer.headers["location"]))).status_code == 204


@MANY
@given(data=UPLOADS)
def test_files_in_a_form(client: httpx.Client, data: bytes) -> None:
    form = {"n": "1", "format": "npy"}
    is_answered(client.post("/v1/videos", data=form, files={"image": ("x", data)}))


@MANY
@given(data=UPLOADS, encoded=st.booleans())
def test_pictures_in_json(client: httpx.Client, data: bytes, encoded: bool) -> None:
    text = base64.b64encode(data).decode() if encoded else data.decode("latin-1")
    is_answered(client.post("/v1/videos", json={"n": 1, "format": "npy", "image": text}))


@MANY
@given(
    body=st.binary(max_size=300),
    kind=st.sampled_from(
        ("application/json", "multipart/form-data; boundary=x", "multipart/form-data", "image/png")
    ),
    prefix=st.sampled_from((b"", b'{"n":', b'--x\r\nContent-Disposition: form-data; name="image"')),
)
def test_bodies_of_any_kind(client: httpx.Client, body: bytes, kind: str, prefix: bytes) -> None:
    answer = client.post("/v1/videos", content=prefix + body, headers={"Content-Type": kind})
    is_answered(answer)
