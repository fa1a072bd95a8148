"""What several test modules stand on: an S3 server, rendered clips, and where shared data lies."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from raygen.data import synthetic
from raygen.demo import BUCKET, loopback_s3

# For tests that start Ray in this process; commands get `user_environment`, and a token.
os.environ["RAY_AUTH_MODE"] = "disabled"
os.environ["AWS_EC2_METADATA_DISABLED"] = "true"
# A busy machine may take longer than Serve's five seconds to start a proxy.
os.environ["RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S"] = "60"

# A busy machine is slow, not wrong.
settings.register_profile("raygen", deadline=None)
settings.load_profile("raygen")

# Files whose tests bind the port that Serve has for everybody.
ONE_AT_A_TIME = {"test_end_to_end.py", "test_serve_app.py"}

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


# Files that take a minute or more, the longest first: begun last, one would leave a core idle.
LONG = (
    "test_end_to_end.py",
    "test_serve_app.py",
    "test_train_run.py",
    "test_elastic.py",
    "test_engine_parity.py",
    "test_cli_errors.py",
    "test_metrics.py",
    "test_data_materialize.py",
    "test_checkpoint_faults.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A file's tests stay in one process, which shares its fixtures and its Ray."""
    items.sort(key=lambda item: LONG.index(item.path.name) if item.path.name in LONG else len(LONG))
    for item in items:
        name = item.path.name
        item.add_marker(pytest.mark.xdist_group("serve" if name in ONE_AT_A_TIME else name))


def user_environment() -> dict[str, str]:
    """The environment of a command that a user starts: without what tests set for themselves."""
    return {name: value for name, value in os.environ.items() if name != "RAY_AUTH_MODE"}


@pytest.fixture(scope="session")
def _s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with loopback_s3(tmp_path_factory.mktemp("s3") / "s3.log"):
        yield f"s3://{BUCKET}"


@pytest.fixture
def s3(_s3_server: str) -> str:
    """An empty prefix of its own on a real S3 server."""
    return f"{_s3_server}/{uuid.uuid4().hex}"


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of three classes with four rendered clips each, 24 frames of 64x64 at 16 fps."""
    folder = tmp_path_factory.mktemp("shapes")
    synthetic.synthesize(str(folder), synthetic.class_names(3), 4, seed=0)
    return folder


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real clips and recorded curves beside the checkout; skips where they are not."""
    if not SHARED.is_dir():
        pytest.skip("no ../shared/data beside this checkout")
    return SHARED
