"""Decoded frames to upright RGB pictures of one size: libswscale's scaling, the colours put right.

A picture is what a player shows. The display matrix is applied (turns and mirror images), pixels
that are not square come out square, the picture is scaled until it covers the size asked for, and
what juts out is cut where `crop` says. Scaling averages areas, so that ten pixels to one does not
alias.

Colour: the range and the matrix are the frame's own. A frame that names no matrix is BT.709 from
1280 pixels of width or 577 of height on and BT.601 below, as in mpv (libswscale: always BT.601).
Grey that says it is of limited range is stretched, which libswscale does not do. HDR (PQ and HLG)
is tone-mapped to BT.709: see `_hdr`. Transparency lets black through.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple, cast

import av
import av.error
import numpy as np
from av.sidedata.sidedata import Type
from av.video.reformatter import ColorRange, Colorspace, ColorTrc, Interpolation, VideoReformatter
from numpy.typing import NDArray

from raygen.errors import DataError
from raygen.sides import Size, sides

Clip = NDArray[np.uint8]
"""Frames [T, H, W, 3], RGB, 0 to 255; a picture is one of them."""

# Without FULL_CHR_H_INT libswscale converts by a short cut that darkens by one and a half levels.
QUALITY = Interpolation.AREA | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
UNSPECIFIED = frozenset({2, 3})  # AVCOL_SPC_UNSPECIFIED and _RESERVED
HDR = frozenset({ColorTrc.SMPTE2084, ColorTrc.ARIB_STD_B67})


class Turn(NamedTuple):
    """How a picture comes upright: first transposed, then mirrored, then turned upside down."""

    transposed: bool = False
    mirrored: bool = False
    flipped: bool = False

    @classmethod
    def of(cls, frame: av.VideoFrame) -> Turn:
        """By the frame's display matrix, to the nearest quarter turn."""
        try:
            matrix = frame.side_data.get(Type.DISPLAYMATRIX)  # type: ignore[call-overload]
        except ValueError:  # side data of a kind that PyAV has no name for
            quarter = round(frame.rotation / 90) % 4
            return (cls(), cls(True, False, True), cls(False, True, True), cls(True, True))[quarter]
        if matrix is None:
            return cls()
        # (x, y) goes to (a x + c y, b x + d y).
        a, b, _, c, d = struct.unpack("=5i", bytes(matrix)[:20])
        if abs(b) + abs(c) > abs(a) + abs(d):
            return cls(True, c < 0, b < 0)
        return cls(False, a < 0, d < 0)

    def __call__(self, picture_HWC: Clip) -> Clip:
        """A view of the picture, upright."""
        if self.transposed:
            picture_HWC = picture_HWC.transpose(1, 0, 2)
        return picture_HWC[:: -1 if self.flipped else 1, :: -1 if self.mirrored else 1]


@dataclass(frozen=True)
class _Recipe:
    """What libswscale is asked for, and what is left to do to the picture it gives."""

    width: int
    height: int
    format: str
    matrix: Colorspace | None
    finish: Callable[[NDArray[np.generic]], Clip] | None


class Scaler:
    """The frames of one stream to pictures; libswscale's tables are kept from frame to frame."""

    def __init__(
        self, size: Size, crop: tuple[float, float], *, aspect: Fraction, megapixels: float
    ) -> None:
        """`size` of the pictures; `crop` the share of what is cut off that is cut off at the
        left and at the top, each in [0, 1]; `aspect` the width of a pixel over its height.
        """
        self.height, self.width = sides(size)
        self.crop, self.aspect, self.megapixels = crop, aspect, megapixels
        self._swscale = VideoReformatter()
        self._recipes: dict[tuple[object, ...], _Recipe] = {}
        self._turn: Turn | None = None

    def __call__(self, frame: av.VideoFrame) -> Clip:
        """The picture [height, width, 3], perhaps a view. Raises DataError for colours that cannot
        be converted, and for frames larger than `megapixels` before or after scaling.
        """
        if self._turn is None:
            self._turn = Turn.of(frame)
        key = (
            frame.width,
            frame.height,
            frame.format.name,
            frame.colorspace,
            frame.color_range,
            frame.color_trc,
        )
        if (recipe := self._recipes.get(key)) is None:
            recipe = self._recipes[key] = self._recipe(frame, self._turn)
        try:
            scaled = self._swscale.reformat(
                frame,
                recipe.width,
                recipe.height,
                recipe.format,
                src_colorspace=recipe.matrix,
                interpolation=QUALITY,
                threads=1,
            )
        except av.error.FFmpegError as error:
            if isinstance(error, MemoryError):
                raise
            raise DataError(f"has colours that cannot be converted ({error.strerror})") from None
        picture = cast(Clip, scaled.to_ndarray())
        if recipe.finish is not None:
            picture = recipe.finish(picture)
        picture = self._turn(picture)
        top, left = (
            int(share * (there - wanted))
            for share, there, wanted in zip(
                self.crop[::-1], picture.shape[:2], (self.height, self.width), strict=True
            )
        )
        return picture[top : top + self.height, left : left + self.width]

    def _recipe(self, frame: av.VideoFrame, turn: Turn) -> _Recipe:
        width, height = frame.width, frame.height
        # As the frame lies: it comes upright once it is small.
        wide, high = (self.height, self.width) if turn.transposed else (self.width, self.height)
        scale = max(wide / (width * self.aspect), Fraction(high, height))
        scaled_width = max(wide, round(width * self.aspect * scale))
        scaled_height = max(high, round(height * scale))
        check_size(width, height, self.megapixels)
        if scaled_width * scaled_height > self.megapixels * 1e6:
            raise DataError(f"is too narrow a strip ({width}x{height} pixels) to cut a clip from")

        alpha = any(component.is_alpha for component in frame.format.components)
        alpha |= frame.format.has_palette
        grey = len(frame.format.components) == 1 and not frame.format.has_palette
        finish: Callable[[NDArray[np.generic]], Clip] | None = None
        form = "rgb24"
        if frame.color_trc in HDR:
            form, finish = "rgb48le", functools.partial(_hdr, ColorTrc(frame.color_trc))
        elif alpha:
            form, finish = "rgba", _on_black
        elif grey and frame.color_range == ColorRange.MPEG:
            finish = _stretched
        matrix = None
        if frame.colorspace in UNSPECIFIED:
            high = width >= 1280 or height > 576
            matrix = Colorspace.ITU709 if high else Colorspace.ITU601
        return _Recipe(scaled_width, scaled_height, form, matrix, finish)


