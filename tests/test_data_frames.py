"""Colours, transparency and shapes of single frames, against arithmetic."""

from __future__ import annotations

import io
from fractions import Fraction
from typing import cast

import av
import numpy as np
import pytest
from av.video.reformatter import ColorTrc
from numpy.typing import NDArray

from raygen.data import decode
from raygen.data.frames import Clip, Scaler
from raygen.errors import DataError

CENTRE = (0.5, 0.5)


def scale(
    frame: av.VideoFrame, size: int = 32, aspect: Fraction = Fraction(1), megapixels: float = 40
) -> Clip:
    return Scaler(size, CENTRE, aspect=aspect, megapixels=megapixels)(frame)


def plain(
    form: str, levels: tuple[int, ...], *, width: int = 64, height: int = 64, **tags: int
) -> av.VideoFrame:
    """A frame of one colour, `levels` being those of its planes."""
    frame = av.VideoFrame(width, height, form)
    for plane, level in zip(frame.planes, levels, strict=True):
        unit = level.to_bytes(2, "little") if "10" in form or "16" in form else bytes([level])
        plane.update(unit * (plane.buffer_size // len(unit)))
    for name, value in tags.items():
        setattr(frame, name, value)
    return frame


def rgb(y: float, cb: float, cr: float, *, kr: float, kb: float, full: bool) -> NDArray[np.float64]:
    """ITU-R BT.601 and BT.709, from levels of 8 bits."""
    luma = y / 255 if full else (y - 16) / 219
    blue, red = ((c - 128) / (255 if full else 224) for c in (cb, cr))
    r, b = luma + 2 * (1 - kr) * red, luma + 2 * (1 - kb) * blue
    g = (luma - kr * r - kb * b) / (1 - kr - kb)
    return 255 * np.clip([r, g, b], 0, 1)


BT601, BT709, BT2020 = (0.299, 0.114), (0.2126, 0.0722), (0.2627, 0.0593)
YCBCR = (120, 100, 160)


@pytest.mark.parametrize("color_range", [0, 1, 2])
@pytest.mark.parametrize(
    ("colorspace", "size", "weights"),
    [
        (1, (64, 64), BT709),
        (5, (64, 64), BT601),
        (6, (1920, 1080), BT601),
        (9, (64, 64), BT2020),
        (2, (720, 576), BT601),
        (2, (1280, 720), BT709),
        (2, (608, 1080), BT709),
        (3, (64, 64), BT601),  # reserved, and met with
    ],
)
def test_matrix_and_range(
    colorspace: int, size: tuple[int, int], weights: tuple[float, float], color_range: int
) -> None:
    tags = {"colorspace": colorspace, "color_range": color_range}
    picture = scale(plain("yuv420p", YCBCR, width=size[0], height=size[1], **tags))
    expected = rgb(*YCBCR, kr=weights[0], kb=weights[1], full=color_range == 2)
    np.testing.assert_allclose(picture.mean((0, 1)), expected, atol=1)


def test_ten_bits() -> None:
    frame = plain("yuv420p10le", (480, 400, 640), colorspace=1, color_range=1)
    expected = rgb(120, 100, 160, kr=BT709[0], kb=BT709[1], full=False)
    np.testing.assert_allclose(scale(frame).mean((0, 1)), expected, atol=1)


@pytest.mark.parametrize(("color_range", "level"), [(0, 126), (1, 128), (2, 126)])
def test_grey_is_stretched_where_it_is_of_limited_range(color_range: int, level: int) -> None:
    picture = scale(plain("gray", (126,), color_range=color_range))
    np.testing.assert_allclose(picture, level, atol=1)


def test_pictures_of_their_own_size_are_converted_without_bias() -> None:
    rng = np.random.default_rng(0)
    frame = av.VideoFrame(64, 64, "yuv420p")
    y = rng.integers(40, 200, (64, 64), dtype=np.uint8)
    for plane, levels in zip(frame.planes, (y, np.uint8(110), np.uint8(150)), strict=True):
        image = np.zeros((plane.height, plane.line_size), np.uint8)
        image[:, : plane.width] = levels
        plane.update(image.tobytes())
    weights = {"kr": BT601[0], "kb": BT601[1]}
    pixels = [rgb(float(level), 110, 150, full=False, **weights) for level in y.ravel()]
    expected = np.stack(pixels).reshape(64, 64, 3)
    difference = scale(frame, size=64) - expected
    assert abs(difference.mean()) < 0.2
    assert abs(difference).max() <= 1.5


def test_fine_stripes_do_not_alias() -> None:
    # Lines of one pixel, ten to one: their mean is grey. Pixels picked out are black or white.
    image = np.zeros((640, 640, 3), np.uint8)
    image[:, ::2] = 255
    picture = scale(av.VideoFrame.from_ndarray(image, format="rgb24"), size=64)
    np.testing.assert_allclose(picture, 127.5, atol=3)


def test_transparency_lets_black_through() -> None:
    image = np.full((64, 64, 4), 200, np.uint8)
    image[:, :32, 3], image[:, 32:, 3] = 255, 0
    picture = scale(av.VideoFrame.from_ndarray(image, format="rgba"))
    np.testing.assert_allclose(picture[:, :15], 200, atol=1)
    np.testing.assert_allclose(picture[:, 17:], 0, atol=1)


def video(form: str, codec: str, pixels: str, images: list[NDArray[np.uint8]], kind: str) -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format=form) as container:
        options = {"auto-alt-ref": "0"} if codec.startswith("libvpx") else {}
        stream = cast(av.VideoStream, container.add_stream(codec, rate=10, options=options))
        stream.height, stream.width = images[0].shape[:2]
        stream.pix_fmt = pixels
        if "a" in pixels and form == "webm":
            stream.metadata["alpha_mode"] = "1"
        for image in images:
            frame = av.VideoFrame.from_ndarray(image, format=kind)
            container.mux(stream.encode(frame.reformat(format=pixels)))
        container.mux(stream.encode())
    return file.getvalue()


@pytest.mark.parametrize(
    ("form", "codec", "pixels"),
    [
        ("webm", "libvpx-vp9", "yuva420p"),
        ("webm", "libvpx", "yuva420p"),
        ("mov", "png", "rgba"),
        ("mov", "prores_ks", "yuva444p10le"),
    ],
)
def test_transparent_videos(form: str, codec: str, pixels: str) -> None:
    image = np.full((64, 64, 4), 200, np.uint8)
    image[:, :32, 3], image[:, 32:, 3] = 255, 0
    data = video(form, codec, pixels, [image] * 5, "rgba")
    clip = decode.decode(data, start=0, frames=4, fps=10, size=32)
    np.testing.assert_allclose(clip[:, :, :12], 200, atol=8)
    np.testing.assert_allclose(clip[:, :, 20:], 0, atol=8)


def test_a_gif() -> None:
    images = [np.full((48, 64, 3), (40 * k, 200, 0), np.uint8) for k in range(5)]
    data = video("gif", "gif", "rgb8", images, "rgb24")
    clip = decode.decode(data, start=0, frames=5, fps=10, size=32)
    assert decode.probe(data).duration == pytest.approx(0.5, abs=0.11)
    np.testing.assert_allclose(clip[..., 0].mean((1, 2)), [0, 40, 80, 120, 160], atol=25)


@pytest.mark.parametrize(
    ("width", "height", "aspect"),
    [
        (33, 47, Fraction(1)),
        (1, 1, Fraction(1)),
        (64, 48, Fraction(4, 3)),
        (64, 48, Fraction(2, 3)),
    ],
)
def test_any_shape_is_cut_to_a_square(width: int, height: int, aspect: Fraction) -> None:
    frame = plain("yuv444p", (120, 128, 128), width=width, height=height)
    picture = scale(frame, aspect=aspect)
    assert picture.shape == (32, 32, 3)
    np.testing.assert_allclose(picture, 121, atol=2)


def test_a_strip_is_refused() -> None:
    with pytest.raises(DataError, match="too narrow a strip"):
        scale(plain("yuv444p", (120, 128, 128), width=8000, height=2), size=256, megapixels=40)


def test_a_matrix_that_cannot_be_converted_is_refused() -> None:
    with pytest.raises(DataError, match=r"has colours that cannot be converted \("):
        scale(plain("yuv420p", YCBCR, colorspace=14))  # ICtCp


def pq(nits: float) -> int:
    """SMPTE ST 2084, 10 bits of limited range."""
    y = (nits / 1e4) ** 0.1593017578125
    signal: float = ((0.8359375 + 18.8515625 * y) / (1 + 18.6875 * y)) ** 78.84375
    return round(64 + 876 * signal)


def grey(level: int, transfer: ColorTrc) -> float:
    frame = plain("yuv420p10le", (level, 512, 512), colorspace=9, color_range=1, color_trc=transfer)
    picture = scale(frame).astype(np.float64)
    assert picture.std((0, 1)).max() < 1
    assert np.ptp(picture.mean((0, 1))) <= 2, "grey stays grey"
    return float(picture.mean())


def test_pq_keeps_mid_tones_and_bends_highlights() -> None:
    # 18 % of diffuse white on a display of gamma 2.4: 255 x 0.18 ** (1 / 2.4) = 125.
    assert grey(pq(0.18 * 203), ColorTrc.SMPTE2084) == pytest.approx(125, abs=2)
    white, bright, peak = (grey(pq(n), ColorTrc.SMPTE2084) for n in (203, 600, 1000))
    assert 180 < white < bright < peak
    assert peak == pytest.approx(255, abs=1)
    assert grey(pq(10_000), ColorTrc.SMPTE2084) == 255
    assert grey(64, ColorTrc.SMPTE2084) == 0


def test_hlg_puts_its_white_where_pq_does() -> None:
    # BT.2408: HLG's reference white is 75 % of the signal, and 203 cd/m2 on a display of 1000.
    hlg = grey(round(64 + 876 * 0.75), ColorTrc.ARIB_STD_B67)
    assert hlg == pytest.approx(grey(pq(203), ColorTrc.SMPTE2084), abs=2)
    assert grey(940, ColorTrc.ARIB_STD_B67) == pytest.approx(255, abs=1)


def test_hdr_red_of_bt709_is_red() -> None:
    # Red of BT.709 at 100 cd/m2, in BT.2020: 0.6274, 0.0691, 0.0164 of it.
    r, g, b = (pq(100 * share) for share in (0.6274, 0.0691, 0.0164))
    y = 0.2627 * r + 0.6780 * g + 0.0593 * b
    cb, cr = 512 + (b - y) / 1.8814 * 896 / 876, 512 + (r - y) / 1.4746 * 896 / 876
    levels = (round(y), round(cb), round(cr))
    frame = plain("yuv444p10le", levels, colorspace=9, color_range=1, color_trc=16)
    red, green, blue = scale(frame).mean((0, 1))
    assert red > 150
    assert green < 40
    assert blue < 40
