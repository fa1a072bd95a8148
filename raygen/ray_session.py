"""Which Ray this process works on: a cluster, or one of its own."""

from __future__ import annotations

import logging
import os

import ray

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
