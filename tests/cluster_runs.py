"""The user of a cluster on the bench: brings it up as shipped, and submits work."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.cluster_bench import GATEWAY, REGION, ROOT, Bench, Done

SMALL = [
    *("data.frames=8", "data.size=16", "model.generator_width=8", "model.critic_width=8"),
    *("model.latent_dim=8", "data.uri=s3://clips/shapes", "storage=s3://clips/runs"),
]
"""A training that is over at once; its clips and its runs are in the bench's bucket."""
PREPARE = """
import boto3
from raygen.data import synthetic
boto3.client("s3").create_bucket(Bucket="clips")
synthetic.synthesize("s3://clips/shapes", synthetic.class_names(3), 4, seed=0)
"""


def prepare(bench: Bench) -> None:
    """An account: a bucket with clips, and a user with a token."""
    done = bench.run("ray", "get-auth-token", "--generate", timeout=300)
    assert done.code == 0, done.output
    done = bench.run("python", "-c", PREPARE, timeout=300)
    assert done.code == 0, done.output


def edited(bench: Bench, **lines: str) -> Path:
    """The shipped file with those of its three lines edited that have to be."""
    given = {"region": REGION, "ssh_from": f"[{GATEWAY}/32]"} | lines
    text = (ROOT / "cluster" / "cluster.yaml").read_text()
    out = []
    for line in text.splitlines():
        key = line.strip().partition(":")[0]
        marked = any(f"# {n}:" in line for n in (1, 2, 3))
        indent = line[: len(line) - len(line.lstrip())]
        out.append(f"{indent}{key}: {given[key]}" if marked and key in given else line)
    place = bench.folder / "cluster.yaml"
    place.write_text("\n".join(out) + "\n")
    return place


def up(bench: Bench, place: Path) -> Done:
    """`ray up` of a cluster's file."""
    done = bench.run("ray", "up", "-y", str(place), timeout=1200)
    assert done.code == 0, done.output[-4000:]
    return done


def submit(bench: Bench, place: Path, *words: str, job: str = "") -> Done:
    """`ray job submit` through the dashboard's tunnel; the end of a named `job` is not awaited."""
    with bench.tunnel(place) as address:
        named = ["--no-wait", "--submission-id", job] if job else []
        ray = ["ray", "job", "submit", "--address", address, "--working-dir", ".", *named]
        return bench.run(*ray, "--", *words, timeout=1500)


def until(what: Callable[[], bool], seconds: float) -> bool:
    """Whether it came true within so many seconds."""
    deadline = time.monotonic() + seconds
    while not what():
        if time.monotonic() > deadline:
            return False
        time.sleep(1)
    return True


def workers(bench: Bench) -> list[dict[str, Any]]:
    """The machines that are not the head."""
    return [each for each in bench.instances() if each["name"] != "head"]
