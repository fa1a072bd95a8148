"""The API is what its OpenAPI document says: Schemathesis makes requests, good and bad, from it."""

from collections.abc import Iterator

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import positive_data_acceptance

from raygen.export import export_run
from serve.api import build_api
from serve.models import Models
from serve.videos import Videos
from tests.served import answering
from tests.small_runs import make_run


@pytest.fixture(scope="module")
def described(tmp_path_factory: pytest.TempPathFactory) -> Iterator[schemathesis.BaseSchema]:
    """What the running API says of itself."""
    folder = tmp_path_factory.mktemp("schema")
    conditions = {"kinds": ["class", "text", "image"], "drop": 0.1}
    export_run(make_run(str(folder / "runs"), conditions=conditions), str(folder / "small"))
    api = build_api(Models(str(folder / "small"), "cpu", "plain"), Videos(folder / "videos"))
    with answering(api) as url:
        yield schemathesis.openapi.from_url(f"{url}/openapi.json")


def check(described: schemathesis.BaseSchema, mode: GenerationMode, examples: int) -> int:
    """So many requests of each operation; how many operations there are."""
    operations = [result.ok() for result in described.get_all_operations()]
    if mode == GenerationMode.NEGATIVE:  # only where something can be wrong
        operations = [op for op in operations if "{" in op.path or op.method == "post"]
    for operation in operations:

        @given(case=operation.as_strategy(generation_mode=mode))
        @settings(
            max_examples=examples,
            phases=[Phase.explicit, Phase.generate],
            suppress_health_check=list(HealthCheck),
            derandomize=True,
            database=None,
        )
        def answers(case: schemathesis.Case) -> None:
            # What a model takes, and that lists match, no schema says: 422 there is right.
            case.call_and_validate(timeout=120, excluded_checks=[positive_data_acceptance])

        answers()
    return len(operations)


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
def test_answers_are_as_described(described: schemathesis.BaseSchema, mode: GenerationMode) -> None:
    assert check(described, mode, 6) == (8 if mode == GenerationMode.POSITIVE else 6)
