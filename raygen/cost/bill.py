"""What work costs, as the work itself sees it: a bill that runs on, and a purse to pay from.

A purse is one trial's view of an accountant, in this process or, as an actor, in another.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol


@dataclass(frozen=True)
class Bill:
    """Dollars spent by now, `rate` more a second, and the sum, infinite for none, at which the work
    is to be over; `stop` says why it is to stop now, and is empty while it may go on. Nodes may be
    asked for while it may `grow`.
    """

    dollars: float = 0.0
    rate: float = 0.0
    limit: float = math.inf
    stop: str = ""
    grow: bool = True

    def after(self, seconds: float) -> float:
        """Dollars, so many seconds later."""
        return self.dollars + self.rate * seconds


NOTHING = Bill()


class Accounts(Protocol):
    """What a purse asks for; see raygen.cost.accountant.Accountant."""

    def bill(self, trial: str | None = None) -> Bill:
        """Of one trial, or of everything."""

    def hold(self, trial: str, demands: Mapping[str, Mapping[str, float]]) -> None:
        """A trial's resources on each node from now on."""

    def release(self, trial: str) -> None:
        """A trial holds nothing any more."""

    def lost(self, trial: str, since: float) -> None:
        """What a trial did since then was in vain."""

    def notes(self) -> list[str]:
        """New lines that a user should read."""


class Purse:
    """What a training pays from. With `trial` set it sees that trial's share, up to `dollars`."""

    def __init__(
        self, accounts: Accounts, owner: str, *, trial: bool = False, dollars: float | None = None
    ) -> None:
        self._accounts, self._owner = accounts, owner
        self._trial, self._dollars = trial, dollars

    def bill(self) -> Bill:
        """Now."""
        if not self._trial:
            return self._accounts.bill()
        bill = self._accounts.bill(self._owner)
        return bill if self._dollars is None else replace(bill, limit=self._dollars)

    def hold(self, nodes: Sequence[str], each: Mapping[str, float]) -> None:
        """Books a worker on each of `nodes` (Ray's ids, one a worker) with these resources."""
        counts = {node: list(nodes).count(node) for node in nodes}
        demands = {
            node: {kind: amount * count for kind, amount in each.items()}
            for node, count in counts.items()
        }
        self._accounts.hold(self._owner, demands)

    def release(self) -> None:
        """Nothing is held any more."""
        self._accounts.release(self._owner)

    def lost(self, since: float) -> None:
        """What was done since `since`, Unix seconds, was in vain."""
        self._accounts.lost(self._owner, since)

    def notes(self) -> list[str]:
        """What the accountant has to say to a user; a trial leaves that to its search."""
        return [] if self._trial else self._accounts.notes()