def check_size(width: int, height: int, megapixels: float) -> None:
    """Raises DataError for a frame of more than `megapixels`."""
    if width * height > megapixels * 1e6:
        raise DataError(
            f"has frames of {width}x{height} pixels, more than data.limits.megapixels="
            f"{megapixels:g} allows"
        )


def _on_black(picture_HW4: NDArray[np.generic]) -> Clip:
    colour, alpha = np.split(picture_HW4.astype(np.uint16), [3], axis=-1)
    return ((colour * alpha + 127) // 255).astype(np.uint8)


def _stretched(picture_HW3: NDArray[np.generic]) -> Clip:
    stretched = (picture_HW3.astype(np.float32) - 16) * np.float32(255 / 219)
    return stretched.round().clip(0, 255).astype(np.uint8)


def _hdr(transfer: ColorTrc, picture_HW3: NDArray[np.generic]) -> Clip:
    """PQ or HLG of 16 bits in BT.2020 to BT.709 of 8 bits.

    To light, where 1 is the diffuse white of 203 cd/m2 (ITU-R BT.2408); to BT.709's primaries;
    highlights of up to 1000 cd/m2 bent below white by a Möbius curve that leaves what is darker
    than 0.3 alone (FFmpeg's tonemap=mobius); to the signal of a BT.1886 display, gamma 2.4.
    """
    light = _light(transfer)[picture_HW3]
    if transfer == ColorTrc.ARIB_STD_B67:
        # Scene to display light (BT.2100): the system gamma of 1.2 acts on luminance.
        luminance = light @ BT2020_LUMINANCE
        light = light * luminance[..., None] ** np.float32(0.2) * np.float32(PEAK)
    light = np.maximum(light @ BT2020_TO_BT709.T, 0)
    brightest = light.max(-1, keepdims=True)
    bent = np.where(brightest > KNEE, SLOPE * (brightest + A) / (brightest + B), brightest)
    light *= bent / np.maximum(brightest, np.float32(1e-6))
    return cast(Clip, (255 * light.clip(0, 1) ** np.float32(1 / 2.4)).round().astype(np.uint8))


BT2020_LUMINANCE = np.array([0.2627, 0.6780, 0.0593], np.float32)
BT2020_TO_BT709 = np.array(
    [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]],
    np.float32,
)
PEAK = 1000 / 203
KNEE = 0.3
A = -(KNEE**2) * (PEAK - 1) / (KNEE**2 - 2 * KNEE + PEAK)
B = (KNEE**2 - 2 * KNEE * PEAK + PEAK) / (PEAK - 1)
SLOPE = (B**2 + 2 * B * KNEE + KNEE**2) / (B - A)


@functools.cache
def _light(transfer: ColorTrc) -> NDArray[np.float32]:
    """Light of each of the 65,536 levels: of the display for PQ, of the scene (0 to 1) for HLG."""
    signal = np.linspace(0, 1, 1 << 16)
    if transfer == ColorTrc.ARIB_STD_B67:
        a, b, c = 0.17883277, 0.28466892, 0.55991073
        low, high = signal**2 / 3, (np.exp((signal - c) / a) + b) / 12
        return np.where(signal <= 0.5, low, high).astype(np.float32)
    root = signal ** (1 / 78.84375)
    nits = 1e4 * (np.maximum(root - 0.8359375, 0) / (18.8515625 - 18.6875 * root)) ** (
        1 / 0.1593017578125
    )
    return (nits / 203).astype(np.float32)
