"""The dashboards draw what is there: raygen's gauges, and Ray's own metrics."""

from __future__ import annotations

import json
import re
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from raygen.board import Status
from raygen.cost.accountant import Accountant
from raygen.gauges import MONEY, TRAINING, Gauges
from raygen.history import History
from serve import metrics as serving
from tests.test_cluster_watcher import until

FOLDER = Path(__file__).parents[1] / "cluster" / "grafana"
BOARDS = sorted(FOLDER.glob("*.json"))
SERVING = set(re.findall(r"^    (raygen_\w+) ", str(serving.__doc__), re.MULTILINE))
_METRIC = re.compile(r"\bray_[a-z0-9_]+")
# Prometheus' own names for the parts of a histogram or a counter.
_PARTS = re.compile(r"_(bucket|sum|count|total)$")


def read(path: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(path.read_text())
    return document


def queried(path: Path) -> set[str]:
    """Names of metrics without `ray_`, which Ray puts before each."""
    board = read(path)
    texts = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    texts += [each["definition"] for each in board["templating"]["list"] if "definition" in each]
    names = {name for text in texts for name in _METRIC.findall(text)}
    return {name.removeprefix("ray_") for name in names}


def test_there_is_one_for_each_thing_to_look_at() -> None:
    assert [path.stem for path in BOARDS] == ["money", "search", "serving", "training"]
    assert {read(path)["title"] for path in BOARDS} == {f"raygen: {p.stem}" for p in BOARDS}
    assert len({read(path)["uid"] for path in BOARDS}) == len(BOARDS)


@pytest.mark.parametrize("path", BOARDS, ids=lambda path: path.stem)
def test_panels_are_apart_and_ask_prometheus(path: Path) -> None:
    panels = read(path)["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels]
    assert len(set(places)) == len(places)
    for panel in panels:
        assert panel["targets"]
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        # A variable that a query uses is one that the board has.
        used = set(re.findall(r"\$([a-z]+)", " ".join(t["expr"] for t in panel["targets"])))
        assert used <= {each["name"] for each in read(path)["templating"]["list"]}


def test_every_metric_is_raygens_or_stands_in_rays_sources() -> None:
    known = TRAINING.keys() | MONEY.keys() | SERVING
    names = set().union(*(queried(path) for path in BOARDS))
    # Of a histogram, its parts.
    names = {_PARTS.sub("", name) if _PARTS.sub("", name) in known else name for name in names}
    # All that raygen exports is drawn somewhere.
    assert known <= names
    root = Path(ray.__file__).parent
    folders = [root / "serve" / "_private", root / "dashboard" / "modules" / "reporter"]
    sources = [p.read_text() for folder in folders for p in folder.rglob("*.py")]
    for name in names - known:
        # Serve names some by the protocol that they are of.
        spelt = name.replace("_http_", "_{protocol_name}_")
        found = {f'"{each}"' for each in (spelt, _PARTS.sub("", spelt))}
        assert any(each in source for source in sources for each in found), name


@pytest.fixture
def metrics() -> Iterator[str]:
    """The address at which the agent of a Ray of one node exports."""
    ray.init("local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    (node,) = ray.nodes()
    yield f"http://127.0.0.1:{node['MetricsExportPort']}/metrics"
    ray.shutdown()


def scraped(url: str) -> dict[str, str]:
    """The last line of each metric."""
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            text = answer.read().decode()
    except OSError:
        return {}
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return {re.split(r"[{ ]", line)[0]: line for line in lines}


@pytest.mark.slow
def test_what_a_driver_shows_is_what_prometheus_scrapes(metrics: str, tmp_path: Path) -> None:
    history = History(str(tmp_path))
    history.add("preempted", step=7, workers=1)
    losses = {"loss/generator": 0.5, "loss/critic": 1.5, "penalty": 9.0}
    status = Status(7, 20, 0.35, 60.0, 0.1, nodes=("a", "b"), saved_at=5, losses=losses)
    # As a supervisor does, and an accountant by itself.
    gauges = Gauges(TRAINING, "run", "seen")
    gauges.show(**status.figures(), **history.figures())
    accountant = Accountant(str(tmp_path))
    accountant.begin()
    wanted = {f"ray_{name}" for name in TRAINING.keys() | MONEY.keys()}
    wanted |= {"ray_node_cpu_utilization", "ray_node_mem_used", "ray_node_mem_total"}
    until(lambda: wanted <= scraped(metrics).keys(), 90)
    until(lambda: float(scraped(metrics)["ray_raygen_dollars"].rpartition(" ")[2]) > 0)
    accountant.close()
    found = scraped(metrics)
    assert 'run="seen"' in found["ray_raygen_step"]
    assert f'place="{tmp_path}"' in found["ray_raygen_dollars"]
    for name, value in (("steps", 20), ("workers", 2), ("preempted", 1), ("loss_critic", 1.5)):
        assert float(found[f"ray_raygen_{name}"].rpartition(" ")[2]) == value
