"""What Prometheus is told, through Ray's own exporter: `raygen_*`, each by `model`.

    raygen_requests_total            by route and status
    raygen_clips_total               clips drawn
    raygen_refused_total             requests refused because too much was waiting
    raygen_batch_size                clips drawn together
    raygen_queue_seconds             from asking to the batch
    raygen_generation_seconds        of a batch
    raygen_encoding_seconds          of a file, by format
    raygen_replica_dollars_per_hour  what this replica costs, by no model

Ray serves them on every node at `--metrics-export-port`, with a `ray_` before each name. It guesses
the sums of histograms from their buckets: the mean batch is clips_total over batch_size_count.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from ray.util.metrics import Counter, Gauge, Histogram

SECONDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
BATCHES = (1.0, 2.0, 4.0, 6.0, 7.0, 8.0)


@functools.cache
def _counter(name: str, description: str, *tags: str) -> Any:
    return Counter(f"raygen_{name}", description, tags)


@functools.cache
def _histogram(name: str, description: str, bounds: tuple[float, ...], *tags: str) -> Any:
    return Histogram(f"raygen_{name}", description, list(bounds), tags)


@functools.cache
def _gauge(name: str, description: str) -> Any:
    return Gauge(f"raygen_{name}", description)


def answered(route: str, status: int) -> None:
    """A request was answered."""
    counter = _counter("requests_total", "Requests answered.", "route", "status")
    counter.inc(1, {"route": route, "status": str(status)})


def refused(model: str) -> None:
    """A request was refused because too much is waiting."""
    _counter("refused_total", "Requests refused: too much waits.", "model").inc(1, {"model": model})


def drew(model: str, batch: int, seconds: float, queued_s: Sequence[float]) -> None:
    """`batch` clips were drawn in so many seconds, after they had waited."""
    tags = {"model": model}
    _counter("clips_total", "Clips drawn.", "model").inc(batch, tags)
    _histogram("batch_size", "Clips drawn together.", BATCHES, "model").observe(batch, tags)
    _histogram("generation_seconds", "Of a batch.", SECONDS, "model").observe(seconds, tags)
    queue = _histogram("queue_seconds", "From asking to the batch.", SECONDS, "model")
    for waited_s in queued_s:
        queue.observe(waited_s, tags)


def encoded(model: str, format: str, seconds: float) -> None:
    """A file was made, the wait for a thread included."""
    tags = {"model": model, "format": format}
    encoding = _histogram("encoding_seconds", "Of a file.", SECONDS, "model", "format")
    encoding.observe(seconds, tags)


def costs(dollars_per_hour: float) -> None:
    """What this replica costs, as long as it lives."""
    _gauge("replica_dollars_per_hour", "What a replica costs.").set(dollars_per_hour)
