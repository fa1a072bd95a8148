"""Global batches dealt in the plan's order, whatever could not be decoded and whoever trains.

Tasks decode runs of positions, in any order and on any machine. Here is the arithmetic of what
comes back: batch k is the next `batch` good clips of the plan, so every good clip of an epoch is
dealt exactly once and the batches are the same at any number of workers. Knows nothing of Ray.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Piece:
    """The clips of `positions`, ascending, in the block behind `ref`."""

    ref: Any
    positions: tuple[int, ...]


@dataclass(frozen=True)
class Deal:
    """One global batch; `cursor` is the position after the last that it has consumed."""

    pieces: tuple[Piece, ...]
    cursor: int

    def share(self, rank: int, world_size: int) -> tuple[Piece, ...]:
        """The rank's part: as many clips as any other's, in the batch's order."""
        each = sum(len(piece.positions) for piece in self.pieces) // world_size
        skip, left, mine = rank * each, each, []
        for piece in self.pieces:
            part = piece.positions[skip : skip + left]
            skip = max(0, skip - len(piece.positions))
            left -= len(part)
            if part:
                mine.append(Piece(piece.ref, part))
        return tuple(mine)


@dataclass
class Dealing:
    """Tasks of `each` positions from `cursor` on; `ahead` clips may be decoded or under way."""

    cursor: int
    batch: int
    each: int
    ahead: int
    refused: dict[int, str] = field(default_factory=dict)  # catalogue row -> reason

    def __post_init__(self) -> None:
        self._under_way: set[int] = set()
        self._verdicts: dict[int, list[int]] = {}
        self._next_task = self.cursor  # the first position of the first task without a verdict
        self._good: deque[int] = deque()  # positions of clips decoded, their block not yet here
        self._dealable: deque[Piece] = deque()
        self._waiting = 0  # good clips, in `_good`, `_dealable` or `_verdicts`

    @property
    def held(self) -> int:
        """Clips that are decoded, or being decoded, and not dealt."""
        return len(self._under_way) * self.each + self._waiting

    @property
    def _in_order(self) -> int:
        """Clips held that follow the cursor without a gap."""
        return self._waiting - sum(map(len, self._verdicts.values()))

    def may_start(self, first: int) -> bool:
        """Whether the task that begins at `first` may decode now; it counts as begun then.

        What is held may all come after the next task in order. That one may start whenever the
        workers could be waiting for it.
        """
        needed = first <= self._next_task and self._in_order < self.batch
        if needed or self.held < self.ahead:
            self._under_way.add(first)
            return True
        return False

    def decoded(self, first: int, good: list[int], refused: Mapping[int, str]) -> None:
        """The verdict on the task at `first`: its good positions, and rows it could not decode.

        It precedes the task's block. A task that is run once more says nothing new.
        """
        self._under_way.discard(first)
        self.refused.update(refused)
        if first < self._next_task or first in self._verdicts:
            return
        self._verdicts[first] = good
        self._waiting += len(good)
        while self._next_task in self._verdicts:
            self._good.extend(self._verdicts.pop(self._next_task))
            self._next_task += self.each

    def arrived(self, ref: Any, rows: int) -> None:
        """The next block in order, of `rows` clips."""
        if rows:
            positions = tuple(self._good.popleft() for _ in range(rows))
            self._dealable.append(Piece(ref, positions))

    def deal(self) -> Deal | None:
        """The next global batch, once all of it is here."""
        if sum(len(piece.positions) for piece in self._dealable) < self.batch:
            return None
        pieces, left = [], self.batch
        while left:
            piece = self._dealable.popleft()
            pieces.append(Piece(piece.ref, piece.positions[:left]))
            if len(piece.positions) > left:
                self._dealable.appendleft(Piece(piece.ref, piece.positions[left:]))
            left -= len(pieces[-1].positions)
        self._waiting -= self.batch
        self.cursor = pieces[-1].positions[-1] + 1
        return Deal(tuple(pieces), self.cursor)
