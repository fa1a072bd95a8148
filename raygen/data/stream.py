"""Catalogue -> Ray Dataset -> global batches, each good clip of an epoch exactly once.

One pipeline of Ray Data serves the whole training. The dealer, an actor, runs it and deals its
blocks out: a global batch is the next clips of the plan that could be decoded, and each worker
gets references to its share, so no clip passes through the dealer itself. Left to its own
backpressure, Ray Data decodes until the object store is full and then polls, both on the
trainer's cores; here a decoder asks the dealer first, and one that waits costs nothing.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import threading
from collections.abc import Coroutine, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import ray
import ray.data
from numpy.typing import NDArray
from ray.util import metrics
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raygen.config import DataConfig
from raygen.data.catalog import Catalogue
from raygen.data.dealing import Deal, Dealing, Piece
from raygen.data.decoder import Decoder
from raygen.data.plan import Plan, Weights, balanced
from raygen.errors import AccessError, DataError

# A task carries so many bytes or clips: enough to hide what Ray spends on it, little to wait for.
TASK_BYTES = 16 << 20
TASK_CLIPS = 256
# Tasks of one execution of Ray Data, which holds them all.
TASKS = 1024
# So many clips in a row without a good one, or a whole epoch, end the training.
HOPELESS = 256

COUNTED = {
    "clips": "clips decoded",
    "refused": "clips that did not decode",
    "restarts": "decoder processes that ended or were ended over a clip, and were replaced",
    "fetch_seconds": "time that decoding waited for S3 or the disk",
    "decode_seconds": "time that decoding took",
}
"""Ray metrics of the decode actors, raygen_data_*_total."""


@dataclass(frozen=True)
class Feed:
    """What is streamed: clips in the order of `plan`, from position `cursor` on.

    `refused` are rows (and why) that the run could not decode before. Clips are decoded on `nodes`
    (Ray's ids), where the workers are; anywhere, if it is empty.
    """

    plan: Plan
    config: DataConfig
    batch_size: int
    world_size: int
    cursor: int
    refused: Mapping[int, str]
    nodes: tuple[str, ...] = ()

    @property
    def each(self) -> int:
        """Clips that one task decodes."""
        return max(1, min(TASK_CLIPS, TASK_BYTES // self.config.clip_bytes))

    @property
    def ahead(self) -> int:
        """Clips that may be decoded, or be decoding, before the workers take them."""
        # Enough that every decoder has a task while another waits for the workers.
        least = self.batch_size + 2 * self.each * self.config.decoders * self.world_size
        return max(least, (self.config.ahead_mb << 20) // self.config.clip_bytes)


def plan_of(catalogue: Catalogue, config: DataConfig, seed: int) -> Plan:
    """The order that `data.sampling` and `data.crop` ask for."""
    weights = None
    if config.sampling == "balanced":
        weights = balanced(catalogue.labels())
    elif config.sampling == "weighted":
        weights = Weights(catalogue.weights())
    return Plan(len(catalogue), seed, weights, random_crop=config.crop == "random")


@dataclass(frozen=True)
class Share:
    """One worker's part of a global batch; `refused` are rows newly found to be bad."""

    pieces: tuple[Piece, ...]
    cursor: int
    refused: Mapping[int, str]


class Dealer:
    """An asyncio actor; `share` waits for a batch, the other methods are its decoders'."""

    def __init__(self, catalogue: Catalogue, feed: Feed) -> None:
        self.catalogue = catalogue
        self.feed = feed
        self.dealing = Dealing(feed.cursor, feed.batch_size, feed.each, feed.ahead)
        self.dealing.refused.update(feed.refused)
        self.failure: Exception | None = None
        self.changed = asyncio.Condition()
        self.deals: dict[int, tuple[Deal, dict[int, str]]] = {}
        self.taken = [0] * feed.world_size
        self.next_deal = 0
        self.told: set[int] = set(feed.refused)
        self.fruitless = 0

    async def open(self) -> None:
        """Begins to decode; called once."""
        loop, me = asyncio.get_running_loop(), ray.get_runtime_context().current_actor
        threading.Thread(target=self._run, args=(loop, me), daemon=True).start()

    async def share(self, rank: int, number: int) -> Share:
        """The rank's share of batch `number`, counted from this dealer's first. Raises RaygenError.

        Every rank asks for every number once, in order.
        """
        async with self.changed:
            await self.changed.wait_for(lambda: self.failure or self._dealt(number))
            if number not in self.deals:
                assert self.failure is not None
                raise self.failure
            deal, refused = self.deals[number]
            self.taken[rank] = number + 1
            for old in [n for n in self.deals if n < min(self.taken)]:
                del self.deals[old]
            self.changed.notify_all()
        return Share(deal.share(rank, self.feed.world_size), deal.cursor, refused)

    async def start(self, first: int) -> set[int]:
        """Returns once the task at `first` may decode: the rows that need not be tried."""
        async with self.changed:
            await self.changed.wait_for(lambda: self.dealing.may_start(first))
            return set(self.dealing.refused)

    async def decoded(self, first: int, good: list[int], refused: dict[int, str]) -> None:
        """A task's verdict, before its block is returned."""
        async with self.changed:
            self.dealing.decoded(first, good, refused)
            self.fruitless = 0 if good else self.fruitless + self.feed.each
            if self.fruitless >= min(HOPELESS, max(len(self.catalogue), self.feed.each)):
                row, reason = next(iter(self.dealing.refused.items()))
                uri = self.catalogue.table["uri"][row].as_py()
                self.failure = DataError(
                    f"{self.fruitless} clips in a row cannot be decoded, the first: {uri} {reason}"
                )
            self.changed.notify_all()

    async def held(self) -> int:
        """Clips decoded, or being decoded, that no worker has taken."""
        return self.dealing.held

    async def fail(self, error: Exception) -> None:
        """Ends the stream for every worker."""
        async with self.changed:
            self.failure = self.failure or error
            self.changed.notify_all()

    def _dealt(self, number: int) -> bool:
        while self.next_deal <= number and (deal := self.dealing.deal()) is not None:
            refused = self.dealing.refused
            new = {row: why for row, why in refused.items() if row not in self.told}
            self.told |= new.keys()
            self.deals[self.next_deal] = deal, new
            self.next_deal += 1
        return number in self.deals

    def _run(self, loop: asyncio.AbstractEventLoop, me: Any) -> None:
        def tell(call: Coroutine[Any, Any, None]) -> None:
            asyncio.run_coroutine_threadsafe(call, loop).result()

        try:
            # In one chunk rows are found ten times as fast as in a thousand.
            table = ray.put(self.catalogue.table.combine_chunks())
            for first in itertools.count(self.feed.cursor, TASKS * self.feed.each):
                dataset = _dataset(first, self.feed, table, me)
                for bundle in dataset.iter_internal_ref_bundles():
                    for block in bundle.blocks:
                        tell(self._arrived(block.ref, block.metadata.num_rows))
        except Exception as error:
            tell(self.fail(error))

    async def _arrived(self, ref: Any, rows: int) -> None:
        async with self.changed:
            self.dealing.arrived(ref, rows)
            self.changed.notify_all()


def _dataset(first: int, feed: Feed, table: Any, dealer: Any) -> ray.data.Dataset:
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    tasks = range(first, first + TASKS * feed.each, feed.each)
    # The first position of each task, a block a task. The blocks are made here: reading them
    # would take a CPU, and the workers may have reserved all. The decoders share theirs.
    return ray.data.from_blocks([pa.table({"first": [first]}) for first in tasks]).map_batches(
        _Decode,
        fn_constructor_args=(feed, table, dealer),
        batch_size=None,
        compute=ray.data.ActorPoolStrategy(size=feed.config.decoders * feed.world_size),
        num_cpus=0,
        # Called for each actor. They reserve nothing, so Ray might put them all on the head.
        ray_remote_args_fn=functools.partial(_placed, itertools.cycle(feed.nodes or [""])),
    )


def _placed(nodes: Iterator[str]) -> dict[str, Any]:
    node = next(nodes)
    if not node:
        return {}
    return {"scheduling_strategy": NodeAffinitySchedulingStrategy(node, soft=True)}


class _Decode:
    """The stage that decodes a task, and tells the dealer what came of it."""

    def __init__(self, feed: Feed, table: Any, dealer: Any) -> None:
        self.decoder = Decoder(Catalogue(ray.get(table)), feed.config)
        self.plan, self.each = feed.plan, feed.each
        self.dealer = dealer
        self.counters = {
            name: metrics.Counter(f"raygen_data_{name}_total", description)
            for name, description in COUNTED.items()
        }

    def __call__(self, batch: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        (first,) = batch["first"].tolist()
        known_bad = ray.get(self.dealer.start.remote(first))
        restarts = self.decoder.sandbox.restarts
        spans = {p: self.plan.span(p) for p in range(first, first + self.each)}
        wanted = {p: span for p, span in spans.items() if span.row not in known_bad}
        try:
            decoded = self.decoder.decode(wanted)
        except AccessError as error:
            ray.get(self.dealer.fail.remote(error))
            raise
        columns = decoded.columns
        good = columns["position"].tolist()
        self._count(
            clips=len(good),
            refused=len(decoded.refused),
            restarts=self.decoder.sandbox.restarts - restarts,
            fetch_seconds=float(columns["fetch_s"].sum()),
            decode_seconds=float(columns["decode_s"].sum()),
        )
        ray.get(self.dealer.decoded.remote(first, good, dict(decoded.refused)))
        return columns

    def _count(self, **amounts: float) -> None:
        for name, amount in amounts.items():
            if amount:
                self.counters[name].inc(amount)


def start_dealer(catalogue: Catalogue, feed: Feed) -> Any:
    """The handle of a dealer that lives as long as the process that calls this, on its node."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    dealer = ray.remote(num_cpus=0, scheduling_strategy=here)(Dealer).remote(catalogue, feed)
    dealer.open.remote()
    return dealer
