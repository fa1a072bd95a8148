"""What a node is: type, zone, market. Its own cloud knows best, then its Ray labels, then the user.

The instance metadata (AWS's IMDSv2, GCP's) is asked on the node itself. After a fallback from spot
to on-demand the labels still say spot: the metadata is believed first.
"""

from __future__ import annotations

import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

METADATA = "http://169.254.169.254"
GCP = "/computeMetadata/v1/instance"
GCP_PROOF = {"Metadata-Flavor": "Google"}
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


def share(held: Mapping[str, float], there: Mapping[str, float]) -> float:
    """The largest part, 0 to 1, that amounts of resources are of what a node has of them."""
    parts = [amount / there[kind] for kind, amount in held.items() if there.get(kind)]
    return min(1.0, max(parts, default=0.0))


def ask_metadata(endpoint: str = METADATA, timeout_s: float = TIMEOUT_S) -> Identity | None:
    """What the metadata service at `endpoint`, AWS's or GCP's, says of this machine; None for none.

    AWS_EC2_METADATA_DISABLED and the variables of `metadata_endpoint` are honoured.
    """
    if os.environ.get("AWS_EC2_METADATA_DISABLED", "").lower() == "true":
        return None
    endpoint = metadata_endpoint(endpoint)
    for ask in (_ask_aws, _ask_gcp):
        try:
            return ask(endpoint, timeout_s)
        except urllib.error.HTTPError:
            continue  # another cloud's
        except (OSError, ValueError, KeyError):  # URLError is an OSError; or no cloud's at all
            return None
    return None


def metadata_endpoint(otherwise: str = METADATA) -> str:
    """Where the metadata service is: AWS_EC2_METADATA_SERVICE_ENDPOINT, as for boto3, or
    GCE_METADATA_HOST, as for Google's libraries. Both clouds have it at the same address.
    """
    host = os.environ.get("GCE_METADATA_HOST", "")
    given = os.environ.get("AWS_EC2_METADATA_SERVICE_ENDPOINT", f"http://{host}" if host else "")
    return (given or otherwise).rstrip("/")


def aws_proof(endpoint: str, timeout_s: float = TIMEOUT_S) -> dict[str, str]:
    """The headers that IMDSv2 wants: a token of one minute. Raises OSError where there is none."""
    wanted = {"X-aws-ec2-metadata-token-ttl-seconds": "60"}
    token = fetch(f"{endpoint}/latest/api/token", wanted, timeout_s, "PUT")
    return {"X-aws-ec2-metadata-token": token}


def fetch(
    url: str, headers: Mapping[str, str], timeout_s: float = TIMEOUT_S, method: str = "GET"
) -> str:
    """The body of an answer of the metadata service. Raises OSError; HTTPError for a status."""
    request = urllib.request.Request(url, headers=dict(headers), method=method)
    with _DIRECT.open(request, timeout=timeout_s) as answer:
        text: str = answer.read().decode()
        return text


def _ask_aws(endpoint: str, timeout_s: float) -> Identity:
    proof = aws_proof(endpoint, timeout_s)
    document = json.loads(
        fetch(f"{endpoint}/latest/dynamic/instance-identity/document", proof, timeout_s)
    )
    market = fetch(f"{endpoint}/latest/meta-data/instance-life-cycle", proof, timeout_s)
    return Identity(
        type=str(document["instanceType"]),
        zone=str(document["availabilityZone"]),
        market="spot" if market.strip() == "spot" else "on-demand",
        instance=str(document["instanceId"]),
        launched=datetime.fromisoformat(document["pendingTime"]).timestamp(),
    )


def _ask_gcp(endpoint: str, timeout_s: float) -> Identity:
    def ask(what: str) -> str:
        return fetch(f"{endpoint}{GCP}/{what}", GCP_PROOF, timeout_s).strip()

    # As in projects/123/machineTypes/g2-standard-4 and projects/123/zones/us-central1-a.
    type_, zone = (ask(what).rpartition("/")[2] for what in ("machine-type", "zone"))
    if not type_ or not zone:
        raise ValueError("no machine of GCP")
    return Identity(
        type=type_,
        zone=zone,
        # TRUE of Spot VMs too, which are preemptible ones without a limit of 24 hours.
        market="spot" if ask("scheduling/preemptible") == "TRUE" else "on-demand",
        instance=ask("id"),
        launched=_booted(),
    )


def _booted() -> float:
    """When this machine booted, Unix seconds: GCP does not say when it was launched."""
    return time.time() - float(Path("/proc/uptime").read_text().split()[0])
