"""What engineers use for video today, each as they would write it, in processes of its own.

Every one makes the same clips, at the spans that raygen's plan draws, and sees to it that each
worker process counts the clips it has made in a file named by its process id. It goes on until it
is killed. All scale the shorter side and cut the centre, with one thread a worker.
"""

from __future__ import annotations

import functools
import io
import itertools
import json
import multiprocessing
import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import av
import numpy as np
import numpy.typing as npt
from av.video.reformatter import VideoReformatter

from raygen.data.plan import Plan

Clip = npt.NDArray[np.uint8]
"""[T, size, size, 3], RGB."""

BATCH = 16
ENDLESS = 1 << 40


@dataclass(frozen=True)
class Video:
    """`seconds` long, `width` and `height` in pixels."""

    uri: str
    seconds: float
    width: int
    height: int


@dataclass(frozen=True)
class Job:
    """Clips of `frames` frames at `fps`, by `workers` processes; `tally` is the counts' folder."""

    videos: list[Video]
    shards: list[str]
    frames: int
    size: int
    fps: float
    workers: int
    seed: int
    tally: str

    @classmethod
    def read(cls, path: str) -> Job:
        fields = json.loads(Path(path).read_text())
        return cls(**fields | {"videos": [Video(**video) for video in fields["videos"]]})

    def span(self, position: int) -> tuple[Video, float]:
        """What stands at `position` of the plan: a video, and where in it the clip begins."""
        span = Plan(len(self.videos), self.seed).span(position)
        video = self.videos[span.row]
        return video, self.begin(video.seconds, span.start)

    def begin(self, seconds: float, share: float) -> float:
        spare = max(0, int(seconds * self.fps + 1e-3) - self.frames)
        return int(share * (spare + 1)) / self.fps

    def times(self, start: float) -> list[float]:
        return [start + k / self.fps for k in range(self.frames)]

    def scaled(self, width: int, height: int) -> tuple[int, int]:
        """Width and height once the shorter side is `size`."""
        scale = self.size / min(width, height)
        return max(self.size, round(width * scale)), max(self.size, round(height * scale))

    def cut(self, clip_THWC: Clip) -> Clip:
        _, height, width, _ = clip_THWC.shape
        top, left = (height - self.size) // 2, (width - self.size) // 2
        return clip_THWC[:, top : top + self.size, left : left + self.size]

    def count(self) -> None:
        """One more clip of this process."""
        _tally(self.tally, os.getpid())[0] += 1


@functools.cache
def _tally(folder: str, pid: int) -> Any:
    return np.memmap(Path(folder) / str(pid), np.int64, "w+", shape=(1,))


def pyav(source: str | bytes, start: float, job: Job) -> Clip:
    """The plain loop: to the keyframe before, frames by their time, no further than the last."""
    wanted = job.times(start)
    pictures: list[Clip] = []
    # A reformatter that is kept, and without threads: frame.reformat() takes 1.7 times as long.
    reformatter = VideoReformatter()
    with av.open(io.BytesIO(source) if isinstance(source, bytes) else source, "r") as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        origin, tick = stream.start_time or 0, float(stream.time_base or 1)
        container.seek(origin + int(start / tick), stream=stream)
        width, height = job.scaled(stream.width, stream.height)
        half = 0.5 / float(stream.average_rate or 25)
        for frame in container.decode(stream):
            at = ((frame.pts or 0) - origin) * tick + half
            if at >= wanted[len(pictures)]:
                scaled = reformatter.reformat(frame, width, height, "rgb24", threads=1)
                picture = cast(Clip, scaled.to_ndarray())
                while len(pictures) < len(wanted) and at >= wanted[len(pictures)]:
                    pictures.append(picture)
                if len(pictures) == len(wanted):
                    break
    return job.cut(np.stack(_padded(pictures, job)))


def _padded(pictures: list[Clip], job: Job) -> list[Clip]:
    """The last picture again, where the video ends before the clip does."""
    return pictures + pictures[-1:] * (job.frames - len(pictures))


def from_disk(position: int, job: Job) -> Clip:
    video, start = job.span(position)
    return pyav(video.uri, start, job)


def from_s3(position: int, job: Job, client: Any) -> Clip:
    video, start = job.span(position)
    bucket, _, key = video.uri.removeprefix("s3://").partition("/")
    return pyav(client.get_object(Bucket=bucket, Key=key)["Body"].read(), start, job)


def bare(job: Job) -> None:
    """A pool of processes that does nothing else: the ceiling."""
    _pool(_bare, job)


def bare_s3(job: Job) -> None:
    """The same on bytes that boto3 fetches."""
    _pool(_bare_s3, job)


