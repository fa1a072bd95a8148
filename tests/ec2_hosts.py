"""Hosts for the instances that a stand-in of EC2 reports, and the metadata service they ask.

A host is a network, mount, pid and uts namespace (tests/ec2_host.sh) on a bridge, with the
addresses of its instance, a user `ubuntu` who may sudo, and an SSH server that knows its key.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import boto3
import botocore.exceptions as aws
import psutil

from tests.metadata import Aws

SCRIPT = Path(__file__).with_name("ec2_host.sh")
OPS = Path("~/.cache/raygen-bench").expanduser()  # of the hosts' image: made once on a machine


class Hosts:
    """Those of a bench in a folder, for the instances of the cloud at a URL."""

    def __init__(self, folder: Path, cloud: str, endpoint: str, gateway: str, region: str) -> None:
        self._folder, self._endpoint, self._gateway = folder, endpoint, gateway
        keys: dict[str, Any] = {"aws_access_key_id": "bench", "aws_secret_access_key": "secret"}
        self._ec2 = boto3.client("ec2", region_name=region, endpoint_url=cloud, **keys)
        self._iam = boto3.client("iam", region_name=region, endpoint_url=cloud, **keys)
        self._there: dict[str, subprocess.Popen[bytes]] = {}
        self._links: dict[str, str] = {}
        self._told: dict[str, dict[str, Any]] = {}
        self._metadata: dict[str, Metadata] = {}

    def wait_for_cloud(self) -> None:
        """Until it answers; then what an account has before its first cluster is made."""
        deadline = time.monotonic() + 100
        while True:
            try:
                self._ec2.describe_vpcs()
                break
            except aws.BotoCoreError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.3)
        for name in ("raygen-head", "raygen-worker"):
            self._iam.create_instance_profile(InstanceProfileName=name)
        # As cluster/install.sh does; where they are there already it takes a moment.
        build = "from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder as B; B().load()"
        OPS.mkdir(parents=True, exist_ok=True)
        environment = os.environ | {"TORCH_EXTENSIONS_DIR": str(OPS), "DS_ACCELERATOR": "cpu"}
        subprocess.run([sys.executable, "-c", build], env=environment, check=True)
        key = str(self._folder / "host_key")
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)

    def turn(self) -> None:
        """Brings up what is new, and down what is terminated or has shut itself down."""
        pages = self._ec2.get_paginator("describe_instances").paginate()
        groups = [group for page in pages for group in page["Reservations"]]
        found = {each["InstanceId"]: each for group in groups for each in group["Instances"]}
        for group in groups:
            # moto gives the profile to the first of several that were launched together.
            profile = group["Instances"][0].get("IamInstanceProfile", {})
            for each in group["Instances"]:
                each.setdefault("IamInstanceProfile", profile)
        running = {k: each for k, each in found.items() if each["State"]["Name"] == "running"}
        for name, instance in running.items():
            if name not in self._there:
                self._up(name, instance)
            # moto lists an instance a moment before its profile.
            self._metadata[name].instance = instance
            if (self._folder / "hosts" / name / "shutdown").exists():
                self._ec2.terminate_instances(InstanceIds=[name])
            elif self._metadata[name].over():
                self._down(name)
                self._ec2.terminate_instances(InstanceIds=[name])
        for name in set(self._there) - set(running):
            self._down(name)
        self._tell([self._told[name] for name in running])

    def metadata(self, address: str) -> Metadata | None:
        """Of the host at an address. 10.A.B.0/24 are containers on 172.31.A.B."""
        if address.startswith("10."):
            address = f"172.31.{address[3:].rpartition('.')[0]}"
        for name, told in self._told.items():
            if address in (told["private"], told["public"]):
                return self._metadata[name]
        return None

    def _up(self, name: str, instance: dict[str, Any]) -> None:
        folder = self._folder / "hosts" / name
        private, public = instance["PrivateIpAddress"], instance.get("PublicIpAddress", "")
        host = "ip-" + private.replace(".", "-")
        self._furnish(folder, instance["KeyName"])
        # As AWS's resolver has it: gloo, for one, finds its network by its own name.
        (folder / "etc" / "hosts").write_text(f"127.0.0.1 localhost\n{private} {host}\n")
        # And what it does not know it says at once, where this machine's may not be reached.
        (folder / "etc" / "resolv.conf").touch()
        words = ["unshare", "--net", "--mount", "--pid", "--uts", "--fork", "--kill-child"]
        kept = [sys.prefix, sys.base_prefix]
        with (folder / "host.log").open("wb") as log:
            outer = subprocess.Popen(
                [*words, "--mount-proc", "bash", str(SCRIPT), str(folder), host, *kept],
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self._there[name] = outer
        deadline = time.monotonic() + 20
        while not psutil.Process(outer.pid).children():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        inner = psutil.Process(outer.pid).children()[0].pid
        link = self._links[name] = f"v{name[-10:]}"
        _ip(f"link add {link} type veth peer name eth0 netns {inner}")
        _ip(f"link set {link} master br0 up")
        for words_ in (
            "link set lo up",
            f"addr add {private}/16 dev eth0",
            *([f"addr add {public}/32 dev eth0"] if public else []),
            "link set eth0 up",
            f"route add default via {self._gateway} src {private}",
            "route add 169.254.169.254/32 dev eth0",
        ):
            _ip(words_, inner)
        if public:
            _ip(f"route replace {public}/32 dev br0")
        self._metadata[name] = Metadata(instance, folder)
        tags = {tag["Key"]: tag["Value"] for tag in instance.get("Tags", [])}
        self._told[name] = {
            "id": name,
            "type": instance["InstanceType"],
            "market": instance.get("InstanceLifecycle", "on-demand"),
            "zone": instance["Placement"]["AvailabilityZone"],
            "name": tags.get("ray-user-node-type", ""),
            "private": private,
            "public": public,
            "pid": inner,
            "link": link,
            "up": time.time(),
        }

    def _furnish(self, folder: Path, key_name: str) -> None:
        etc = folder / "etc"
        etc.mkdir(parents=True)
        for name in ("passwd", "group", "shadow"):
            shutil.copy(Path("/etc", name), etc)
        with (etc / "passwd").open("a") as file:
            file.write("ubuntu:x:1500:1500::/home/ubuntu:/bin/bash\n")
        with (etc / "group").open("a") as file:
            file.write("ubuntu:x:1500:\n")
        with (etc / "shadow").open("a") as file:
            file.write("ubuntu:*:20000:0:99999:7:::\n")
        path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        (etc / "sudoers").write_text(
            f"Defaults secure_path={path}\nroot ALL=(ALL) ALL\nubuntu ALL=(ALL) NOPASSWD: ALL\n"
        )
        (etc / "sudoers").chmod(0o440)
        shutil.copytree(OPS, folder / "ops")
        private = self._folder / "home" / ".ssh" / f"{key_name}.pem"
        public = subprocess.run(
            ["ssh-keygen", "-y", "-f", str(private)], capture_output=True, check=True
        ).stdout
        (folder / "authorized_keys").write_bytes(public)
        (folder / "sshd_config").write_text(
            "HostKey /run/host/host_key\nAuthorizedKeysFile /run/host/authorized_keys\n"
            "StrictModes no\nUsePAM no\nPasswordAuthentication no\nPrintMotd no\nUseDNS no\n"
            # Beside others on one machine, Ray's workers with their usual niceness would starve.
            f"SetEnv AWS_ENDPOINT_URL={self._endpoint} RAY_worker_niceness=0\n"
        )
        shutil.copy(self._folder / "host_key", folder)

    def _down(self, name: str) -> None:
        outer = self._there.pop(name)
        outer.kill()
        outer.wait()

    def _tell(self, told: list[dict[str, Any]]) -> None:
        fresh = self._folder / "instances.new"
        fresh.write_text(json.dumps(told))
        fresh.replace(self._folder / "instances.json")


class Metadata(Aws):
    """What the metadata service says to one instance."""

    def __init__(self, instance: dict[str, Any], folder: Path) -> None:
        zone = instance["Placement"]["AvailabilityZone"]
        super().__init__(
            instance.get("InstanceLifecycle", "on-demand"), instance["InstanceType"], zone
        )
        self.instance, self._folder = instance, folder
        self.hop_limit = int(instance["MetadataOptions"]["HttpPutResponseHopLimit"])

    def answer(self, method: str, path: str, headers: dict[str, str]) -> tuple[int, str]:
        until = self._until()
        if until is not None and "spot/instance-action" not in self.said:
            self.notice(until - time.time())
        profile = self.instance.get("IamInstanceProfile", {}).get("Arn", "").rpartition("/")[2]
        if profile:
            # boto3 asks with the slash, AWS's library for C++ (pyarrow's) without.
            for place in ("iam/security-credentials/", "iam/security-credentials"):
                self.said[place] = profile
            self.said[f"iam/security-credentials/{profile}"] = _credentials(profile)
        status, body = super().answer(method, path, headers)
        if status == 200 and path == "/latest/dynamic/instance-identity/document":
            launched = self.instance["LaunchTime"].astimezone(UTC)
            document = json.loads(body) | {
                "instanceId": self.instance["InstanceId"],
                "pendingTime": f"{launched:%Y-%m-%dT%H:%M:%SZ}",
                "region": self.instance["Placement"]["AvailabilityZone"][:-1],
            }
            return status, json.dumps(document)
        return status, body

    def over(self) -> bool:
        """Whether its time is up after a notice."""
        until = self._until()
        return until is not None and time.time() >= until

    def _until(self) -> float | None:
        place = self._folder / "notice"
        return float(place.read_text()) if place.exists() else None


def _credentials(profile: str) -> str:
    expires = datetime.fromtimestamp(time.time() + 86400, UTC)
    return json.dumps(
        {
            "Code": "Success",
            "AccessKeyId": profile.replace("-", "").upper(),
            "SecretAccessKey": "secret",
            "Token": "token",
            "Expiration": f"{expires:%Y-%m-%dT%H:%M:%SZ}",
        }
    )


def _ip(words: str, pid: int = 0) -> None:
    enter = ["nsenter", f"--target={pid}", "--net"] if pid else []
    subprocess.run([*enter, "ip", *words.split()], check=True)
