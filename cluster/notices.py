"""What a node's cloud says of its end: AWS's spot notice, GCP's preemption, and the like.

AWS says two minutes before, at spot/instance-action, and as a recommendation, with no time, that a
pool's nodes are at more risk than usual. GCP says half a minute before, at `preempted`, and before
the maintenance of machines that cannot be moved (those with a GPU), at `maintenance-event`.
Sources: "Spot Instance interruption notices" and "EC2 instance rebalance recommendations" of the
EC2 user guide; "Spot VMs" and "Monitor and plan for a host maintenance event" of Compute Engine's.
"""

from __future__ import annotations

import json
import time
import urllib.error
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from raygen.cost.node import GCP, GCP_PROOF, aws_proof, fetch

Kind = Literal["spot", "rebalance", "maintenance", "eviction", "tenure"]
Cloud = Literal["aws", "gcp", ""]

GCP_GRACE_S = 25.0  # of the 30 between GCP's notice and its end of the machine
# GCP says it an hour before for GPUs, a minute before for others; to save takes less than this.
MAINTENANCE_S = 55.0
REBALANCE_S = 300.0  # a recommendation has no deadline: room to save at leisure
PROOF_S = 45.0  # of the minute that a token of IMDSv2 is good for


@dataclass(frozen=True)
class Notice:
    """Why a node ends, and by when, Unix seconds.

    spot: its capacity is taken back; rebalance: that has become likely; maintenance: of its host;
    eviction: Kubernetes ends its pod; tenure: it stood in for spot long enough.
    """

    kind: Kind
    until: float


class Metadata:
    """The metadata service at `endpoint`, asked again and again from one thread."""

    def __init__(self, endpoint: str, *, rebalance: bool = True) -> None:
        self._endpoint, self._rebalance = endpoint, rebalance
        self._proof: dict[str, str] = {}
        self._proved = -PROOF_S
        self._first: dict[Kind, Notice] = {}
        self.cloud = self._which()

    def notices(self) -> list[Notice]:
        """All that it says now; a notice without a time of its own counts from when it was first
        heard. Raises OSError or ValueError where the service does not answer, or not as it should.
        """
        heard: dict[Kind, float] = {}
        if self.cloud == "aws":
            heard = self._aws()
        elif self.cloud == "gcp":
            heard = self._gcp()
        for kind, until in heard.items():
            known = self._first.get(kind)
            if known is None or until < known.until:
                self._first[kind] = Notice(kind, until)
        return [self._first[kind] for kind in heard]

    def _which(self) -> Cloud:
        try:
            self._prove()
            return "aws"
        except urllib.error.HTTPError:
            pass
        except OSError:
            return ""
        try:
            fetch(f"{self._endpoint}{GCP}/preempted", GCP_PROOF)
            return "gcp"
        except OSError:
            return ""

    def _aws(self) -> dict[Kind, float]:
        heard: dict[Kind, float] = {}
        action = self._ask_aws("spot/instance-action")
        if action:
            heard["spot"] = datetime.fromisoformat(json.loads(action)["time"]).timestamp()
        if self._rebalance and self._ask_aws("events/recommendations/rebalance"):
            heard["rebalance"] = time.time() + REBALANCE_S
        return heard

    def _gcp(self) -> dict[Kind, float]:
        heard: dict[Kind, float] = {}
        if fetch(f"{self._endpoint}{GCP}/preempted", GCP_PROOF).strip() == "TRUE":
            heard["spot"] = time.time() + GCP_GRACE_S
        event = fetch(f"{self._endpoint}{GCP}/maintenance-event", GCP_PROOF).strip()
        if event == "TERMINATE_ON_HOST_MAINTENANCE":
            heard["maintenance"] = time.time() + MAINTENANCE_S
        return heard

    def _ask_aws(self, what: str) -> str:
        self._prove()
        try:
            return fetch(f"{self._endpoint}/latest/meta-data/{what}", self._proof)
        except urllib.error.HTTPError as error:
            if error.code == 404:  # nothing to say
                return ""
            raise

    def _prove(self) -> None:
        if time.monotonic() - self._proved >= PROOF_S:
            self._proof, self._proved = aws_proof(self._endpoint), time.monotonic()
