"""How fast a cluster is: `ray up` of cluster/cluster.yaml as shipped, on the hosts of a bench.

    python -m tests.benchmarks.cluster --measured        root only, about ten minutes

ray_up_s                a command of the user's, until the head takes jobs
boot_to_first_step_s    from asking AWS for a worker to a training's first step
notice_to_checkpoint_s  from a spot notice of two minutes to a checkpoint because of it
kill_to_step_s          from the sudden end of one of two workers to the next step without it

A step counts when it is on storage, and every one is put there. All hosts share this one machine
(tests/cluster_bench.py): seconds in which AWS itself starts a machine are not among these, and Ray
that starts on several hosts at once is slower than on hosts of their own.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from tests.cluster_bench import Bench
from tests.cluster_runs import edited, prepare, until, up
from tests.cluster_spot import Training

NOTICE_S = 120.0  # as AWS gives


def measure() -> dict[str, float]:
    """The figures."""
    with (
        tempfile.TemporaryDirectory(prefix="raygen-") as folder,
        Bench(Path(folder) / "b") as bench,
    ):
        prepare(bench)
        place = edited(bench)
        ray_up_s = up(bench, place).seconds
        training = Training(
            bench, place, "measured", "train.workers=[1,2]", "train.checkpoint_every=1"
        )
        first = training.wait(lambda saved: True, 0.0)
        asked = next(call for call in bench.calls("RunInstances") if call.market == "spot")
        notice_s = _notice(bench, training)
        return {
            "ray_up_s": ray_up_s,
            "boot_to_first_step_s": first.at - asked.at,
            "notice_to_checkpoint_s": notice_s,
            "kill_to_step_s": _kill(bench, training),
        }


def _notice(bench: Bench, training: Training) -> float:
    two = training.on(2)
    (other,) = two.workers - {two.first}
    leaves = training.machine(other)["id"]
    at = time.time()
    bench.notice(leaves, NOTICE_S)
    assert until(lambda: bool(training.told()), NOTICE_S), training.says()
    (_, step) = training.told()[-1]
    saved = next(each for each in training.saved(at) if each.step == step)
    assert until(lambda: leaves not in [each["id"] for each in bench.instances()], 2 * NOTICE_S)
    return saved.at - at


def _kill(bench: Bench, training: Training) -> float:
    two = training.on(2)
    (other,) = two.workers - {two.first}
    bench.end(training.machine(other)["id"])
    at = time.time()
    return training.wait(lambda saved: other not in saved.workers, at).at - at
