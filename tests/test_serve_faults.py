"""Replicas that are killed, and what Serve itself refuses: on `serve run` itself.

pytest -m slow tests/test_serve_faults.py
"""

from __future__ import annotations

import io
import shutil
import signal
import time
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest

from raygen.config import Config
from raygen.export import export_run, load_generator
from tests.serving import asking, clips, is_refusal, serving, until
from tests.small_runs import make_export, run_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

ANY_RATE = {"rate": 1e6, "burst": 10**6}
HAPROXY = {
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",
    "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response",
}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_export(str(tmp_path_factory.mktemp("exports") / "small"), size=64)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Of 16x128x128, which one core draws a few of in a second."""
    folder = tmp_path_factory.mktemp("exports")
    overrides = {"name": "large", "storage": str(folder / "runs"), "data.uri": "s3://clips/none"}
    export_run(run_of(Config.load("base", overrides)), str(folder / "large"))
    return str(folder / "large")


@pytest.fixture(params=["python", "haproxy"])
def ingress(request: pytest.FixtureRequest) -> Mapping[str, str]:
    """The environment of Ray that chooses what stands before the replicas."""
    if request.param == "python":
        return {}
    if shutil.which("haproxy") is None:
        pytest.skip("no haproxy here")
    return HAPROXY


def test_a_killed_replica_takes_its_own_requests_and_no_others(
    tmp_path: Path, small: str, ingress: Mapping[str, str]
) -> None:
    arguments = {"export": small, **ANY_RATE}
    with serving(tmp_path, arguments, {"num_replicas": 2}, environment=ingress) as there:
        until(lambda: len(there.replicas()) == 2)
        ask = clips(f"/v1/models/{there.digest()}/clips/{{}}?format=npy", 64)
        with asking(there.url, 8, ask) as answers:
            until(lambda: len(answers) > 100)
            victim, other = there.replicas()
            victim.send_signal(signal.SIGKILL)
            killed = time.monotonic()
            until(lambda: sum(each.pid != other.pid for each in there.replicas()) == 1)
            until(lambda: sum(a.at > killed and a.status == 200 for a in answers) > 200)
            back = time.monotonic()
            until(lambda: sum(a.at > back for a in answers) > 200)
    failed = [answer for answer in answers if answer.status != 200]
    assert all(is_refusal(answer) for answer in failed), Counter(a.status for a in failed)
    assert len(failed) <= 8 + 8  # what it had, and what came before anybody knew
    assert not any(answer.at > back for answer in failed)
    drawn = load_generator(small).generate(range(64), [seed % 3 for seed in range(64)])
    for answer in answers:
        if answer.status == 200:
            seed = int(answer.headers["x-raygen-seed"])
            assert np.array_equal(np.load(io.BytesIO(answer.content))[0], drawn[seed])


def test_what_serve_itself_refuses_is_a_problem_document(
    tmp_path: Path, large: str, ingress: Mapping[str, str]
) -> None:
    with serving(
        tmp_path,
        {"export": large, **ANY_RATE},
        {"num_replicas": 1, "max_ongoing_requests": 2, "max_queued_requests": 2},
        {"request_timeout_s": 3},
        ingress,
    ) as there:
        path = f"{there.url}/v1/models/{there.digest()}/clips/"
        late = httpx.post(f"{there.url}/v1/videos", json={"n": 64}, timeout=120)
        assert late.status_code == 408
        assert late.headers["content-type"] == "application/problem+json"
        assert "timed out after 3" in late.json()["detail"]
        assert int(late.headers["retry-after"]) > 0
        with ThreadPoolExecutor(16) as pool:
            answers = [*pool.map(lambda seed: httpx.get(f"{path}{seed}", timeout=120), range(48))]
    refused = [answer for answer in answers if answer.status_code != 200]
    assert refused
    for answer in refused:
        assert answer.status_code in (408, 503)
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["status"] == answer.status_code
        assert int(answer.headers["retry-after"]) > 0
