"""The clip cache filled ahead of training, on every CPU that Ray has, and what that is worth.

    raygen data materialize catalogue.parquet tiny data.cache.uri=s3://bucket/cache

Every clip that the plan may draw is decoded once; what is kept already is not decoded again. On
several machines the cache must lie where all of them see it: on S3, or in a shared folder.
"""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from typing import Any

import pyarrow as pa
import ray
import ray.data

from raygen import ray_session
from raygen.config import DataConfig
from raygen.data import clipstore, decode, grid, store
from raygen.data.catalog import Catalogue
from raygen.data.clipstore import PART_BYTES, PART_CLIPS, ClipStore
from raygen.data.plan import CENTRE
from raygen.data.sandbox import Refusal, Request, Sandbox
from raygen.data.savings import Report
from raygen.errors import ConfigError, DataError, RaygenError

# Clips that are read back to learn what reading costs, and so many at once.
SAMPLE, TASK = 256, 16

# Clips of one video for one call of a decoder.
_PIECE = pa.schema(
    [
        ("uri", pa.string()),
        ("etag", pa.string()),
        ("offset", pa.int64()),
        ("bytes", pa.int64()),
        ("seconds", pa.float64()),
        ("whole", pa.bool_()),  # whether the decoder keeps the video once it has decoded it
        ("low", pa.list_(pa.float64())),  # of each clip: its shot, in seconds
        ("high", pa.list_(pa.float64())),
        ("first", pa.list_(pa.int64())),  # and its first frame
    ]
)

# What came of a piece.
_OUTCOME = pa.schema(
    [
        ("uri", pa.string()),
        ("offset", pa.int64()),
        ("whole", pa.bool_()),
        ("clips", pa.int64()),
        ("decoded", pa.int64()),
        ("decode_s", pa.float64()),
        ("bytes_written", pa.int64()),
        ("refused", pa.string()),  # why one of its clips was, "" where none was
        ("stopped", pa.string()),  # why the cache is not written any more
        ("failure", pa.string()),  # why nothing else will do better
    ]
)


def materialize(
    catalogue: Catalogue,
    config: DataConfig,
    uri: str,
    *,
    on_progress: Callable[[int, int], None] = lambda done, of: None,
) -> Report:
    """Fills the cache at `uri` with the clips of every usable video, up to `config.cache.gb`.

    `on_progress(done, of)` is told of clips. A video that cannot be decoded is counted and left
    out. Raises ConfigError where clips cannot be cached, DataError where no video is usable, and
    RaygenError where the storage or the decoder as a whole fails.
    """
    if config.crop != "centre":
        raise ConfigError(
            "data.crop=random cuts every clip anew, so that none comes twice; a cache needs "
            "data.crop=centre",
            "data.crop",
        )
    uri = store.absolute(uri)  # the tasks that fill it have a working directory of their own
    usable = catalogue.usable(config.frames / config.fps)
    if not len(usable):
        raise DataError(
            f"none of the {len(catalogue)} videos can be used; see `raygen data inspect`"
        )
    ClipStore(uri, _limit(config)).close()  # what is wrong with it is said here
    pieces = list(_pieces(usable, config))
    total = sum(len(piece["first"]) for piece in pieces)
    report = Report(
        uri,
        len(usable),
        total,
        sum(usable.table["bytes"].to_pylist()),
        store.is_s3(str(usable.table["uri"][0])),
    )
    _fill(pieces, config, report, on_progress)
    _read_back(pieces, config, report)
    return report


def _limit(config: DataConfig) -> int:
    return int(config.cache.gb * 1e9)


def _pieces(catalogue: Catalogue, config: DataConfig) -> Iterator[dict[str, Any]]:
    """Rows of _PIECE: a video, or so much of a long one that several decoders share it."""
    kept_bytes = (config.cache_mb << 20) // 8
    each = max(PART_CLIPS, kept_bytes // config.clip_bytes)
    columns = ["uri", "etag", "offset", "bytes", "duration", "cuts"]
    for batch in catalogue.table.select(columns).to_batches(max_chunksize=1024):
        for uri, etag, offset, size, seconds, cuts in zip(
            *(column.to_pylist() for column in batch.columns), strict=True
        ):
            frames = decode.frame_count(seconds, config.fps)
            video = {"uri": uri, "etag": etag, "offset": offset, "bytes": size, "seconds": seconds}
            video["whole"] = frames * config.height * config.width * 3 <= kept_bytes
            shots = itertools.pairwise([0.0, *(cuts or ()), seconds])
            clips = [
                {"low": low, "high": high, "first": first}
                for low, high in shots
                if high - low >= config.frames / config.fps - 1e-3
                for first in grid.starts(low, high, config)
            ]
            for begin in range(0, len(clips), each):
                part = clips[begin : begin + each]
                yield video | {name: [clip[name] for clip in part] for name in part[0]}


def _keys(piece: dict[str, Any], config: DataConfig) -> list[str]:
    place = (piece["uri"], piece["etag"], piece["offset"])
    return [clipstore.key(*place, first, config, CENTRE) for first in piece["first"]]


def _blocks(pieces: Iterable[dict[str, Any]]) -> Iterator[pa.Table]:
    """Pieces that together fill one part of the cache."""
    block: list[dict[str, Any]] = []
    clips = 0
    for piece in pieces:
        if block and clips + len(piece["first"]) > PART_CLIPS:
            yield pa.Table.from_pylist(block, schema=_PIECE)
            block, clips = [], 0
        block.append(piece)
        clips += len(piece["first"])
    yield pa.Table.from_pylist(block, schema=_PIECE)


def _fill(
    pieces: list[dict[str, Any]],
    config: DataConfig,
    report: Report,
    on_progress: Callable[[int, int], None],
) -> None:
    ray_session.join()
    # Ray Data talks a lot: it runs in a task of its own, whose output nobody has to read.
    outcomes = ray.remote(num_cpus=0)(_outcomes).options(num_returns="streaming")
    done = 0
    measured: dict[tuple[str, int], list[float]] = {}
    for reference in outcomes.remote(list(_blocks(pieces)), config, report.uri):
        row = ray.get(reference)
        if row["failure"]:
            raise RaygenError(row["failure"])
        done += row["clips"]
        on_progress(done, report.clips)
        report.decoded += row["decoded"]
        report.decode_s += row["decode_s"]
        report.refused.update([row["refused"]] if row["refused"] else [])
        report.stopped = report.stopped or row["stopped"]
        report.full = report.full or row["full"]
        if row["decoded"]:
            # An epoch takes one clip, and of a video that is decoded whole that costs all of it.
            each = row["decode_s"] / (1 if row["whole"] else row["decoded"])
            measured.setdefault((row["uri"], row["offset"]), []).append(each)
    if measured:
        means = [sum(seconds) / len(seconds) for seconds in measured.values()]
        report.epoch_decode_s = sum(means) / len(means) * report.videos


def _outcomes(blocks: list[pa.Table], config: DataConfig, uri: str) -> Iterator[dict[str, Any]]:
    """Rows of _OUTCOME, and whether the cache is full; ends early where going on is no use."""
    actors = min(len(blocks), max(1, int(ray.cluster_resources().get("CPU", 1))))
    rows = ray.data.from_blocks(blocks).map_batches(
        _Filler,
        fn_constructor_args=(config, uri),
        batch_size=None,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=actors),
    )
    written = 0
    for row in rows.iter_rows():
        written += row["bytes_written"]
        # Beyond its limit each clip would drive out one that was decoded a moment ago.
        full = written >= _limit(config)
        yield row | {"full": full}
        if full or row["stopped"] or row["failure"]:
            return


