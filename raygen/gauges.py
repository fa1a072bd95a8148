"""Figures for Prometheus: a training's and a ledger's, which Ray exports as `ray_raygen_...`.

    gauges = Gauges(TRAINING, "run", "first")
    gauges.show(raygen_step=120, raygen_clips_per_second=31.5)

Each process that is connected to Ray has its own; Ray's agent on the node takes them from there
every few seconds. cluster/grafana draws them.
"""

from __future__ import annotations

from collections.abc import Mapping

from ray.util.metrics import Gauge

TRAINING: Mapping[str, str] = {
    "raygen_step": "optimizer steps of the generator that are done",
    "raygen_steps": "steps that the run is to have",
    "raygen_clips_per_second": "real clips that trained, over the last seconds",
    "raygen_starved": "share of the time in which the trainer waited for clips, 0 to 1",
    "raygen_workers": "workers that train",
    "raygen_saved_step": "step of the newest checkpoint on storage",
    "raygen_loss_generator": "the generator's loss",
    "raygen_loss_critic": "the critic's",
    "raygen_preempted": "times that a drained node was left",
    "raygen_lost": "times that workers were lost, or stood still, without notice",
    "raygen_grew": "times that room was taken by more workers",
}
"""By run, in the driver of a training."""

MONEY: Mapping[str, str] = {
    "raygen_dollars": "dollars spent",
    "raygen_dollars_per_hour": "dollars an hour that nodes with a lease cost, at most",
    "raygen_dollars_reserved": "dollars that leases may still cost",
    "raygen_nodes_spot": "leased nodes that are spot",
    "raygen_nodes_on_demand": "leased nodes that are on demand",
    "raygen_nodes_preempted": "leases that ended with a notice",
    "raygen_nodes_failed": "leases whose node was gone without one",
}
"""By place, in the accountant of a run or a search."""


class Gauges:
    """Gauges whose one tag, `tag`, has the value `name`."""

    def __init__(self, known: Mapping[str, str], tag: str, name: str) -> None:
        self._gauges = {key: Gauge(key, text, tag_keys=(tag,)) for key, text in known.items()}
        self._tags = {tag: name}

    def show(self, **values: float) -> None:
        """From now on these are the values."""
        for key, value in values.items():
            self._gauges[key].set(value, tags=self._tags)
