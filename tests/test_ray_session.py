"""What a run leaves behind on a cluster's nodes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import ray
from ray._private import state

from raygen.ray_session import keep_helpers_here


@pytest.fixture(scope="module", autouse=True)
def _ray() -> Iterator[None]:
    ray.init("local", num_cpus=2, include_dashboard=False, configure_logging=False)
    yield
    ray.shutdown()


class Same:
    def __call__(self, batch: dict[str, object]) -> dict[str, object]:
        return batch


def run() -> int:
    """Ray Data in a worker, as it runs beside the training."""
    numbers = ray.data.range(8).map_batches(Same, concurrency=1, num_cpus=0.5)
    return len(numbers.take_all())


def alive() -> dict[str, str]:
    """Named actors that outlive whoever made them, and their ids."""
    return {
        str(actor["Name"]): str(actor["ActorID"])
        for actor in state.actors().values()
        if actor["IsDetached"] and actor["State"] != "DEAD"
    }


@pytest.mark.slow
def test_what_outlives_a_run_is_where_its_driver_is() -> None:
    keep_helpers_here()
    before = alive()
    assert len(before) == 5
    assert ray.get(ray.remote(num_cpus=0)(run).remote()) == 8
    assert alive() == before
