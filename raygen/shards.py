"""This rank's part of a network's state, copied to CPU memory while training stands still.

What follows, writing and sending it, happens beside the training, so a full disk or a slow bucket
is met by a thread and not by a rank in the middle of DeepSpeed's collective calls.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import Any

from deepspeed.runtime.checkpoint_engine import TorchCheckpointEngine
from torch import Tensor


def capture(engine: Any, tag: str) -> dict[str, Any]:
    """File name (as in `tag`/x_optim_states.pt) to what the DeepSpeed engine would save there.

    Collective. The tensors are copies: the next step does not change them.
    """
    taken = _Taken()
    with taken.instead_of_files(engine):
        engine.save_checkpoint(".", tag=tag, save_latest=False)
    return taken.states


class _Taken(TorchCheckpointEngine):  # type: ignore[misc]
    """Where DeepSpeed leaves its states instead of in files."""

    def __init__(self) -> None:
        super().__init__()
        self.states: dict[str, Any] = {}

    @contextmanager
    def instead_of_files(self, engine: Any) -> Iterator[None]:
        kept = engine.checkpoint_engine
        engine.checkpoint_engine = self
        # It would put a script for other tools beside every checkpoint.
        engine._copy_recovery_script = lambda save_path: None
        try:
            yield
        finally:
            engine.checkpoint_engine = kept

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        pass

    def save(self, state_dict: Any, path: str) -> None:
        self.states[str(PurePosixPath(path))] = _copied(state_dict)


def _copied(state: Any) -> Any:
    if isinstance(state, Tensor):
        # A view would be written with all of the storage behind it.
        return state.detach().to("cpu", copy=True).contiguous()
    if isinstance(state, Mapping):
        return {key: _copied(value) for key, value in state.items()}
    if isinstance(state, list):
        return [_copied(value) for value in state]
    if type(state) is tuple:
        return tuple(_copied(value) for value in state)
    return state
