"""Clips whose mp4 say who drew them: signed as they are served, read again, and changed."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path

import av
import httpx
import numpy as np
import pytest

from raygen import manifest, video
from raygen.cli import app, invoke
from raygen.errors import ConfigError
from raygen.export import load_generator
from raygen.manifest import Signer
from serve.api import build_api
from serve.app import AppArgs, build
from serve.models import Models
from serve.videos import Videos
from tests.certificates import chain
from tests.served import answering
from tests.small_runs import make_export

CLIP = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), np.uint8)


@pytest.fixture(scope="module")
def pems(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    return chain(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_export(str(tmp_path_factory.mktemp("exports") / "small"))


@pytest.fixture(scope="module")
def url(
    exported: str, pems: tuple[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    videos = Videos(tmp_path_factory.mktemp("videos"))
    models = Models(exported, "cpu", "plain", signer=Signer(*pems))
    with answering(build_api(models, videos)) as url:
        yield url


def test_an_mp4_says_what_drew_it_and_plays(url: str, exported: str, tmp_path: Path) -> None:
    generator = load_generator(exported)
    address = f"{url}/v1/models/{generator.digest}/clips/7"
    answer = httpx.get(address)
    found = manifest.read(answer.content)
    assert found is not None
    assert (found.intact, found.faults) == (True, [])
    assert (found.model, found.digest) == ("small", generator.digest)
    assert found.signer == "a test, raygen's tests"
    with av.open(io.BytesIO(answer.content), "r") as signed:
        frames = np.stack([f.to_ndarray(format="rgb24") for f in signed.decode(video=0)])
    plain = video.encode_mp4(generator.generate([7], [1])[0], generator.fps)
    with av.open(io.BytesIO(plain), "r") as unsigned:
        expected = [f.to_ndarray(format="rgb24") for f in unsigned.decode(video=0)]
    assert np.array_equal(frames, np.stack(expected))
    # The bytes are others each time, and the tag says that the clip is not.
    assert answer.headers["etag"].startswith('W/"')
    again = httpx.get(address, headers={"If-None-Match": answer.headers["etag"]})
    assert again.status_code == 304
    made = httpx.post(f"{url}/v1/videos", json={"n": 2}, headers={"Accept": "video/mp4"})
    assert manifest.read(made.content) is not None
    other = httpx.get(f"{address}?format=npy")
    assert other.headers["etag"].startswith('"')


def test_what_was_changed_or_never_signed_is_told(
    pems: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = video.encode_mp4(CLIP, 12.5)
    assert manifest.read(plain) is None
    signed = Signer(*pems).sign(plain, "tiny", "0f3a91c2d4e5")
    place = signed.rindex(b"mdat") + 40
    changed = signed[:place] + bytes([signed[place] ^ 1]) + signed[place + 1 :]
    found = manifest.read(changed)
    assert found is not None
    assert not found.intact
    assert "assertion.bmffHash.mismatch" in found.faults
    for name, data, code, said in (
        (
            "signed",
            signed,
            0,
            "manifest is intact: drawn by tiny 0f3a91c2d4e5, says a test, raygen",
        ),
        ("changed", changed, 1, "manifest does not hold: assertion.bmffHash.mismatch"),
        ("plain", plain, 1, "no watermark found"),
    ):
        file = tmp_path / f"{name}.mp4"
        file.write_bytes(data)
        with pytest.raises(SystemExit) as ended:
            invoke("raygen", app, ["verify", str(file)])
        assert (ended.value.code or 0, said in capsys.readouterr().out) == (code, True)
    with pytest.raises(SystemExit):
        invoke("raygen", app, ["verify", str(tmp_path / "signed.mp4"), "--json"])
    assert json.loads(capsys.readouterr().out)["manifest"]["digest"] == "0f3a91c2d4e5"


def test_keys_that_cannot_sign_are_said_before_anything_starts(
    exported: str, pems: tuple[str, str], tmp_path: Path
) -> None:
    certificates, key = pems
    with pytest.raises(ConfigError, match="certificate and key: say both"):
        build(AppArgs(export=exported, certificate=certificates))
    with pytest.raises(ConfigError, match="is no PEM key"):
        build(AppArgs(export=exported, certificate=certificates, key=certificates))
    _, other = chain(tmp_path)
    with pytest.raises(ConfigError, match="cannot sign"):
        build(AppArgs(export=exported, certificate=other, key=key))
