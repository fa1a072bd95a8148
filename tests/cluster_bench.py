"""A cloud on one machine: EC2, S3, IAM and as many hosts as a cluster launches. Root only.

    with Bench(folder) as bench:
        bench.run("ray", "up", "-y", "cluster/cluster.yaml", timeout=600)

moto answers as AWS, behind a proxy (tests/ec2_proxy.py) that logs every call and refuses what it is
told to; each instance that moto reports is brought up as a host (tests/ec2_hosts.py): a network,
mount, pid and uts namespace with the address that moto gave it, users and an SSH server. All of it
lies in namespaces of its own: nothing of this machine's network is seen or changed, nothing outside
is reached, and when the first process of them ends the kernel ends and removes all the rest.

Commands run as on a user's laptop: beside the hosts, with a home and keys of their own.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from tests.ec2_hosts import Hosts
from tests.ec2_proxy import Call, Proxy, read_calls, write_refusals
from tests.metadata import serve

GATEWAY = "172.31.0.1"  # in moto's default network, of which AWS keeps the first address
NETWORK = "172.31.0.0/16"
METADATA = "169.254.169.254"
ENDPOINT = f"http://{GATEWAY}:5001"
MOTO = "http://127.0.0.1:5000"
REGION = "us-east-1"
NAMESPACES = ("--net", "--mount", "--pid", "--uts", "--fork")
NEEDS = ("ip", "setpriv", "unshare", "nsenter", "sshd", "ssh", "rsync", "sudo", "curl")
ROOT = Path(__file__).resolve().parents[1]


def why_not() -> str:
    """Why the bench cannot run here; empty if it can."""
    if os.geteuid() != 0:
        return "needs root, for namespaces"
    missing = [name for name in NEEDS if shutil.which(name, path=_path()) is None]
    if missing:
        return f"needs {', '.join(missing)}"
    tried = subprocess.run(["unshare", *NAMESPACES, "true"], capture_output=True)
    return "" if tried.returncode == 0 else "may not make namespaces here"


@dataclass(frozen=True)
class Done:
    """A command that has ended."""

    code: int
    output: str
    seconds: float


class Bench:
    """The cloud in a folder, between `__enter__` and `__exit__`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.home = folder / "home"
        (self.home / ".ssh").mkdir(parents=True)
        self._init = 0

    def __enter__(self) -> Bench:
        # It ends when this process does, however that ends.
        words = ["setpriv", "--pdeathsig", "KILL", "unshare", *NAMESPACES, "--kill-child"]
        inside = f"{sys.executable} -m tests.cluster_bench {self.folder}; exit"
        with (self.folder / "bench.log").open("wb") as log:
            # A shell comes first, which takes care of processes that lose their parents.
            self._outer = subprocess.Popen(
                [*words, "--mount-proc", "bash", "-c", inside],
                cwd=ROOT,
                env=os.environ | {"PYTHONPATH": str(ROOT), "PATH": _path()},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            self._wait_until_ready()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *failure: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends it, and all that runs in it."""
        if self._init:
            os.kill(self._init, signal.SIGKILL)
        self._outer.kill()
        self._outer.wait()

    def run(self, *words: str, timeout: float = 120, env: Mapping[str, str] | None = None) -> Done:
        """A command of the user, from the checkout, to its end or for so many seconds."""
        began = time.monotonic()
        with (self.folder / "last.log").open("w+b") as log:
            try:
                code = subprocess.run(
                    [*self._enter(), *words],
                    env=self.environment() | dict(env or {}),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    timeout=timeout,
                ).returncode
            except subprocess.TimeoutExpired:
                code = 124
            log.seek(0)
            output = log.read().decode(errors="replace")
        done = Done(code, output, time.monotonic() - began)
        with (self.folder / "commands.log").open("a") as all_:
            all_.write(f"$ {' '.join(words)}\n{output}\n[{code}, {done.seconds:.1f} s]\n\n")
        return done

    @contextmanager
    def beside(self, *words: str) -> Iterator[None]:
        """A command of the user that runs meanwhile, as `ray dashboard`."""
        with (self.folder / f"{words[1]}.log").open("wb") as log:
            process = subprocess.Popen(
                [*self._enter(), *words],
                env=self.environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        try:
            yield
        finally:
            process.terminate()
            process.wait()

    @contextmanager
    def tunnel(self, cluster: Path) -> Iterator[str]:
        """The dashboard's address while `ray dashboard` of a cluster's file leads there."""
        reach = "until (echo >/dev/tcp/127.0.0.1/8265) 2>/dev/null; do sleep 0.5; done"
        with self.beside("ray", "dashboard", str(cluster)):
            assert self.run("bash", "-c", reach, timeout=120).code == 0
            yield "http://127.0.0.1:8265"

    def environment(self) -> dict[str, str]:
        """The user's."""
        kept = {name: os.environ[name] for name in ("LANG", "TERM") if name in os.environ}
        return kept | {
            "PATH": _path(),
            "HOME": str(self.home),
            "TMPDIR": str(self.folder),
            "PYTHONPATH": str(ROOT),
            "AWS_ENDPOINT_URL": ENDPOINT,
            "AWS_ACCESS_KEY_ID": "USER",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": REGION,
            "AWS_EC2_METADATA_DISABLED": "true",
            "RAY_AUTH_MODE": "token",
            "RAY_USAGE_STATS_ENABLED": "0",
        }

    def python(self, code: str, timeout: float = 120) -> Done:
        """Python of the user's."""
        return self.run(sys.executable, "-c", code, timeout=timeout)

    def calls(self, action: str = "") -> list[Call]:
        """What was asked of AWS so far, oldest first; of one kind, as RunInstances."""
        return [each for each in read_calls(self.folder) if action in ("", each.action)]

    def refuse(self, what: str, code: str = "InsufficientInstanceCapacity") -> None:
        """From now on AWS has no capacity on a market (spot, on-demand), or refuses another action
        (TerminateInstances); with "" nothing.
        """
        write_refusals(self.folder, {what: code} if what else {})

    def instances(self) -> list[dict[str, Any]]:
        """Those that run: id, type, market, zone, name (Ray's node type), addresses, pid."""
        found: list[dict[str, Any]] = json.loads((self.folder / "instances.json").read_text())
        return found

    def notice(self, instance: str, seconds: float) -> None:
        """AWS takes a spot instance back in so many seconds, and says so in its metadata."""
        place = self.folder / "hosts" / instance / "notice"
        place.write_text(repr(time.time() + seconds))

    def end(self, *instances: str) -> None:
        """AWS ends instances at once, and says nothing before."""
        done = self.python(
            f"import boto3\nboto3.client('ec2').terminate_instances(InstanceIds={list(instances)})"
        )
        assert done.code == 0, done.output

    def root_of(self, instance: Mapping[str, Any]) -> Path:
        """The root folder of a host that runs; absolute links in it lead elsewhere."""
        return Path(f"/proc/{self._init}/root/proc/{instance['pid']}/root")

    def on_head(self, command: str, timeout: float = 120) -> Done:
        """A command on the head, by `ray exec`."""
        words = ["ray", "exec", str(self.folder / "cluster.yaml"), command]
        return self.run(*words, timeout=timeout)

    def _enter(self) -> list[str]:
        enter = ["nsenter", f"--target={self._init}", "--net", "--mount", "--pid", "--uts"]
        return [*enter, f"--wd={ROOT}", "--"]

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + 900  # the image is built once
        while not (self.folder / "instances.json").exists():
            if self._outer.poll() is not None or time.monotonic() > deadline:
                log = (self.folder / "bench.log").read_text()
                raise AssertionError(f"the bench did not start: {log[-3000:]}")
            time.sleep(0.2)
        self._init = psutil.Process(self._outer.pid).children()[0].pid


def _path() -> str:
    system = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    return f"{Path(sys.executable).parent}:{system}"


def main() -> None:
    """The first process in the bench's namespaces."""
    folder = Path(sys.argv[1])
    for words in (
        "link set lo up",
        # Of its own accord it would change its address with the hosts that come and go.
        "link add br0 address 02:00:00:00:00:01 type bridge",
        f"addr add {GATEWAY}/16 dev br0",
        f"addr add {METADATA}/32 dev br0",
        "link set br0 up",
    ):
        subprocess.run(["ip", *words.split()], check=True)
    moto = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "5000"],
        env=os.environ | {"MOTO_EC2_LOAD_DEFAULT_AMIS": "true"},
        stdout=(folder / "moto.log").open("wb"),
        stderr=subprocess.STDOUT,
    )
    hosts = Hosts(folder, MOTO, ENDPOINT, GATEWAY, REGION)
    hosts.wait_for_cloud()
    proxy = Proxy(folder, MOTO)
    threading.Thread(target=proxy.serve, args=(GATEWAY, 5001), daemon=True).start()
    serve(hosts.metadata, METADATA, 80)
    while moto.poll() is None:
        hosts.turn()
        time.sleep(0.5)


if __name__ == "__main__":
    main()
