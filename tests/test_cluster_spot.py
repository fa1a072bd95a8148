"""A training on spot nodes that are taken, killed and cut off, as `ray up` made them: root only.

One cluster and one training for all of it, each test from two workers to two workers again; the
head's end is the last.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest

from tests.cluster_bench import Bench, why_not
from tests.cluster_runs import edited, prepare, until, up, workers
from tests.cluster_spot import Training

WHY_NOT = why_not()
pytestmark = [
    pytest.mark.root,
    pytest.mark.slow,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(bool(WHY_NOT), reason=f"the cluster bench {WHY_NOT}"),
    pytest.mark.xdist_group("cluster_spot"),
]
TTL_S = 90  # of a worker without its head
CHANGES = {"keep.sh worker 600": f"keep.sh worker {TTL_S}", "spot_again_s: 300": "spot_again_s: 20"}
NOTICE_S = 60
SNAPSHOT = 5
UNSEEN_S = 120  # until Ray counts a node that is gone as gone, at most
AT_MOST_AGAIN = 20  # on a slow machine a copy in memory takes more than the steps between two
FOUND = """
import json
from datetime import datetime, timezone
import boto3
import numpy as np
from raygen.cost.ledger import Ledger
from raygen.data import lineage
from raygen.runs import Run
run = Run.open("{uri}")
step, batch, book = run.status["step"], run.config.train.batch_size, Ledger("{uri}").book
pairs = [pair for pair in lineage.read(run.uri).to_pylist() if pair["step"] <= step]
steps, clips = [pair["step"] for pair in pairs], np.bincount([pair["row"] for pair in pairs])
ends = {{}}
for page in boto3.client("ec2").get_paginator("describe_instances").paginate():
    for each in (each for group in page["Reservations"] for each in group["Instances"]):
        if each["State"]["Name"] == "terminated":
            why = each["StateTransitionReason"]
            at = datetime.strptime(why, "User initiated (%Y-%m-%d %H:%M:%S UTC)")
            ends[each["InstanceId"]] = at.replace(tzinfo=timezone.utc).timestamp()
