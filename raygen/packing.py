"""States on their way: to storage as DeepSpeed reads them, to other processes as they lie.

The second costs a tenth of the first, which is what makes a copy every few steps affordable.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save as save_tensors
from torch import Tensor

from raygen.runs import EMA


def serialize(states: Mapping[str, Any]) -> dict[str, bytes]:
    """The bytes of those files, as `Pair.load` reads them; the average (EMA) as safetensors."""
    files = {}
    for name, state in states.items():
        sink = io.BytesIO()
        if name == EMA:
            sink.write(save_tensors(dict(state)))
        else:
            torch.save(state, sink)
        files[name] = sink.getvalue()
    return files


@dataclass(frozen=True)
class Packed:
    """States without a copy: everything but the numbers, and the numbers where they lie."""

    skeleton: bytes
    buffers: list[NDArray[np.uint8]]

    def owned(self) -> Packed:
        """With the numbers in memory of this process."""
        return replace(self, buffers=[buffer.copy() for buffer in self.buffers])


def pack(states: Mapping[str, Any]) -> Packed:
    """For another process (pickle protocol 5); `states` must not change before it has arrived."""
    sink = io.BytesIO()
    buffers: list[NDArray[np.uint8]] = []

    def aside(buffer: Any) -> None:
        buffers.append(np.frombuffer(buffer, np.uint8))

    _Packer(sink, protocol=5, buffer_callback=aside).dump(dict(states))
    return Packed(sink.getvalue(), buffers)


def unpack(packed: Packed) -> dict[str, Any]:
    """What `pack` took."""
    states: dict[str, Any] = pickle.loads(packed.skeleton, buffers=packed.buffers)
    return states


class _Packer(pickle.Pickler):
    def reducer_override(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return NotImplemented
        numbers: Any = value.reshape(-1).view(torch.uint8).numpy()
        return _tensor, (pickle.PickleBuffer(numbers), value.dtype, tuple(value.shape))


def _tensor(numbers: Any, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    if 0 in shape:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(bytearray(numbers), dtype=dtype).reshape(shape)
