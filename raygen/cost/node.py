"""What a node is: type, zone, market. Its own cloud knows best, then its Ray labels, then the user.

The instance metadata (AWS, IMDSv2) is asked on the node itself. After a fallback from spot to
on-demand the labels still say spot: the metadata is believed first.
"""

from __future__ import annotations

import json
import os
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

METADATA = "http://169.254.169.254"
LABEL_TYPE = ("raygen.io/instance-type", "node.kubernetes.io/instance-type")
LABEL_MARKET, LABEL_ZONE = "ray.io/market-type", "ray.io/availability-zone"
TIMEOUT_S = 1.0
# It is this very machine that is asked, whatever proxy leads elsewhere.
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@dataclass(frozen=True)
class Identity:
    """A node's type, its zone and its market ("spot", "on-demand" or empty: nobody says).

    `instance` is the cloud's id of the machine, `launched` when it was, Unix seconds, where known.
    """

    type: str
    zone: str = ""
    market: str = ""
    instance: str = ""
    launched: float | None = None

    @property
    def rented(self) -> bool:
        """Whether the node itself says that it is rented, and so may be given back."""
        return bool(self.market)


def identify(
    labels: Mapping[str, str], metadata: Identity | None, otherwise: str = "local"
) -> Identity:
    """A node with these Ray labels and this metadata; `otherwise` is its type if nobody says."""
    if metadata is not None:
        return metadata
    named = next((labels[key] for key in LABEL_TYPE if key in labels), "")
    return Identity(named or otherwise, labels.get(LABEL_ZONE, ""), labels.get(LABEL_MARKET, ""))


def ask_metadata(endpoint: str = METADATA, timeout_s: float = TIMEOUT_S) -> Identity | None:
    """What AWS's metadata service at `endpoint` says of this machine; None where there is none.

    AWS_EC2_METADATA_DISABLED and AWS_EC2_METADATA_SERVICE_ENDPOINT are honoured, as by boto3.
    """
    if os.environ.get("AWS_EC2_METADATA_DISABLED", "").lower() == "true":
        return None
    endpoint = os.environ.get("AWS_EC2_METADATA_SERVICE_ENDPOINT", endpoint).rstrip("/")
    wanted = {"X-aws-ec2-metadata-token-ttl-seconds": "60"}
    try:
        token = _ask(f"{endpoint}/latest/api/token", wanted, timeout_s, "PUT")
        proof = {"X-aws-ec2-metadata-token": token}
        document = json.loads(
            _ask(f"{endpoint}/latest/dynamic/instance-identity/document", proof, timeout_s)
        )
        market = _ask(f"{endpoint}/latest/meta-data/instance-life-cycle", proof, timeout_s)
        return Identity(
            type=str(document["instanceType"]),
            zone=str(document["availabilityZone"]),
            market="spot" if market.strip() == "spot" else "on-demand",
            instance=str(document["instanceId"]),
            launched=datetime.fromisoformat(document["pendingTime"]).timestamp(),
        )
    except (OSError, ValueError, KeyError):  # URLError is an OSError; no such service, or another's
        return None


def _ask(url: str, headers: Mapping[str, str], timeout_s: float, method: str = "GET") -> str:
    request = urllib.request.Request(url, headers=dict(headers), method=method)
    with _DIRECT.open(request, timeout=timeout_s) as answer:
        text: str = answer.read().decode()
        return text
