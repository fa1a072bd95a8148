"""Whether a loaded generator works at all: asked before it is published, and before it goes live.

clip_ms = smoke_test(load_generator("exports/tiny"), limit_ms=500)
"""

from __future__ import annotations

import math
import time

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from raygen.errors import ConfigError, ExportError
from raygen.export import Generator

ROUNDS = 3  # the fastest counts: the others were disturbed


def smoke_test(generator: Generator, limit_ms: float = math.inf, uri: str = "") -> float:
    """Milliseconds of wall time that one clip takes here, alone, the fastest of a few.

    Raises ExportError, which names `uri`, where weights or clips are not finite, a clip has not
    the shape that the export states or is one colour throughout, the same seed gives two clips,
    or a clip takes longer than `limit_ms`.
    """
    for name, tensor in generator.module.state_dict().items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise _failed(f"its weights {name} are not all numbers", uri)
    data = generator.data
    expected = (1, data.frames, data.height, data.width, 3)
    clips, elapsed = [], []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        clip_NTHWC, finite = _draw(generator, uri)
        elapsed.append(1000 * (time.perf_counter() - started))
        if not finite:
            raise _failed("its clips are not all numbers", uri)
        clips.append(clip_NTHWC)
    if clips[0].shape != expected:
        raise _failed(f"its clips are {clips[0].shape}, and it states {expected}", uri)
    if clips[0].min() == clips[0].max():
        raise _failed(f"its clips are nothing but grey level {clips[0].min()}", uri)
    if any(not np.array_equal(clips[0], clip) for clip in clips[1:]):
        raise _failed("the same seed gives different clips", uri)
    if min(elapsed) > limit_ms:
        raise _failed(f"a clip takes {min(elapsed):.0f} ms, and {limit_ms:g} are the limit", uri)
    return min(elapsed)


def _draw(generator: Generator, uri: str) -> tuple[npt.NDArray[np.uint8], bool]:
    """A clip [1,T,H,W,3] that is asked for by all the model takes; whether it was finite."""
    kinds, data = generator.conditions.kinds, generator.data
    grey_HWC = np.full((data.height, data.width, 3), 128, np.uint8)
    finite = True

    def look(module: nn.Module, arguments: object, x_BCTHW: Tensor) -> None:
        nonlocal finite
        finite = finite and bool(torch.isfinite(x_BCTHW).all())

    handle = generator.module.register_forward_hook(look)
    try:
        clip_NTHWC = generator.generate(
            [0],
            [0] if "class" in kinds else None,
            text=["a test"] if "text" in kinds else None,
            image=[grey_HWC] if "image" in kinds else None,
            vector=[[0.0] * generator.conditions.vector_dim] if "vector" in kinds else None,
        )
    except (RuntimeError, ValueError, ConfigError) as error:
        reason = " ".join(str(error).split())[:200]
        raise _failed(f"it cannot draw: {reason}", uri) from None
    finally:
        handle.remove()
    return clip_NTHWC, finite


def _failed(reason: str, uri: str) -> ExportError:
    where = f"{uri} " if uri else ""
    return ExportError(f"the generator {where}failed its smoke test: {reason}", uri)
