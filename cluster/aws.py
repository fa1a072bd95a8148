"""What has to be there before `ray up` can launch anything: checked, or made.

A head that anyone may reach over SSH, or a cluster without a token, is what Ray would start; this
ends the command instead, with one line, and opens SSH to `provider.ssh_from` alone.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray.autoscaler._private.aws.config import bootstrap_aws
from ray.autoscaler._private.aws.utils import resource_cache
from ray.autoscaler._private.cli_logger import cli_logger

from cluster.market import Terms
from raygen.cost.prices import price
from raygen.errors import ConfigError

TOKEN = "~/.ray/auth_token"


def bootstrap(cluster: dict[str, Any]) -> dict[str, Any]:
    """A cluster's configuration with all that AWS must be told: networks, groups, keys.

    `cluster` is as in cluster.yaml, with Ray's defaults. Ends the command where it cannot be right.
    """
    try:
        check(cluster)
    except ConfigError as error:
        cli_logger.abort("{}", error)
    cluster["provider"]["most_workers"] = cluster["max_workers"]
    groups = _security_groups(cluster)
    for name, node in cluster["available_node_types"].items():
        kind = "head" if name == cluster["head_node_type"] else "workers"
        node["node_config"].setdefault("SecurityGroupIds", [groups[kind]])
    resolved: dict[str, Any] = bootstrap_aws(cluster)
    return resolved


def check(cluster: Mapping[str, Any]) -> None:
    """Raises ConfigError, with the fix, where a key of ours is missing or wrong."""
    provider = cluster["provider"]
    Terms.parse(provider.get("market", {}))
    for address in provider.get("ssh_from") or [""]:
        try:
            network = ipaddress.ip_network(address)
        except ValueError as error:
            raise ConfigError(
                f"provider.ssh_from: {error or 'empty'}; give your own address, as 203.0.113.7/32 "
                "(curl https://checkip.amazonaws.com says it)",
                "provider.ssh_from",
            ) from None
        if network.prefixlen == 0:
            raise ConfigError(
                f"provider.ssh_from: {address} is everybody; give your own address, as "
                "203.0.113.7/32",
                "provider.ssh_from",
            )
    for types in provider["alike"]:
        for name in types:
            price(name)
    for remote, local in cluster["file_mounts"].items():
        if remote == TOKEN and not Path(local).expanduser().exists():
            raise ConfigError(
                f"no Ray token at {local}; make one with `ray get-auth-token --generate`",
                "file_mounts",
            )


def _security_groups(cluster: Mapping[str, Any]) -> dict[str, str]:
    """Ids of the groups of head and workers, made where they are not there yet.

    Members of both reach each other on every port; others reach the head's SSH, from `ssh_from`.
    """
    provider, name = cluster["provider"], cluster["cluster_name"]
    ec2 = resource_cache("ec2", provider["region"])
    vpc = _vpc(ec2, cluster)
    found = {
        group.group_name: group
        for group in ec2.security_groups.filter(Filters=[{"Name": "vpc-id", "Values": [vpc]}])
    }
    groups = {}
    for kind in ("head", "workers"):
        label = f"raygen-{name}-{kind}"
        groups[kind] = found.get(label) or ec2.create_security_group(
            GroupName=label,
            Description=f"raygen: {kind} of the Ray cluster {name}",
            VpcId=vpc,
            TagSpecifications=[
                {
                    "ResourceType": "security-group",
                    "Tags": [{"Key": "ray-cluster-name", "Value": name}],
                }
            ],
        )
    members = [{"GroupId": group.id} for group in groups.values()]
    inside = {"IpProtocol": "-1", "UserIdGroupPairs": members}
    ssh = {
        "IpProtocol": "tcp",
        "FromPort": 22,
        "ToPort": 22,
        "IpRanges": [{"CidrIp": address} for address in provider["ssh_from"]],
    }
    for kind, rules in {"head": [inside, ssh], "workers": [inside]}.items():
        # What was there before is not what the YAML says now: an address that has changed, say.
        if groups[kind].ip_permissions:
            groups[kind].revoke_ingress(IpPermissions=groups[kind].ip_permissions)
        groups[kind].authorize_ingress(IpPermissions=rules)
    return {kind: group.id for kind, group in groups.items()}


def _vpc(ec2: Any, cluster: Mapping[str, Any]) -> str:
    """The network of the subnets that the YAML names, or else the region's default one."""
    nodes = cluster["available_node_types"].values()
    subnets = [name for node in nodes for name in node["node_config"].get("SubnetIds", [])]
    if subnets:
        vpc: str = ec2.Subnet(subnets[0]).vpc_id
        return vpc
    default = list(ec2.vpcs.filter(Filters=[{"Name": "is-default", "Values": ["true"]}]))
    if not default:
        cli_logger.abort(
            "no default VPC in {}: name subnets as node_config.SubnetIds of each node type",
            cluster["provider"]["region"],
        )
    first: str = default[0].id
    return first
