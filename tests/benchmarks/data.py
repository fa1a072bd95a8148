"""raygen's decoding beside what engineers use for video today, on the same clips in one run.

    python -m tests.benchmarks.data [--clips FOLDER] [--json PATH] [--quick]

Every contestant has as many decoding processes as there are cores and makes the same clips: 16
frames of 64x64 at 16 a second. They take turns, in rounds; each is counted inside its workers, for
a window of seconds after a warm-up. `bare` is the ceiling: a pool of processes over PyAV that hands
its clips to nobody. CPU is that of the processes that decode, and of raygen's dealer. `raygen
cached` reads what `raygen data materialize` left on disk. Without --clips, some are rendered that
cost what ordinary ones do (data_clips).
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Table

from raygen.config import CacheConfig, DataConfig
from raygen.data import store
from raygen.data.catalog import Catalogue
from raygen.data.materialize import materialize
from raygen.data.scan import scan
from raygen.demo import BUCKET, loopback_s3
from tests.benchmarks import data_clips
from tests.benchmarks.data_measure import (
    SEED,
    NotAvailable,
    Sample,
    Timing,
    cpu_seconds,
    decoding,
    local_ray,
    peer_process,
    raygen,
    streaming,
    take,
    tree,
)
from tests.benchmarks.data_peers import Job, Video

WORKERS = os.cpu_count() or 1
SHARDS = 4
ROWS = (1_000, 100_000)
PEERS = ("dataloader", "decord", "opencv", "webdataset", "ray data")
# What is decoded stays in no memory, or every epoch but the first would be a copy.
CONFIG = DataConfig(frames=16, size=64, fps=16, decoders=WORKERS, cache_mb=0)

console = Console()


@dataclass(frozen=True)
class Bench:
    """What the contestants work on."""

    scratch: Path
    disk: Catalogue
    s3: Catalogue
    shards: list[str]
    timing: Timing


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=Path, help="folder of clips (rendered ones)")
    parser.add_argument("--json", type=Path, help="where the figures go, as one flat object")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each (3)")
    parser.add_argument("--only", help="names of contestants, with commas between (all)")
    parser.add_argument("--quick", action="store_true", help="one round of short windows")
    arguments = parser.parse_args()
    names = arguments.only.split(",") if arguments.only else list(CONTESTANTS)
    timing = Timing(1.0, 2.0) if arguments.quick else Timing(5.0, 6.0)
    rounds = 1 if arguments.quick else arguments.rounds
    with tempfile.TemporaryDirectory(prefix="raygen-") as folder:
        scratch = Path(folder)
        with loopback_s3(scratch / "s3.log"):
            bench = prepared(scratch, arguments.clips, timing, 12 if arguments.quick else 48)
            samples, absent = contest(bench, names, rounds)
        peaks = {} if arguments.only else {rows: peak_memory(bench, rows) for rows in ROWS}
    console.print(table(samples, absent))
    flat = figures(samples, peaks)
    for name in sorted(flat.keys() & GOALS.keys()):
        console.print(f"{name:28} {flat[name]:8.3f}   goal {GOALS[name]}", highlight=False)
    if arguments.json:
        arguments.json.write_text(json.dumps(flat, indent=2) + "\n")


def prepared(scratch: Path, clips: Path | None, timing: Timing, count: int) -> Bench:
    """The clips in a folder, on S3, in tar shards, and decoded in raygen's cache."""
    if clips is None:
        clips = scratch / "clips"
        with ProcessPoolExecutor(WORKERS) as pool, console.status(f"rendering {count} clips"):
            names = [f"class-{number}" for number in range(count // 4)]
            some = (itertools.repeat(argument) for argument in (4, SEED))
            list(pool.map(data_clips.render, itertools.repeat(clips), names, *some))
    with console.status("laying them out"):
        seconds = CONFIG.frames / CONFIG.fps
        disk = scan(str(clips)).usable(seconds)
        for uri in disk.table["uri"].to_pylist():
            store.write_bytes(s3_uri(uri, clips), store.read_bytes(uri))
        s3 = scan(f"s3://{BUCKET}/clips").usable(seconds)
        bench = Bench(scratch, disk, s3, sharded(scratch, disk), timing)
        with local_ray():
            materialize(disk, cached_config(bench), cached_config(bench).cache.uri)
    console.print(
        f"{len(disk)} clips, {sum(disk.table['duration'].to_pylist()):.0f} s of video; "
        f"{WORKERS} decoding processes each"
    )
    return bench


def s3_uri(uri: str, folder: Path) -> str:
    return f"s3://{BUCKET}/clips/{Path(uri).relative_to(folder.resolve())}"


def sharded(scratch: Path, disk: Catalogue) -> list[str]:
    """The clips in tar shards of WebDataset, each with its length beside it."""
    paths = [str(scratch / f"clips-{number}.tar") for number in range(max(SHARDS, WORKERS))]
    rows = disk.table.select(["uri", "duration"]).to_pylist()
    for number, path in enumerate(paths):
        with tarfile.open(path, "w") as shard:
            for row in range(number, len(rows), len(paths)):
                beside = scratch / "sample.json"
                beside.write_text(json.dumps({"seconds": rows[row]["duration"]}))
                shard.add(rows[row]["uri"], f"{row:06d}.mp4")
                shard.add(beside, f"{row:06d}.json")
    return paths


def cached_config(bench: Bench) -> DataConfig:
    return CONFIG.model_copy(update={"cache": CacheConfig(uri=str(bench.scratch / "cache"))})


def contest(
    bench: Bench, names: list[str], rounds: int
) -> tuple[dict[str, list[Sample]], dict[str, str]]:
    """The samples of each, and why there are none of others."""
    samples: dict[str, list[Sample]] = {name: [] for name in names}
    absent: dict[str, str] = {}
    # There and back again, so that a machine that slows down or warms up favours none.
    turns = [name for k in range(rounds) for name in (names if k % 2 == 0 else names[::-1])]
    for name in track(turns, "measuring", console=console, transient=True):
        if name in absent:
            continue
        try:
            samples[name].append(CONTESTANTS[name](bench))
        except NotAvailable as reason:
            absent[name] = str(reason)
    return {name: taken for name, taken in samples.items() if taken}, absent


def bare(bench: Bench) -> Sample:
    return peer("bare", bench, bench.disk)


def bare_s3(bench: Bench) -> Sample:
    return peer("bare s3", bench, bench.s3)


def raygen_disk(bench: Bench) -> Sample:
    return raygen(bench.disk, CONFIG, bench.timing)


def raygen_s3(bench: Bench) -> Sample:
    return raygen(bench.s3, CONFIG, bench.timing)


def raygen_cached(bench: Bench) -> Sample:
    return raygen(bench.disk, cached_config(bench), bench.timing)


def dataloader(bench: Bench) -> Sample:
    return peer("dataloader", bench, bench.disk)


def decord(bench: Bench) -> Sample:
    return peer("decord", bench, bench.disk)


def opencv(bench: Bench) -> Sample:
    return peer("opencv", bench, bench.disk)


def webdataset(bench: Bench) -> Sample:
    return peer("webdataset", bench, bench.disk)


def ray_data(bench: Bench) -> Sample:
    return peer("ray data", bench, bench.disk)


CONTESTANTS: dict[str, Callable[[Bench], Sample]] = {
    "bare": bare,
    "raygen disk": raygen_disk,
    "bare s3": bare_s3,
    "raygen s3": raygen_s3,
    "raygen cached": raygen_cached,
    "dataloader": dataloader,
    "decord": decord,
    "opencv": opencv,
    "webdataset": webdataset,
    "ray data": ray_data,
}
GOALS = {
    "disk_over_ceiling": "0.95 or more",
    "s3_over_bare": "0.9 or more",
    "cpu_over_pyav": "1.05 or less",
    "cached_over_decoded": "20 or more",
    "best_peer_over_raygen": "below 1",
    "peak_rss_ratio_100k_over_1k": "about 1",
}


def peer(name: str, bench: Bench, catalogue: Catalogue) -> Sample:
    """One of data_peers, in an interpreter of its own: only Ray's own contestants load Ray."""
    with (
        tempfile.TemporaryDirectory(dir=bench.scratch) as folder,
        peer_process(name, job(bench, catalogue, Path(folder)), Path(folder)) as tally,
    ):
        time.sleep(bench.timing.warm_up)
        begin, before, cpu_before = time.monotonic(), tally(), cpu_seconds(tally())
        time.sleep(bench.timing.window)
        finish, after, cpu_after = time.monotonic(), tally(), cpu_seconds(tally())
        clips = sum(after.values()) - sum(before.values())
        return Sample(clips / (finish - begin), 1000 * (cpu_after - cpu_before) / clips)


def job(bench: Bench, catalogue: Catalogue, folder: Path) -> Job:
    rows = catalogue.table.select(["uri", "duration", "width", "height"]).to_pylist()
    return Job(
        [Video(row["uri"], row["duration"], row["width"], row["height"]) for row in rows],
        bench.shards,
        CONFIG.frames,
        CONFIG.height,
        CONFIG.fps,
        WORKERS,
        SEED,
        str(folder),
    )


def peak_memory(bench: Bench, rows: int) -> float:
    """The most that dealer and decoders hold while `rows` rows stream, MB; shared pages once."""
    catalogue = bench.disk.select(np.arange(rows) % len(bench.disk))
    peaks = [0.0]
    with streaming(catalogue, CONFIG) as receiver:
        next(receiver)
        pids = decoding(receiver)
        done = threading.Event()

        def watch() -> None:
            while not done.wait(0.2):
                # PSS shares a page out among those that map it.
                peaks.append(sum(p.memory_full_info().pss for p in tree(pids)) / 2**20)

        watcher = threading.Thread(target=watch)
        watcher.start()
        take(receiver, bench.timing.warm_up + bench.timing.window)
        done.set()
        watcher.join()
    return max(peaks)


def table(samples: dict[str, list[Sample]], absent: dict[str, str]) -> Table:
    drawn = Table("", "clips/s", "over bare", "CPU ms a clip", "over bare")
    for column in drawn.columns[1:]:
        column.justify = "right"
    for name, taken in samples.items():
        rates = [sample.rate for sample in taken]
        base = samples.get("bare s3" if name.endswith("s3") else "bare")
        drawn.add_row(
            name,
            f"{median(rates):,.1f} [{min(rates):,.1f}..{max(rates):,.1f}]",
            f"{rate(taken) / rate(base):.3f}" if base else "",
            f"{cpu(taken):.2f}",
            f"{cpu(taken) / cpu(base):.3f}" if base else "",
        )
    for name, reason in absent.items():
        drawn.add_row(name, escape(f"not available: {reason}"))
    return drawn


def rate(samples: list[Sample]) -> float:
    return median(sample.rate for sample in samples)


def cpu(samples: list[Sample]) -> float:
    return median(sample.cpu_ms for sample in samples)


def figures(samples: dict[str, list[Sample]], peaks: dict[int, float]) -> dict[str, float]:
    """Of what was measured, the ratios that are asked for and what they are made of."""
    flat: dict[str, float] = {}
    for name, taken in samples.items():
        flat[f"{name.replace(' ', '_')}_clips_s"] = rate(taken)
        flat[f"{name.replace(' ', '_')}_cpu_ms"] = cpu(taken)
    for figure, over, under in (
        ("disk_over_ceiling", "raygen disk", "bare"),
        ("s3_over_bare", "raygen s3", "bare s3"),
        ("cached_over_decoded", "raygen cached", "raygen disk"),
    ):
        if over in samples and under in samples:
            flat[figure] = rate(samples[over]) / rate(samples[under])
    if "raygen disk" in samples and "bare" in samples:
        flat["cpu_over_pyav"] = cpu(samples["raygen disk"]) / cpu(samples["bare"])
    peers = [rate(samples[name]) for name in PEERS if name in samples]
    if peers and "raygen disk" in samples:
        flat["best_peer_over_raygen"] = max(peers) / rate(samples["raygen disk"])
    for rows, peak in peaks.items():
        flat[f"peak_mb_{rows}"] = peak
    if peaks:
        flat["peak_rss_ratio_100k_over_1k"] = peaks[ROWS[1]] / peaks[ROWS[0]]
    return flat


if __name__ == "__main__":
    main()