def _read_back(pieces: list[dict[str, Any]], config: DataConfig, report: Report) -> None:
    keys = [key for piece in pieces for key in _keys(piece, config)]
    cache = ClipStore(report.uri, _limit(config))
    kept = sorted(cache.kept(keys))
    report.kept = len(kept)
    report.cache_bytes = cache.bytes_of(kept)
    sample = random.Random(0).sample(kept, min(SAMPLE, len(kept)))
    warm_up, *tasks = [sample[:TASK], *(sample[i : i + TASK] for i in range(0, len(sample), TASK))]
    cache.get_many(warm_up)
    before = time.process_time()
    for task in tasks:
        cache.get_many(task)
    report.read_s = (time.process_time() - before) / max(1, len(sample))
    cache.close()


class _Filler:
    """The stage that decodes what the cache lacks: rows of _PIECE to rows of _OUTCOME."""

    def __init__(self, config: DataConfig, uri: str) -> None:
        self.config, self.uri = config, uri
        self.sandbox = Sandbox(config)

    @cached_property
    def cache(self) -> ClipStore:
        """Not opened before `__call__` can say what is wrong with it on this machine."""
        return ClipStore(self.uri, _limit(self.config))

    def __call__(self, batch: pa.Table) -> pa.Table:
        pieces = batch.to_pylist()
        outcomes = [
            {"uri": piece["uri"], "offset": piece["offset"], "whole": piece["whole"]}
            | {"clips": len(piece["first"]), "decoded": 0, "decode_s": 0.0, "bytes_written": 0}
            | {"refused": "", "stopped": "", "failure": ""}
            for piece in pieces
        ]
        try:
            written = self.cache.stats.bytes_written
            missing = [self._missing(piece) for piece in pieces]
            # Of each video one clip before the others: a refusal may have taken a long time.
            self._decode(
                [(o, *clips[0]) for o, clips in zip(outcomes, missing, strict=True) if clips]
            )
            self._decode(
                [
                    (outcome, *clip)
                    for outcome, clips in zip(outcomes, missing, strict=True)
                    for clip in clips[1:]
                    if not outcome["refused"]
                ]
            )
            self.cache.flush()
            outcomes[0]["bytes_written"] = self.cache.stats.bytes_written - written
            outcomes[0]["stopped"] = self.cache.stats.stopped
        except RaygenError as error:
            outcomes[0]["failure"] = str(error)
        return pa.Table.from_pylist(outcomes, schema=_OUTCOME)

    def _missing(self, piece: dict[str, Any]) -> list[tuple[str, Request]]:
        keys = _keys(piece, self.config)
        kept = self.cache.kept(keys)
        clips = zip(keys, piece["low"], piece["high"], piece["first"], strict=True)
        return [
            (
                key,
                Request(
                    uri=piece["uri"],
                    etag=piece["etag"],
                    offset=piece["offset"],
                    bytes=piece["bytes"],
                    seconds=piece["seconds"],
                    start=grid.start_of(first, low, high, self.config),
                    crop=CENTRE,
                    low=low,
                    high=high,
                ),
            )
            for key, low, high, first in clips
            if key not in kept
        ]

    def _decode(self, clips: list[tuple[dict[str, Any], str, Request]]) -> None:
        config = self.config
        each = max(1, PART_BYTES // config.clip_bytes)
        for begin in range(0, len(clips), each):
            part = clips[begin : begin + each]
            results = self.sandbox.decode([request for _, _, request in part])
            for (outcome, key, _), result in zip(part, results, strict=True):
                if isinstance(result, Refusal):
                    outcome["refused"] = result.reason
                else:
                    self.cache.put(key, result.clip_THWC)
                    outcome["decoded"] += 1
                    outcome["decode_s"] += result.decode_s
