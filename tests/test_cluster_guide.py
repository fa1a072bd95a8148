"""The guide names only what there is: commands, files, keys, prices."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from cluster.market import Terms
from raygen.cli import app
from raygen.cost.prices import price

ROOT = Path(__file__).parents[1]
GUIDE = (ROOT / "cluster" / "README.md").read_text()


def test_raygens_commands_exist() -> None:
    named = {
        command.name or command.callback.__name__
        for command in app.registered_commands
        if command.callback
    }
    used = set(
        re.findall(r"raygen (train|export|status|cost|prices|[a-z]+) s3:|`raygen ([a-z]+)", GUIDE)
    )
    words = {word for pair in used for word in pair if word}
    assert {"status", "cost", "prices", "export"} <= words
    assert words <= named


def test_files_exist() -> None:
    for path in set(re.findall(r"(?<!/)cluster/[a-z./A-Z]+[a-zA-Z]", GUIDE)):
        assert (ROOT / path).exists(), path
    for name in re.findall(r"^\| `([^|]*)` \|", GUIDE, re.MULTILINE):
        for path in re.findall(r"[\w./]+", name):
            assert (ROOT / "cluster" / path).exists(), path


def test_modules_exist() -> None:
    for module in re.findall(r"python -m ([\w.]+)", GUIDE):
        assert (ROOT / (module.replace(".", "/") + ".py")).exists(), module


def test_keys_and_waits_are_those_of_the_files() -> None:
    for key in ("share", "max_hourly", "patience_s", "deadline", "work_s"):
        assert f"`{key}`" in GUIDE
        assert hasattr(Terms(), key)
    aws = yaml.safe_load((ROOT / "cluster" / "cluster.yaml").read_text())
    assert aws["provider"]["head_ttl_s"] == 4 * 3600
    # "ten minutes after its head"
    assert any("keep.sh worker 600" in each for each in aws["worker_start_ray_commands"])
    minutes = {2: "two", 3: "three", 5: "five"}[aws["idle_timeout_minutes"]]
    assert f"until {minutes} minutes after its work" in GUIDE


@pytest.mark.parametrize(
    ("type_", "line"),
    [("m7i.large", r"m7i\.large, on demand \|.*\| {on_demand:.2f} \|"),
     ("g6.xlarge", r"about {spot:.2f} as spot, {on_demand:.2f} on demand"),
     ("n2-standard-4", r"n2-standard-4, costs {on_demand:.2f}"),
     ("g2-standard-4", r"g2-standard-4, about {spot:.2f} as\s+spot and {on_demand:.2f} on demand")],
)  # fmt: skip
def test_prices_are_the_tables(type_: str, line: str) -> None:
    listed = price(type_)
    assert re.search(line.format(spot=listed.spot, on_demand=listed.on_demand), GUIDE)
    machines = ROOT / "cluster" / ("cluster.yaml" if listed.cloud == "aws" else "gcp.yaml")
    assert type_ in machines.read_text()
