"""A training on the bench's spot nodes, seen from outside: what it says, and what it saves when."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.cluster_bench import Bench
from tests.cluster_runs import SMALL, submit
from tests.ec2_proxy import Call, read_calls

TORN_S = 10.0
TURN = re.compile(r"^step (\d+): (.+); (\d+) -> (\d+) workers$", re.M)
FROM = re.compile(r"^goes on from the checkpoint of step (\d+)$", re.M)
TOLD = re.compile(
    r"^(\d+) node\(s\) will be taken in \d+ s: saved at step (\d+) in [\d.]+ s$", re.M
)


@dataclass(frozen=True)
class Saved:
    """A checkpoint, from when it was whole: the addresses of the workers, and of rank 0's."""

    at: float
    step: int
    first: str
    workers: frozenset[str]


@dataclass(frozen=True)
class Turn:
    """The end of a group of workers after `step` steps, and from which step the next one began."""

    step: int
    why: str
    workers: tuple[int, int]
    resumed: int


class Training:
    """`raygen train tiny` as a job of this name on a cluster of spot nodes, one worker each."""

    def __init__(self, bench: Bench, place: Path, name: str, *words: str) -> None:
        self.bench, self.name, self.uri = bench, name, f"s3://clips/runs/{name}"
        self._said = ""
        train = ["raygen", "train", "tiny", *SMALL, f"name={name}", "train.cpus_per_worker=4"]
        self.submitted = time.time()
        done = submit(bench, place, *train, "train.steps=1000000", *words, job=name)
        assert done.code == 0, done.output

    def says(self) -> str:
        """All that it has said so far; once the head is gone, what was read before."""
        for head in (each for each in self.bench.instances() if each["name"] == "head"):
            rays = self.bench.root_of(head) / "tmp" / "ray"
            for log in rays.glob(f"session_2*/logs/job-driver-{self.name}.log"):
                self._said = log.read_text()
        return self._said

    def turns(self) -> list[Turn]:
        """All that are over: the next group has begun."""
        text = self.says()
        found = []
        for match in TURN.finditer(text):
            resumed = FROM.search(text, match.end())
            if resumed is not None:
                step, why, was, now = match.groups()
                found.append(Turn(int(step), why, (int(was), int(now)), int(resumed[1])))
        return found

    def told(self) -> list[tuple[int, int]]:
        """Of each notice that it heard: of how many nodes, and the step that was saved for it."""
        return [(int(nodes), int(step)) for nodes, step in TOLD.findall(self.says())]

    def saved(self, since: float = 0.0) -> list[Saved]:
        """Checkpoints that were whole after a moment, oldest first."""
        found: list[Saved] = []
        by: dict[int, dict[str, float]] = {}
        for call in read_calls(self.bench.folder, f"/runs/{self.name}/step-"):
            step, file = _written(call)
            if not file:
                continue
            by.setdefault(step, {})[call.address] = call.at
            if file == "state.json":
                # What was written long before is of one that was torn.
                parts = by.pop(step).items()
                workers = frozenset(address for address, at in parts if call.at - at < TORN_S)
                found.append(Saved(call.at, step, call.address, workers))
        return [each for each in found if each.at > since]

    def wait(self, what: Callable[[Saved], bool], since: float, seconds: float = 300) -> Saved:
        """The first checkpoint after a moment of which something holds."""
        deadline = time.monotonic() + seconds
        while True:
            match = next((each for each in self.saved(since) if what(each)), None)
            if match is not None:
                return match
            if time.monotonic() > deadline:
                newest = self.saved()[-1:]
                raise AssertionError(f"not within {seconds} s; {newest}, {self.says()[-3000:]}")
            time.sleep(1)

    def on(self, workers: int, seconds: float = 300) -> Saved:
        """The next checkpoint by so many workers."""
        return self.wait(lambda saved: len(saved.workers) == workers, time.time(), seconds)

    def machine(self, address: str) -> dict[str, Any]:
        """The instance at a private address."""
        return next(each for each in self.bench.instances() if each["private"] == address)


def _written(call: Call) -> tuple[int, str]:
    """The step and the file of a checkpoint that a call has written; of others no file."""
    _, _, path = call.params.get("path", "").partition("/step-")
    step, _, file = path.partition("/")
    written = call.action == "PutObject" and call.status == 200 and step.isdigit()
    return (int(step), file) if written else (0, "")
