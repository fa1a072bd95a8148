"""Frames and times by the ffmpeg program, to hold the decoder of this package against."""

from __future__ import annotations

import shutil
import subprocess
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from raygen.data.decode import Clip

needs_ffmpeg = pytest.mark.skipif(
    shutil.which("ffmpeg") is None, reason="no ffmpeg program (apt-get install ffmpeg)"
)


def clip(path: Path, times: list[float], size: int) -> Clip:
    """What ffmpeg has on screen at each of `times`, counted from its first frame.

    Every frame is decoded and turned upright by ffmpeg's own defaults, then scaled as this package
    scales and cropped about the centre.
    """
    frames = _frames(path, size)
    begin = _times(path)
    shown = [max(k for k, at in enumerate(begin) if at <= time + 5e-4) for time in times]
    return frames[shown]


def psnr(ours: Clip, theirs: Clip) -> float:
    """Of the worst frame, dB."""
    error = (ours.astype(np.float64) - theirs.astype(np.float64)) ** 2
    return float(10 * np.log10(255**2 / max(error.mean((1, 2, 3)).max(), 1e-6)))


def _frames(path: Path, size: int) -> Clip:
    with av.open(str(path), metadata_errors="ignore") as container:
        stream = container.streams.video[0]
        first = next(container.decode(stream))
        width, height = first.width, first.height
        aspect = Fraction(width) * (stream.sample_aspect_ratio or 1) / height
        turned = first.rotation % 180 != 0
        unspecified = first.colorspace == 2
        subsampled = "420" in first.format.name or "422" in first.format.name
    wide, high = max(size, round(size * aspect)), max(size, round(size / aspect))
    if turned:
        wide, high = high, wide
    scale = f"scale={wide}:{high}:flags=area+accurate_rnd+full_chroma_int"
    if unspecified:
        scale += ":in_color_matrix=" + ("bt709" if width >= 1280 or height > 576 else "bt601")
    if subsampled and _probed(path, "frame=chroma_location")[0] == "left":
        # libswscale reads the position off the frame since FFmpeg 8, before it had to be told.
        scale += ":in_h_chr_pos=0:in_v_chr_pos=128"
    left, top = (wide - size) // 2, (high - size) // 2
    crop = f"crop={size}:{size}:{left}:{top}:exact=1"
    command = f"ffmpeg -v error -nostdin -i {path} -an -vf {scale},{crop},format=rgb24"
    command += " -vsync passthrough -f rawvideo -"
    output = subprocess.run(command.split(), check=True, capture_output=True).stdout
    return np.frombuffer(output, np.uint8).reshape(-1, size, size, 3)


def _times(path: Path) -> list[float]:
    # Of AVI's last frames ffmpeg cannot tell the time.
    stated = [t for t in _probed(path, "frame=best_effort_timestamp_time") if t != "N/A"]
    times = [float(time) for time in stated]
    return [time - times[0] for time in times]


def _probed(path: Path, entry: str) -> list[str]:
    command = f"ffprobe -v error -select_streams v:0 -of csv=p=0 -show_entries {entry} {path}"
    output = subprocess.run(command.split(), check=True, capture_output=True).stdout
    lines = output.decode(errors="replace").splitlines()
    return [line.split(",")[0] for line in lines if line[:1].isalnum()]
