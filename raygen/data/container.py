"""A video opened: its best stream, what decodes that, and what its container says of time.

What cannot be decoded is refused by a DataError whose text completes "FILE ...".
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

import av
import av.container
import av.error
from av.stream import Discard, Disposition

from raygen.data.frames import check_size
from raygen.errors import DataError

NO_FRAME = "holds no frame that decodes"
ENCRYPTED = "is encrypted"
HEAD = 1 << 16  # bytes
ENCRYPTED_MP4 = b"encv" + bytes(7) + b"\1"  # a sample entry of ISO/IEC 14496-12, 8.12
DEFAULT_FPS = 25.0

Source = bytes | str | BinaryIO
"""A video: its bytes, a local path (libav reads the file itself) or a seekable file object."""


@dataclass(frozen=True)
class Limits:
    """What a video may ask for before it is refused: millions of pixels in a frame."""

    megapixels: float = 40.0


DEFAULT_LIMITS = Limits()


class NothingError(Exception):
    """No frame came out of the decoder."""


@dataclass
class Video:
    """An open container, the stream chosen of it, what decodes that, and how far it has come."""

    container: av.container.InputContainer
    stream: av.VideoStream
    codec: av.VideoCodecContext
    limits: Limits
    tick: float  # seconds
    origin: int  # where the stream begins, in ticks
    sought: bool = False
    begun: bool = False  # whether a frame has come
    cut_short: bool = False  # whether frames were left out after the last time wanted

    @property
    def by_dts(self) -> bool:
        """Whether frames go by decoding times: AVI has no other, and the presentation times that
        libav derives of them are out of order where frames are.
        """
        return self.container.format.name == "avi"

    @property
    def slack(self) -> float:
        """Ticks by which a frame may be early: containers round to ticks, of milliseconds often."""
        return min(0.5, 0.5e-3 / self.tick)

    @property
    def fps(self) -> float:
        """The mean rate, as far as it is known."""
        rate = self.stream.average_rate
        # Where Matroska and FLV state none, it comes out as one frame a millisecond; where frames
        # have no times, as FFmpeg's default.
        if not rate or rate >= 1000 or self.stream.start_time is None:
            rate = self.stream.guessed_rate
        return float(rate or DEFAULT_FPS)

    @property
    def frame_ticks(self) -> float:
        """How long a frame lasts where nothing says so."""
        return 1 / (self.fps * self.tick)


class Undecodable(DataError):
    """What FFmpeg does not decode; frame_bytes: about what a frame takes, 0 where it is not known.

    Its decoders say the same of a broken frame and of one that they found no memory for.
    """

    def __init__(self, message: str, frame_bytes: int) -> None:
        super().__init__(message)
        self.frame_bytes = frame_bytes


class _Reader:
    """A file object that remembers what reading it raised: libav may take it for the end."""

    def __init__(self, source: bytes | BinaryIO) -> None:
        file = io.BytesIO(source) if isinstance(source, bytes) else source
        self.read_file, self.seek, self.tell = file.read, file.seek, file.tell
        self.error: Exception | None = None

    def read(self, size: int) -> bytes:
        try:
            return self.read_file(size)
        except Exception as error:
            self.error = error
            raise


@contextmanager
def open_video(source: Source, limits: Limits) -> Iterator[Video]:
    """Raises DataError for whatever FFmpeg raises in the body, memory included that it cannot have
    (then its MemoryError is the `__context__`); what a file object raises itself passes.
    """
    file = source if isinstance(source, str) else _Reader(source)
    try:
        with _opened(file, limits) as video:
            yield video
    finally:
        if isinstance(file, _Reader) and file.error is not None:
            raise file.error


@contextmanager
def _opened(file: str | _Reader, limits: Limits) -> Iterator[Video]:
    _check_head(file)
    frame_bytes = 0
    pixels = str(int(limits.megapixels * 1.1e6) + (1 << 16))  # of coded frames, which are padded
    try:
        with av.open(
            file,
            "r",
            metadata_errors="ignore",
            # A playlist named .mp4 is not to make this process read other files or hosts.
            options={
                "max_pixels": pixels,
                "protocol_whitelist": "file" if isinstance(file, str) else "none",
            },
        ) as container:
            stream = _best(container)
            check_size(stream.codec_context.width, stream.codec_context.height, limits.megapixels)
            for other in container.streams:
                if other is not stream:
                    other.discard = Discard.all
            codec = _codec(stream)
            codec.options = {"max_pixels": pixels}
            # Parallelism is one clip a process; FFmpeg's own threads only fight over the cores.
            codec.thread_count = 1
            frame_bytes = 2 * codec.width * codec.height
            tick = float(stream.time_base or 1)
            yield Video(container, stream, codec, limits, tick, stream.start_time or 0)
    except NothingError:
        raise Undecodable(NO_FRAME, frame_bytes) from None
    except av.error.FFmpegError as error:
        if isinstance(error, MemoryError):
            raise DataError("is broken or asks for more memory than there is") from None
        reason = f"is broken or not a video ({error.strerror})"
        raise Undecodable(reason, frame_bytes) from None


def _best(container: av.container.InputContainer) -> av.VideoStream:
    """The stream to show: a decodable one, marked as default, the largest."""
    # A cover picture is a video stream of one attached frame.
    streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    if not streams:
        raise DataError("has no video stream")
    decodable = [stream for stream in streams if stream.codec_context is not None]
    if not decodable:
        raise DataError("uses a codec that this FFmpeg cannot decode")
    best = max(
        decodable, key=lambda s: (bool(s.disposition & Disposition.default), s.width * s.height)
    )
    if "enc_key_id" in best.metadata:
        raise DataError(ENCRYPTED)
    return best


def _codec(stream: av.VideoStream) -> av.VideoCodecContext:
    """The stream's decoder; libvpx's where there is transparency, which FFmpeg's own drops."""
    codec = stream.codec_context
    tags = {name.lower(): value for name, value in stream.metadata.items()}
    if tags.get("alpha_mode") == "1" and codec.name in ("vp8", "vp9"):
        name = "libvpx-vp9" if codec.name == "vp9" else "libvpx"
        libvpx = cast(av.VideoCodecContext, av.CodecContext.create(name, "r"))
        libvpx.extradata = codec.extradata
        return libvpx
    return codec