def _pool(target: Any, job: Job) -> None:
    spawn = multiprocessing.get_context("spawn")
    processes = [spawn.Process(target=target, args=(job, k)) for k in range(job.workers)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()


def _bare(job: Job, worker: int) -> None:
    for position in itertools.count(worker, job.workers):
        from_disk(position, job)
        job.count()


def _bare_s3(job: Job, worker: int) -> None:
    import boto3

    client = boto3.client("s3")
    for position in itertools.count(worker, job.workers):
        from_s3(position, job, client)
        job.count()


class MapStyle:
    """A map-style dataset of PyTorch over `job`'s plan, which is in random order already."""

    def __init__(self, job: Job) -> None:
        self.job = job

    def __len__(self) -> int:
        return ENDLESS

    def __getitem__(self, position: int) -> Clip:
        clip = self.clip(*self.job.span(position))
        self.job.count()
        return clip

    def clip(self, video: Video, start: float) -> Clip:
        return pyav(video.uri, start, self.job)


class Decord(MapStyle):
    """decord scales while it decodes, and counts in frames."""

    def clip(self, video: Video, start: float) -> Clip:
        import decord

        width, height = self.job.scaled(video.width, video.height)
        reader = decord.VideoReader(video.uri, width=width, height=height, num_threads=1)
        rate = reader.get_avg_fps()
        frames = [round(time * rate) for time in self.job.times(start)]
        clip = reader.get_batch([min(frame, len(reader) - 1) for frame in frames]).asnumpy()
        return self.job.cut(clip)


class OpenCV(MapStyle):
    """cv2.VideoCapture: to the time, then frame after frame; only those wanted are converted."""

    def clip(self, video: Video, start: float) -> Clip:
        import cv2

        job = self.job
        cv2.setNumThreads(1)
        capture = cv2.VideoCapture(video.uri, cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
        rate = capture.get(cv2.CAP_PROP_FPS)
        first = round(start * rate)
        if first:
            capture.set(cv2.CAP_PROP_POS_MSEC, 1000 * first / rate)
        wanted = [round(time * rate) for time in job.times(start)]
        pictures: list[Clip] = []
        for number in itertools.count(first):
            if not capture.grab():
                break
            if number == wanted[len(pictures)]:
                _, picture = capture.retrieve()
                size = job.scaled(picture.shape[1], picture.shape[0])
                picture = cv2.resize(picture, size, interpolation=cv2.INTER_LINEAR)
                picture = cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)
                while len(pictures) < job.frames and number == wanted[len(pictures)]:
                    pictures.append(picture)
                if len(pictures) == job.frames:
                    break
        capture.release()
        return job.cut(np.stack(_padded(pictures, job)))


def dataloader(job: Job) -> None:
    """PyTorch's DataLoader over PyAV."""
    _load(MapStyle(job))


def decord(job: Job) -> None:
    """PyTorch's DataLoader over decord."""
    _load(Decord(job))


def opencv(job: Job) -> None:
    """PyTorch's DataLoader over OpenCV."""
    _load(OpenCV(job))


def _load(dataset: Any) -> None:
    from torch.utils.data import DataLoader

    _consume(
        DataLoader(
            dataset, batch_size=BATCH, num_workers=dataset.job.workers, persistent_workers=True
        )
    )


def webdataset(job: Job) -> None:
    """WebDataset: mp4 and json side by side in tar shards, in its own loader."""
    import webdataset as wds

    rng = np.random.default_rng()

    def clip(sample: dict[str, Any]) -> Clip:
        start = job.begin(json.loads(sample["json"])["seconds"], rng.random())
        made = pyav(sample["mp4"], start, job)
        job.count()
        return made

    dataset = wds.WebDataset(job.shards, resampled=True, shardshuffle=False)
    dataset = dataset.shuffle(4 * BATCH).map(clip).batched(BATCH)
    _consume(wds.WebLoader(dataset, batch_size=None, num_workers=job.workers))


def ray_data(job: Job) -> None:
    """Ray Data's own way: paths, map_batches in a pool of actors, iter_batches."""
    import ray.data

    class Clips:
        def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
            clips = []
            for position in batch["position"]:
                clips.append(from_disk(int(position), job))
                job.count()
            return {"clip": np.stack(clips)}

    ray.init(
        address="local",
        num_cpus=job.workers,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
    )
    ray.data.DataContext.get_current().enable_progress_bars = False
    # More than are made before the end; 200 blocks, as Ray Data cuts them itself.
    dataset = ray.data.from_items([{"position": position} for position in range(100_000)])
    dataset = dataset.map_batches(
        Clips, batch_size=BATCH, compute=ray.data.ActorPoolStrategy(size=job.workers)
    )
    _consume(dataset.iter_batches(batch_size=BATCH))


def _consume(batches: Iterable[Any] | Iterator[Any]) -> None:
    for _ in batches:
        pass


PEERS = {
    "bare": bare,
    "bare s3": bare_s3,
    "dataloader": dataloader,
    "decord": decord,
    "opencv": opencv,
    "webdataset": webdataset,
    "ray data": ray_data,
}


def main() -> None:
    name, path = sys.argv[1:]
    PEERS[name](Job.read(path))