print("FOUND", json.dumps({{
    "each step once": steps == np.repeat(range(1, step + 1), batch).tolist(),
    "clips": [int(clips.min()), int(clips.max())],
    "open": [lease.instance for lease in book.open.values()],
    "leases": [[lease.instance, lease.since, book.settled[id_].end, book.settled[id_].reason]
               for id_, lease in book.leases.items() if id_ in book.settled],
    "ends": ends,
}}))
"""
"""Of a run: what its weights have seen, its leases, and when AWS ended their machines."""


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with Bench(tmp_path_factory.mktemp("spot") / "b") as running:
        prepare(running)
        yield running


@pytest.fixture(scope="module")
def training(bench: Bench) -> Training:
    """It has two workers where there are two nodes."""
    place = edited(bench)
    text = place.read_text()
    for shipped, changed in CHANGES.items():
        assert text.count(shipped) == 1
        text = text.replace(shipped, changed)
    place.write_text(text)
    up(bench, place)
    elastic = ["train.workers=[1,2]", f"train.snapshot_every={SNAPSHOT}"]
    leases = ["budget.lease_s=60", "budget.drain_s=30"]
    return Training(bench, place, "spot", *elastic, "train.checkpoint_every=50", *leases)


def test_a_node_killed_without_notice_costs_the_steps_since_the_last_copy(
    bench: Bench, training: Training
) -> None:
    two = training.on(2)
    assert {each["market"] for each in workers(bench)} == {"spot"}
    known = len(training.turns())
    (other,) = two.workers - {two.first}
    killed_at = time.time()
    bench.end(training.machine(other)["id"])
    training.wait(lambda saved: saved.at > killed_at and other not in saved.workers, killed_at)
    training.on(2)
    lost, *later = training.turns()[known:]
    assert lost.why == "workers were lost"
    stored = max(saved.step for saved in training.saved() if saved.at <= killed_at)
    assert max(stored, lost.step - AT_MOST_AGAIN) <= lost.resumed
    # It does not wait for another node, unless that one is there sooner than Ray knows of the loss.
    assert [turn.why for turn in later] == ["there is room for more"] * (2 - lost.workers[1])
    assert all(turn.resumed == turn.step for turn in later)


@pytest.mark.parametrize("taken", ["another", "rank 0's"])
def test_a_node_that_is_taken_after_a_notice_costs_no_step(
    bench: Bench, training: Training, taken: str
) -> None:
    two = training.on(2)
    known, told = len(training.turns()), len(training.told())
    leaves = two.first if taken == "rank 0's" else next(iter(two.workers - {two.first}))
    machine = training.machine(leaves)["id"]
    noticed_at = time.time()
    bench.refuse("spot")  # or another node would be there before this one is left
    bench.notice(machine, NOTICE_S)
    training.wait(lambda saved: saved.workers == two.workers - {leaves}, noticed_at)
    bench.refuse("")
    assert until(lambda: machine not in [each["id"] for each in bench.instances()], 120)
    again = training.wait(lambda saved: len(saved.workers - {leaves}) == 2, noticed_at)
    assert again.workers - two.workers  # a new node, and not only Ray's idea of the old one

    ((nodes, step),) = training.told()[told:]
    assert nodes == 1
    (kept,) = [saved for saved in training.saved(noticed_at) if saved.step == step]
    assert kept.at < noticed_at + NOTICE_S
    left, *later = training.turns()[known:]
    assert (left.why, left.workers) == ("a drained node was left", (2, 1))
    assert [turn.why for turn in later] == ["there is room for more"]
    assert [turn.resumed for turn in (left, *later)] == [turn.step for turn in (left, *later)]


def test_both_nodes_taken_at_once_and_the_training_goes_on_from_storage_on_others(
    bench: Bench, training: Training
) -> None:
    two = training.on(2)
    known = len(training.turns())
    gone = [training.machine(address)["id"] for address in two.workers]
    noticed_at = time.time()
    bench.refuse("spot")  # others come when these are gone, and with them all copies in memory
    for machine in gone:
        bench.notice(machine, NOTICE_S)
    assert until(lambda: not workers(bench), 180)
    bench.refuse("")
    again = training.wait(lambda saved: not saved.workers & two.workers, noticed_at)
    training.on(2)
    left, *later = training.turns()[known:]
    assert left.why == "a drained node was left"
    (kept,) = [saved for saved in training.saved(noticed_at) if saved.step == left.step]
    assert kept.at < noticed_at + NOTICE_S
    assert left.resumed == left.step <= again.step
    # It may begin with the first of the new nodes.
    assert {turn.why for turn in later} <= {"there is room for more"}


def test_a_node_that_is_cut_off_is_done_without_and_ends_itself(
    bench: Bench, training: Training
) -> None:
    two = training.on(2)
    (other,) = two.workers - {two.first}
    machine = training.machine(other)
    known, cut_at = len(training.turns()), time.time()
    bench.refuse("TerminateInstances", "InternalError")  # it is to need nobody's help
    assert bench.run("ip", "link", "set", machine["link"], "down").code == 0
    training.wait(lambda saved: other not in saved.workers, cut_at)
    assert until(lambda: machine["id"] not in [each["id"] for each in bench.instances()], 300)
    assert (bench.folder / "hosts" / machine["id"] / "shutdown").exists()
    bench.refuse("")
    training.on(2)
    lost = training.turns()[known]
    assert lost.why in ("workers were lost", "workers stood still")
    assert lost.step - AT_MOST_AGAIN <= lost.resumed


def test_the_head_dies_the_workers_end_themselves_and_the_ledger_is_right(
    bench: Bench, training: Training
) -> None:
    training.on(2)
    (head,) = [each for each in bench.instances() if each["name"] == "head"]
    training.says()
    bench.end(head["id"])
    ended_at = time.time()
    assert until(lambda: not workers(bench), TTL_S + 60), workers(bench)
    # From the end of a lease on, AWS is asked; a lease and its drain-down are 90 seconds here.
    assert until(lambda: time.time() > ended_at + 100, 120)
    done = bench.run("raygen", "cost", training.uri, "--settle", timeout=300)
    assert done.code == 0, done.output
    found = _found(bench, training)
    assert found["open"] == [], done.output
    machines = {instance for instance, *_ in found["leases"]}
    assert head["id"] in machines
    assert machines == set(found["ends"])  # of all that were launched, none was used unpaid
    for machine in machines:
        spans = sorted(span for instance, *span in found["leases"] if instance == machine)
        for (_, end, _), (since, _, _) in pairwise(spans):
            assert since == end  # no second twice, and none that is not charged
        # To the second by AWS, or when Ray saw that it was gone; never less than AWS bills, not for
        # the one that was cut off either.
        _, end, why = spans[-1]
        assert found["ends"][machine] - 1 <= end <= found["ends"][machine] + UNSEEN_S, why
    assert found["each step once"]
    fewest, most = found["clips"]
    assert most - fewest <= 1


def _found(bench: Bench, training: Training) -> dict[str, Any]:
    done = bench.python(FOUND.format(uri=training.uri), timeout=300)
    line = next((line for line in done.output.splitlines() if line.startswith("FOUND ")), "")
    assert line, done.output[-3000:]
    found: dict[str, Any] = json.loads(line.partition(" ")[2])
    return found
