"""What a run has consumed: written, read, forgotten, and never taken for nothing."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from raygen.data import lineage, store
from raygen.errors import AccessError
from tests.s3_proxy import S3Proxy


@pytest.fixture(params=["local", "s3"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    place: str = request.getfixturevalue("s3") if request.param == "s3" else str(tmp_path)
    return store.join(place, "run")


def test_what_was_added_is_read_up_to_what_was_forgotten(run: str) -> None:
    assert lineage.read(run).to_pydict() == {"step": [], "row": []}
    lineage.forget_after(run, 0)
    lineage.add(run, 2, [(2, 7), (1, 5)])
    lineage.add(run, 4, [(3, 5)])
    assert lineage.read(run).to_pydict() == {"step": [1, 2, 3], "row": [5, 7, 5]}
    lineage.forget_after(run, 2)
    assert lineage.read(run).to_pydict() == {"step": [1, 2], "row": [5, 7]}


def test_storage_out_of_reach_is_not_nothing(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lineage.add(s3, 2, [(1, 5)])
    with S3Proxy(os.environ["AWS_ENDPOINT_URL"]) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        proxy.fail(lineage.FOLDER, "expired", None)
        with pytest.raises(AccessError, match=r"credentials .* have expired"):
            lineage.read(s3)
        with pytest.raises(AccessError):
            lineage.forget_after(s3, 0)
