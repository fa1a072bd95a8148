"""Decode once, read many: short videos whole, in the memory of the actor that decodes them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from raygen.data.decode import Clip


class ClipCache:
    """Least recently used videos go first once `limit` bytes are held."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.held = 0
        self._clips: OrderedDict[str, Clip] = OrderedDict()

    def get(self, key: str, make: Callable[[], Clip]) -> Clip:
        """The clip under `key`, from `make` where it is not held; a failure is not kept."""
        if key in self._clips:
            self._clips.move_to_end(key)
            return self._clips[key]
        clip = self._clips[key] = make()
        self.held += clip.nbytes
        while self.held > self.limit:
            self.held -= self._clips.popitem(last=False)[1].nbytes
        return clip
