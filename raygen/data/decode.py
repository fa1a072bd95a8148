"""A span of a video to one clip of uint8 frames, by PyAV in the calling process.

Frames are chosen by their presentation time, so a variable frame rate and any source rate come out
at the rate asked for; times count from the first frame of the video stream. What a frame looks
like is `frames`' part.

Less is decoded than a plain loop over frames decodes. H.264 says which frames no other refers to:
those that are not wanted are skipped. And the decoder is drained once it has all that is wanted,
where it would otherwise work on frames after the clip until it lets go of the last one.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right, insort
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

import av
import av.error
import numpy as np

from raygen.data.container import (
    DEFAULT_LIMITS,
    ENCRYPTED,
    Limits,
    NothingError,
    Source,
    Video,
    measured_duration,
    open_video,
    stated_duration,
)
from raygen.data.frames import Clip, Scaler, check_size
from raygen.errors import DataError
from raygen.sides import Size, sides

__all__ = [
    "CENTRE",
    "Clip",
    "Limits",
    "Source",
    "VideoInfo",
    "decode",
    "decode_all",
    "frame_count",
    "probe",
]

CENTRE = (0.5, 0.5)
PREROLLS = (0.0, 10.0)  # seconds before a clip from which decoding is tried, then the beginning
LOOKAHEAD = 8  # packets by which a frame's successor on screen may come after it
UNKNOWN, PROGRESSIVE = 0, 1  # of AVFieldOrder


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


def probe(source: Source, *, limits: Limits = DEFAULT_LIMITS) -> VideoInfo:
    """Reads the header and one frame; all of the video where no header states the duration.

    Raises DataError with the reason for refusing it.
    """
    with open_video(source, limits) as video:
        _, first = next(_frames(video, []), (0, None))
        if first is None:
            raise NothingError
        duration = stated_duration(video) or measured_duration(source, limits)
        return VideoInfo(
            duration=duration,
            frames=video.stream.frames or max(1, round(duration * video.fps)),
            fps=video.fps,
            width=first.width,
            height=first.height,
            rotation=first.rotation,
            codec=video.codec.name,
        )


def decode(
    source: Source,
    *,
    start: float,
    frames: int,
    fps: float,
    size: Size,
    crop: tuple[float, float] = CENTRE,
    limits: Limits = DEFAULT_LIMITS,
) -> Clip:
    """One clip [frames, H, W, 3] of `size` that begins `start` seconds into the video.

    Frame k is the one on screen at start + k / fps; it is scaled until it covers H and W and what
    juts out is cut, `crop` (0 to 1, from the left and from the top) being the share of it that is
    cut off before. Seeks to the keyframe before `start`, and decodes from the beginning where the
    file cannot be sought. Raises DataError where the video is broken or ends before the clip does.
    """
    times = [start + k / fps for k in range(frames)]
    clip = _clip(source, times, size, crop, limits)
    if (missing := frames - len(clip)) > 0:
        raise DataError(f"ends {missing / fps:.2f} s before the clip at {start:.2f} s does")
    return clip


def decode_all(
    source: Source, *, fps: float, size: Size, seconds: float, limits: Limits = DEFAULT_LIMITS
) -> Clip:
    """The whole of a short video [T, H, W, 3] at `fps`; `seconds` is what probing said.

    A container may promise more than it holds: the clip ends with the last frame there is.
    """
    times = [k / fps for k in range(frame_count(seconds, fps))]
    return _clip(source, times, size, CENTRE, limits)


def frame_count(seconds: float, fps: float) -> int:
    """Frames that a video of this duration has at `fps`, at least one."""
    return max(1, int(seconds * fps + 1e-3))


class _Missed(Exception):
    """A seek did not arrive before the time that it was to."""


def _clip(
    source: Source, times: list[float], size: Size, crop: tuple[float, float], limits: Limits
) -> Clip:
    """The pictures on screen at the ascending `times`, up to where the video ends."""
    for before in PREROLLS:
        if times[0] > before:
            try:
                clip = _span(source, times, size, crop, limits, seek=times[0] - before)
                if len(clip) == len(times):
                    return clip
            except (_Missed, DataError):
                pass  # perhaps only the beginning leads into this file; else that says why not
    return _span(source, times, size, crop, limits)


def _span(
    source: Source,
    times: list[float],
    size: Size,
    crop: tuple[float, float],
    limits: Limits,
    seek: float | None = None,
) -> Clip:
    """As `_clip`, from the keyframe before `seek` seconds on or else from the beginning."""
    with open_video(source, limits) as video:
        aspect = video.stream.sample_aspect_ratio or Fraction(1)
        scaler = Scaler(size, crop, aspect=aspect, megapixels=limits.megapixels)
        ticks = [video.origin + time / video.tick for time in times]
        if seek is not None:
            target = video.origin + seek / video.tick
            video.container.seek(int(target + video.slack), stream=video.stream)
            video.sought = True
        pictures: list[Clip] = []
        for frame, until in _shown(video, ticks):
            wanted = bisect_left(ticks, until - video.slack) - len(pictures)
            if wanted > 0:
                pictures += [scaler(frame)] * wanted
                if len(pictures) == len(times):
                    break
        return np.stack(pictures) if pictures else np.empty((0, *sides(size), 3), np.uint8)


def _shown(video: Video, ticks: list[float]) -> Iterator[tuple[av.VideoFrame, float]]:
    """Each frame, and the tick at which the next one takes its place."""
    before: tuple[float, av.VideoFrame] | None = None
    for at, frame in _frames(video, ticks):
        if before is not None:
            yield before[1], at
        before = at, frame
    if before is None:
        raise NothingError
    at, last = before
    # One tick of Matroska's or FLV's milliseconds stands for no duration.
    lasts = last.duration if last.duration > 1 else video.frame_ticks
    yield last, math.inf if video.cut_short else at + lasts


def _frames(video: Video, ticks: list[float]) -> Iterator[tuple[float, av.VideoFrame]]:
    """Ascending presentation times and frames. Of frames that are not on screen at any of `ticks`
    some or all may be left out.
    """
    codec = video.codec
    # Exact for H.264: no other frame may refer to what is marked there as no reference. Fields
    # are left alone, of which a pair may be half a reference.
    skips = codec.name == "h264" and codec.field_order in (UNKNOWN, PROGRESSIVE)
    last = expected = -math.inf
    for packet, needed in _packets(video, ticks):
        if skips:
            codec.skip_frame = "DEFAULT" if needed or not video.begun else "NONREF"
        try:
            decoded = codec.decode(packet)
        except av.error.FFmpegError as error:
            check_size(codec.width, codec.height, video.limits.megapixels)
            if isinstance(error, MemoryError):
                raise
            if video.begun:
                seconds = (expected - video.origin) * video.tick
                raise DataError(f"is broken {seconds:.1f} s in ({error.strerror})") from None
            continue  # the recording may begin between keyframes
        for frame in decoded:
            check_size(frame.width, frame.height, video.limits.megapixels)
            at: float | None = frame.pts
            if video.by_dts:
                at = None if frame.dts is None else frame.dts - codec.reorder_depth
            if video.sought and not video.begun and (at is None or at > ticks[0] + video.slack):
                raise _Missed
            if at is None:
                at = max(expected, video.origin)
            video.begun = True
            if at >= last:
                last, expected = at, at + (frame.duration or video.frame_ticks)
                yield at, frame


def _packets(
    video: Video, ticks: list[float]
) -> Iterator[tuple[av.Packet[av.VideoStream] | None, bool]]:
    """Packets in decoding order, and whether their frames are on screen at any of `ticks`; at the
    end None, which drains the decoder. Ends where all that follows comes after the last of `ticks`.
    """
    ahead: deque[av.Packet[av.VideoStream]] = deque()
    starts: list[int] = []  # of all frames so far, sorted
    timed = not video.by_dts  # whether every packet has its time
    headless = video.sought  # decoders make grey out of what follows on nothing

    def needed(packet: av.Packet[av.VideoStream]) -> bool:
        if not timed or packet.pts is None:
            return True
        following = bisect_right(starts, packet.pts)
        if following == len(starts):
            return True
        until = starts[following]
        return bisect_left(ticks, packet.pts - video.slack) < bisect_left(
            ticks, until - video.slack
        )

    for packet in video.container.demux(video.stream):
        if not packet.size:  # PyAV's last, or a repetition of the frame before
            continue
        headless = headless and not packet.is_keyframe
        if headless:
            continue
        if not video.begun and packet.has_sidedata("encryption_info"):
            raise DataError(ENCRYPTED)
        ahead.append(packet)
        if packet.pts is None:
            timed = False
        elif not packet.is_discard:
            insort(starts, packet.pts)
        # No frame is shown before it is decoded.
        if timed and video.begun and ticks and (packet.dts or 0) > ticks[-1] + video.slack:
            while ahead and not needed(ahead[-1]):
                ahead.pop()
            video.cut_short = True
            break
        if len(ahead) > LOOKAHEAD:
            yield ahead[0], needed(ahead.popleft())
    for packet in ahead:
        yield packet, needed(packet)
    yield None, True
