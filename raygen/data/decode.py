"""Bytes of a video to one clip of uint8 frames, by PyAV in the calling process.

Frames are chosen by their presentation time, so a variable frame rate and any source rate come out
at the rate asked for; rotation is applied; scaling is libswscale's, to the target size at once.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import av
import av.container
import av.error
import numpy as np
from numpy.typing import NDArray

from raygen.errors import DataError

NO_FRAME = "holds no frame that decodes"

Clip = NDArray[np.uint8]
"""Frames [T, H, W, 3], RGB, 0 to 255."""


@dataclass(frozen=True)
class VideoInfo:
    """What a container says of its video: seconds, frames, frames/s, pixels, degrees."""

    duration: float
    frames: int
    fps: float
    width: int
    height: int
    rotation: int
    codec: str


def probe(data: bytes) -> VideoInfo:
    """Reads the header and one frame. Raises DataError with the reason for refusing it."""
    with _open(data) as (container, stream):
        _, first = next(_frames(container, stream), (0, None))
        if first is None:
            raise DataError(NO_FRAME)
        fps = float(stream.average_rate or stream.guessed_rate or 0)
        if stream.duration is not None and stream.time_base is not None:
            duration = float(stream.duration * stream.time_base)
        elif container.duration is not None:
            duration = container.duration / av.time_base
        else:
            raise DataError("its container states no duration")
        return VideoInfo(
            duration=duration,
            frames=stream.frames or round(duration * fps),
            fps=fps,
            width=first.width,
            height=first.height,
            rotation=first.rotation,
            codec=stream.codec_context.name,
        )


def decode(data: bytes, *, start: float, frames: int, fps: float, size: int) -> Clip:
    """One clip [frames, size, size, 3] that begins `start` seconds into the video.

    Frame k is the one on screen at start + k / fps; the shorter side is scaled to `size` and the
    longer one cropped about its centre. Seeks to the keyframe before `start`. Raises DataError
    where the video is broken or ends before the clip does.
    """
    times = [start + k / fps for k in range(frames)]
    clip = np.empty((frames, size, size, 3), np.uint8)
    with _open(data) as (container, stream):
        done = 0
        for done, image in enumerate(_on_screen(container, stream, times, size), start=1):
            clip[done - 1] = image
    if done < frames:
        raise DataError(f"ends {(frames - done) / fps:.2f} s before the clip at {start:.2f} s does")
    return clip


def decode_all(data: bytes, *, fps: float, size: int, seconds: float) -> Clip:
    """The whole of a short video [T, size, size, 3] at `fps`; `seconds` is what probing said.

    A container may promise more than it holds: the clip ends with the last frame there is.
    """
    times = [k / fps for k in range(frame_count(seconds, fps))]
    with _open(data) as (container, stream):
        images = list(_on_screen(container, stream, times, size))
    return np.stack(images)


def frame_count(seconds: float, fps: float) -> int:
    """Frames that a video of this duration has at `fps`, at least one."""
    return max(1, int(seconds * fps + 1e-3))


@contextmanager
def _open(
    data: bytes,
) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
    try:
        with av.open(io.BytesIO(data), "r", metadata_errors="ignore") as container:
            # A cover picture is a video stream of one attached frame.
            streams = [
                stream
                for stream in container.streams.video
                if not stream.disposition & av.stream.Disposition.attached_pic
            ]
            if not streams:
                raise DataError("has no video stream")
            # Parallelism is one clip a process; FFmpeg's own threads only fight over the cores.
            streams[0].thread_count = 1
            yield container, streams[0]
    except av.error.FFmpegError as error:
        reason = f"is broken or not a video ({error.strerror})" if data else "is empty"
        raise DataError(reason) from None


def _frames(
    container: av.container.InputContainer, stream: av.VideoStream
) -> Iterator[tuple[int, av.VideoFrame]]:
    """Presentation time, in ticks from the start of the stream, and frame."""
    origin = stream.start_time or 0
    for frame in container.decode(stream):
        if frame.pts is not None:
            yield frame.pts - origin, frame


def _on_screen(
    container: av.container.InputContainer,
    stream: av.VideoStream,
    times: list[float],
    size: int,
) -> Iterator[Clip]:
    """The frame [size, size, 3] on screen at each of the ascending `times`, in seconds."""
    tick = float(stream.time_base or 0)
    if times[0] > 0:
        container.seek((stream.start_time or 0) + int(times[0] / tick), stream=stream)
    wanted = iter(times)
    time = next(wanted)
    for frame, until in _shown(container, stream):
        image: Clip | None = None
        # Half a tick of slack: times are floats, presentation times are not.
        while time < until - tick / 2:
            image = _picture(frame, size) if image is None else image
            yield image
            if (following := next(wanted, None)) is None:
                return
            time = following


def _shown(
    container: av.container.InputContainer, stream: av.VideoStream
) -> Iterator[tuple[av.VideoFrame, float]]:
    """Each frame, and the time in seconds at which the next one takes its place."""
    tick = float(stream.time_base or 0)
    before: tuple[int, av.VideoFrame] | None = None
    for at, frame in _frames(container, stream):
        if before is not None:
            yield before[1], at * tick
        before = at, frame
    if before is None:
        raise DataError(NO_FRAME)
    at, last = before
    yield last, at * tick + (last.duration * tick or 1 / float(stream.average_rate or 25))


def _picture(frame: av.VideoFrame, size: int) -> Clip:
    scale = size / min(frame.width, frame.height)
    width, height = (max(size, round(side * scale)) for side in (frame.width, frame.height))
    image = cast(Clip, frame.reformat(width=width, height=height, format="rgb24").to_ndarray())
    left, top = (width - size) // 2, (height - size) // 2
    image = image[top : top + size, left : left + size]
    return np.rot90(image, frame.rotation // 90) if frame.rotation else image