def stated_duration(video: Video) -> float | None:
    """Seconds, by the container's header."""
    stream, container = video.stream, video.container
    if stream.duration is not None and stream.duration > 0:
        return stream.duration * video.tick
    # Matroska and FLV state where the video, or all there is, ends.
    begin = video.origin * video.tick
    tag = re.fullmatch(r"(\d+):(\d+):(\d+\.\d+)", stream.metadata.get("DURATION", ""))
    if tag is not None:
        hours, minutes, seconds = map(float, tag.groups())
        end = 3600 * hours + 60 * minutes + seconds
    else:
        end = (container.duration or 0) / av.time_base
    return end - begin if end > begin else None


def measured_duration(source: Source, limits: Limits) -> float:
    """Seconds, by reading all of the video without decoding it."""
    with open_video(source, limits) as video:
        count, end = 0, float(video.origin)
        for packet in video.container.demux(video.stream):
            if packet.size:
                count += 1
                if packet.pts is not None:
                    end = max(end, packet.pts + (packet.duration or video.frame_ticks))
        return (end - video.origin or count * video.frame_ticks) * video.tick


def _check_head(file: str | _Reader) -> None:
    """Raises DataError for what the first bytes give away."""
    if isinstance(file, str):
        try:
            with Path(file).open("rb") as opened:
                head = opened.read(HEAD)
        except OSError as error:
            raise DataError(f"cannot be read ({error.strerror})") from None
    else:
        file.seek(0)
        head = file.read(HEAD)
        file.seek(0)
    if not head:
        raise DataError("is empty")
    if ENCRYPTED_MP4 in head:
        raise DataError(ENCRYPTED)
