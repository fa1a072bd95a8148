"""What a process keeps of memory and of cores that it does not need right now."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import yaml

from raygen import heap

PROGRAM = """
import resource, sys, threading
import torch
from raygen import heap

torch.set_num_threads(1)
if sys.argv[1] == "kept":
    heap.keep()
layers = [torch.nn.Upsample(scale_factor=2), torch.nn.Conv3d(8, 8, 1), torch.nn.ReLU()]
network = torch.nn.Sequential(*layers * 3)

@torch.inference_mode()
def draw(times):
    for _ in range(times):
        network(torch.ones(4, 8, 4, 8, 8))

def work():
    draw(10)
    before = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
    draw(60)
    print(resource.getrusage(resource.RUSAGE_THREAD).ru_minflt - before)

def hold(size):
    kept.append(bytearray(size))
    started.wait()
    over.wait()

# As a replica draws: in a thread, and not the first of them.
kept, started, over = [], threading.Barrier(9), threading.Event()
for size in range(1000, 1800, 100):
    threading.Thread(target=hold, args=(size,), daemon=True).start()
started.wait()
thread = threading.Thread(target=work)
thread.start()
thread.join()
over.set()
"""


def test_what_was_freed_is_not_fetched_from_the_kernel_again() -> None:
    def faults(how: str, **more: str) -> int:
        command, environment = [sys.executable, "-c", PROGRAM, how], os.environ | more
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        return int(done.stdout)

    # A large block may still come late, once.
    as_it_is = faults("as it is")
    assert 5 * faults("kept") < as_it_is
    assert 5 * faults("as it is", **heap.ENVIRONMENT) < as_it_is


def test_idle_threads_leave_the_core_to_others_unless_the_user_says_otherwise() -> None:
    def policy(**given: str) -> str:
        program = "import raygen.evaluate, os, torch; print(os.environ['OMP_WAIT_POLICY'])"
        kept = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
        command = [sys.executable, "-c", program]
        done = subprocess.run(command, env=kept | given, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    assert policy() == "PASSIVE"
    assert policy(OMP_WAIT_POLICY="ACTIVE") == "ACTIVE"


def test_the_example_of_serving_says_the_same() -> None:
    example = Path(__file__).parents[1] / "serve" / "config.yaml"
    [application] = yaml.safe_load(example.read_text())["applications"]
    [deployment] = application["deployments"]
    assert deployment["ray_actor_options"]["runtime_env"]["env_vars"] == heap.ENVIRONMENT
