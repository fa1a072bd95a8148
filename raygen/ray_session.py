"""Which Ray this process works on: a cluster, or one of its own."""

from __future__ import annotations

import logging
import os

import ray
from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import (
    get_or_create_autoscaling_coordinator,
)
from ray.data._internal.execution.autoscaling_requester import (
    get_or_create_autoscaling_requester_actor,
)
from ray.data._internal.execution.node_trackers import get_or_create_actor_location_tracker
from ray.data._internal.stats import get_or_create_stats_actor
from ray.data._internal.usage.actor import get_or_create_usage_collection_actor

_PROPAGATED = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_DEFAULT_REGION", "AWS_REGION")
_QUIET = logging.ERROR


def join() -> None:
    """Joins the cluster of `RAY_ADDRESS`, or starts a local Ray; done once a process."""
    if ray.is_initialized():
        return
    if "RAY_ADDRESS" in os.environ:
        # Nodes have roles of their own, but not this shell's endpoint and region.
        shell = {name: os.environ[name] for name in _PROPAGATED if name in os.environ}
        ray.init(runtime_env={"env_vars": shell}, log_to_driver=False, logging_level=_QUIET)
    else:
        ray.init(
            address="local", include_dashboard=False, log_to_driver=False, logging_level=_QUIET
        )


def keep_helpers_here() -> None:
    """Starts on this node, the driver's, the actors that Ray Data starts once a cluster.

    They outlive the run, on the node of whoever asked first: a worker's, where Ray Data runs beside
    the training. No autoscaler would give that node back.
    """
    for make in (
        get_or_create_autoscaling_coordinator,
        get_or_create_autoscaling_requester_actor,
        get_or_create_actor_location_tracker,
        get_or_create_usage_collection_actor,
        get_or_create_stats_actor,
    ):
        make()
