"""The clusters that are not AWS: their files, as Ray and KubeRay read them."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from raygen.config import Config
from raygen.cost.node import LABEL_MARKET, LABEL_TYPE
from raygen.cost.prices import price

ROOT = Path(__file__).parents[1]
CLUSTER = ROOT / "cluster"


def read(name: str) -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load((CLUSTER / name).read_text())
    return document


@pytest.fixture(scope="module")
def gcp() -> dict[str, Any]:
    return read("gcp.yaml")


@pytest.fixture(scope="module")
def items() -> dict[str, dict[str, Any]]:
    """What kuberay.yaml makes, by kind."""
    listed = read("kuberay.yaml")
    assert (listed["apiVersion"], listed["kind"]) == ("v1", "List")
    return {item["kind"]: item for item in listed["items"]}


@pytest.mark.parametrize("name", ["gcp.yaml", "local.yaml"])
def test_ray_takes_the_file_as_it_is(name: str) -> None:
    prepared = prepare_config(read(name))
    validate_config(prepared)
    assert prepared["head_node_type"] in prepared["available_node_types"]


@pytest.mark.parametrize("name", ["gcp.yaml", "local.yaml"])
def test_nodes_get_the_token_the_code_and_a_dashboard_on_loopback(name: str) -> None:
    cluster = read(name)
    mounts = cluster["file_mounts"]
    assert mounts["~/.ray/auth_token"] == "~/.ray/auth_token"
    for here in mounts.values():
        assert here.startswith("~") or (ROOT / here).exists(), here
    commands = cluster["head_start_ray_commands"] + cluster["worker_start_ray_commands"]
    assert all(command.startswith(". ~/raygen/cluster/node.sh && ") for command in commands)
    (head,) = [command for command in commands if "--head" in command]
    assert "--dashboard-host=127.0.0.1" in head
    # What they run of ours is there.
    for script in re.findall(
        r"~/raygen/(cluster/\S+)", " ".join(commands + cluster["setup_commands"])
    ):
        assert (ROOT / script).exists(), script


def test_gcps_workers_are_spot_priced_by_the_table_and_gone_after_a_day(
    gcp: dict[str, Any],
) -> None:
    types = gcp["available_node_types"]
    for name, type_ in types.items():
        config = type_["node_config"]
        assert price(config["machineType"]).cloud == "gcp"
        assert all(disk["autoDelete"] for disk in config["disks"])
        if name != gcp["head_node_type"]:
            scheduling = config["scheduling"]
            assert scheduling["instanceTerminationAction"] == "DELETE"
            assert 0 < scheduling["maxRunDuration"]["seconds"] <= 86400
    assert types["head"]["resources"] == {"CPU": 0, "GPU": 0}
    assert types["gpu"]["node_config"]["scheduling"]["provisioningModel"] == "SPOT"
    assert types["gpu_on_demand"]["max_workers"] == 0
    assert types["gpu"]["resources"]["CPU"] == price("g2-standard-4").cpus


def test_kuberay_kinds_have_what_their_schema_requires(items: dict[str, dict[str, Any]]) -> None:
    assert set(items) == {"RayCluster", "RayJob", "RayService"}
    for item in items.values():
        assert item["apiVersion"] == "ray.io/v1"
        assert set(item) == {"apiVersion", "kind", "metadata", "spec"}
        # kubectl takes one of them by its label.
        assert item["metadata"]["labels"]["app"]
    assert {"entrypoint", "rayClusterSpec"} <= set(items["RayJob"]["spec"])
    assert {"serveConfigV2", "rayClusterConfig"} <= set(items["RayService"]["spec"])
    cluster = items["RayCluster"]["spec"]
    assert cluster["authOptions"] == {"mode": "token"}
    assert set(cluster["headGroupSpec"]) <= {"serviceType", "rayStartParams", "labels", "template"}
    for group in cluster["workerGroupSpecs"]:
        assert {"groupName", "minReplicas", "maxReplicas", "template"} <= set(group)
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
        # Ray takes these as command line options: KubeRay wants strings.
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
        assert price(group["labels"][LABEL_TYPE[0]]).cloud == "gcp"
        assert group["labels"][LABEL_MARKET] in ("spot", "on-demand")


@pytest.mark.skipif("RAYGEN_KUBERAY_CRDS" not in os.environ, reason="no folder of KubeRay's CRDs")
def test_kuberay_takes_the_file_as_it_is(items: dict[str, dict[str, Any]]) -> None:
    folder = Path(os.environ["RAYGEN_KUBERAY_CRDS"])  # config/crd/bases of its operator
    for kind, item in items.items():
        path = folder / f"ray.io_{kind.lower()}s.yaml"
        versions = yaml.load(path.read_text(), yaml.CSafeLoader)["spec"]["versions"]
        (schema,) = [v["schema"]["openAPIV3Schema"] for v in versions if v["name"] == "v1"]
        jsonschema.validate(item, _strict(schema))


def test_pods_of_spot_nodes_drain_before_they_end(items: dict[str, dict[str, Any]]) -> None:
    (group,) = items["RayCluster"]["spec"]["workerGroupSpecs"]
    pod = group["template"]["spec"]
    (container,) = pod["containers"]
    shell, flag, line = container["lifecycle"]["preStop"]["exec"]["command"]
    seconds = float(line.rpartition(" ")[2])
    assert (shell, flag) == ("/bin/sh", "-c")
    assert "-m cluster.watcher" in line
    assert seconds + 3 <= pod["terminationGracePeriodSeconds"]
    # They are where spot is, and their taints do not keep them away.
    (pool,) = pod["nodeSelector"].items()
    assert any((each["key"], each.get("value")) == pool for each in pod["tolerations"])


def test_the_job_is_a_command_that_raygen_takes(items: dict[str, dict[str, Any]]) -> None:
    program, verb, preset, *words = shlex.split(items["RayJob"]["spec"]["entrypoint"])
    assert (program, verb, words[-2]) == ("raygen", "train", "--budget")
    config = Config.load(preset, [*words[:-2], f"budget.dollars={words[-1]}"])
    (group,) = items["RayCluster"]["spec"]["workerGroupSpecs"]
    assert config.train.workers == (1, group["maxReplicas"])


def test_the_service_serves_what_serve_config_does(items: dict[str, dict[str, Any]]) -> None:
    served = yaml.safe_load(items["RayService"]["spec"]["serveConfigV2"])
    ours = yaml.safe_load((ROOT / "serve" / "config.yaml").read_text())
    (there,), (here,) = served["applications"], ours["applications"]
    assert (there["import_path"], there["name"]) == (here["import_path"], here["name"])
    assert set(there["args"]) <= set(here["args"])
    named = [[each["name"] for each in app["deployments"]] for app in (there, here)]
    assert named[0] == named[1]
    assert there["deployments"][0]["ray_actor_options"]["num_gpus"] == 1


def test_the_image_has_the_code_and_the_operator_that_nodes_have() -> None:
    lines = (CLUSTER / "Dockerfile").read_text().replace("\\\n", " ").splitlines()
    copied = [line.split()[1:-1] for line in lines if line.startswith("COPY")]
    sources = [word for words in copied for word in words if not word.startswith("--")]
    assert {"raygen", "tune", "serve", "cluster"} <= set(sources)
    for source in sources:
        assert (ROOT / source).exists(), source
    assert "ARG DEVICE=cuda" in lines
    # Built alike at image time, wherever that is; and it is an operator that DeepSpeed has.
    program = re.compile(r'"(from deepspeed.*?)"')
    (here,) = [found for line in lines for found in program.findall(line)]
    (there,) = program.findall((CLUSTER / "install.sh").read_text())
    assert here == there


def test_scripts_are_shell() -> None:
    for script in sorted(CLUSTER.glob("*.sh")):
        subprocess.run(["bash", "-n", script], check=True)


def _strict(schema: Any) -> Any:
    """The schema, by which a key that it does not name is an error."""
    if isinstance(schema, list):
        return [_strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: _strict(value) for key, value in schema.items() if not key.startswith("x-")}
    if schema.get("x-kubernetes-int-or-string"):
        found.pop("anyOf", None)
    free = schema.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in schema
    if isinstance(schema.get("properties"), dict) and schema.get("type") == "object" and not free:
        found["additionalProperties"] = False
    return found
