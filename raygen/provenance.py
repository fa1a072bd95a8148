"""A file's clip, and what its watermark says.

    read = verify("clip.mp4")
    read.present, read.digest            # True, "0f3a91c2"

Files of any origin: what cannot be read is a DataError, and no more than FRAMES frames are.
"""

from __future__ import annotations

import io
from itertools import islice

import av
import numpy as np
from PIL import Image, UnidentifiedImageError

from raygen.data import store
from raygen.errors import DataError
from raygen.watermark import Clip, Found, detect

FRAMES = 256  # that are looked at, from the first on
PIXELS = 1 << 28  # of all of them


def verify(uri: str) -> Found:
    """What the watermark of a file or object says. Raises StorageError and DataError."""
    return detect(read_clip(store.read_bytes(uri), uri))


def read_clip(data: bytes, uri: str = "the file") -> Clip:
    """The frames [T,H,W,3] of a video, an animation, a picture or an .npy of one clip."""
    try:
        if data.startswith(b"\x93NUMPY"):
            return _array(data)
        try:
            return _pictures(data)
        except UnidentifiedImageError:
            return _video(data)
    except (av.FFmpegError, OSError, ValueError, EOFError, Image.DecompressionBombError) as error:
        reason = " ".join(str(error).split())[:100]
        raise DataError(f"{uri} is no clip that can be read: {reason}", uri) from None


def _array(data: bytes) -> Clip:
    clip = np.load(io.BytesIO(data), allow_pickle=False)
    clip = clip[0] if clip.ndim == 5 else clip
    if clip.dtype != np.uint8 or clip.ndim != 4 or clip.shape[3] != 3 or not clip.size:
        raise ValueError(f"{clip.dtype} {list(clip.shape)} is no uint8 [T,H,W,3]")
    found: Clip = clip[:FRAMES]
    return found


def _pictures(data: bytes) -> Clip:
    frames = []
    with Image.open(io.BytesIO(data)) as image:
        if image.width * image.height * min(getattr(image, "n_frames", 1), FRAMES) > PIXELS:
            raise ValueError("it is too large")
        for index in range(min(getattr(image, "n_frames", 1), FRAMES)):
            image.seek(index)
            frames.append(np.asarray(image.convert("RGB")))
    return np.stack(frames)


def _video(data: bytes) -> Clip:
    with av.open(io.BytesIO(data), "r") as container:
        if not container.streams.video:
            raise ValueError("it has no video")
        context = container.streams.video[0].codec_context
        context.thread_count = 1
        if context.width * context.height * 8 > PIXELS:
            raise ValueError("it is too large")
        count = max(8, min(FRAMES, PIXELS // max(1, context.width * context.height)))
        frames = [
            frame.to_ndarray(format="rgb24") for frame in islice(container.decode(video=0), count)
        ]
    if not frames:
        raise ValueError("it has no frame")
    return np.stack(frames)
