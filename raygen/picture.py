"""A picture that a user gives, as the first frame of a clip.

frame_HWC = picture.read("first.png", config.data.size)
"""

from __future__ import annotations

from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from raygen.errors import ConfigError
from raygen.sides import Size, sides

LARGEST_SIDE = 8192  # pixels of a picture that is read
# Of Pillow's many readers: others fail in ways of their own, and one runs a program.
PICTURES = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")


def read(source: str | BinaryIO, size: Size) -> NDArray[np.uint8]:
    """The middle of a picture, uint8 [H, W, 3] of that `size`. Raises ConfigError.

    `source`: a path, or the picture itself as an open file; one of PICTURES.
    """
    what = source if isinstance(source, str) else "the image"
    try:
        with Image.open(source, formats=PICTURES) as image:
            if max(image.size) > LARGEST_SIDE:  # a few bytes can stand for gigabytes
                raise ConfigError(f"{what} has sides above {LARGEST_SIDE} pixels", "image")
            upright = ImageOps.exif_transpose(image).convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        reason = getattr(error, "strerror", None) or "no picture that can be read"
        raise ConfigError(f"cannot read {what}: {reason}", "image") from None
    return np.asarray(ImageOps.fit(upright, sides(size)[::-1], Image.Resampling.BOX))
