"""What to start, continue or pause next, for the money that is left: no Ray, no clock, no files.

A trial runs from rung to rung, small steps of its levels. Whoever is free gets the piece of work
that promises the most: the expected improvement on the best there is, of a paused trial, a trial
at its rung or a new configuration, once it has run as far as the money left allows; less for what
costs more to run so far, and for what must first be started. tune.outlook expects; `Rules` holds
what was tuned on half of the benchmark's tasks (tests.benchmarks.search).
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from tune.candidates import candidates
from tune.model import Drop, Floats, Shape
from tune.outlook import Fresh, Outlook, Trial
from tune.terms import Config, Job, New, Rules, Space


class Policy:
    """Decides; somebody else runs. Deterministic: the same calls give the same answers."""

    def __init__(
        self,
        space: Space,
        *,
        money: float,
        levels: int,
        workers: int = 4,
        level_dollars: float | None = None,
        restart_dollars: float = 0.0,
        seed: int = 0,
        rules: Rules | None = None,
        first: Sequence[Config] = (),
        perturb: Callable[[Config, np.random.Generator], Config] | None = None,
    ) -> None:
        """A search of `money` dollars in all, over trials of `levels` judged checkpoints each.

        `level_dollars` is what one level costs as far as is known before the first result;
        `first` is tried before what is drawn. With `perturb`, which changes a configuration as a
        training that goes on allows, trials branch.
        """
        self.space, self.money, self.levels, self.workers = space, money, levels, workers
        self.level_dollars, self.restart = level_dollars or 0.0, restart_dollars
        self.seed, self.rules, self.first = seed, rules or Rules(), list(first)
        self.perturb = perturb
        self.trials: list[Trial] = []
        self.decisions = 0
        self.taken: set[str] = set()
        self.shape: Shape | None = None
        self.climbed = 0
        # Until the next result, and the next decision:
        self.outlook: tuple[list[int], Outlook] | None = None
        self.mean_rate: float | None = None
        self.fresh: tuple[int, Outlook, Fresh | None] | None = None
        steps = min(self.rules.steps, levels)
        self.rungs = tuple(round(levels * (k + 1) / steps) for k in range(steps))

    @property
    def spent(self) -> float:
        """Dollars that trials have reported."""
        return sum(t.dollars for t in self.trials)

    @property
    def committed(self) -> float:
        """Dollars that running jobs are expected to cost yet."""
        return sum(self._ahead(t) for t in self.trials if t.until is not None)

    def next(self, left: float) -> Job | None:
        """What a free worker shall do; None: nothing (more) now.

        `left` is what may be spent as the purse knows it, without what is set aside for running
        jobs; the policy keeps to its own account of that too. The job runs from here on.
        """
        choice = self._choose(min(left, self.money - self.spent - self.committed), None)
        if choice is None:
            return None
        self.decisions += 1
        trial, new, until = choice
        if new is not None:
            self._open(new)
            trial = len(self.trials) - 1
        t = self.trials[trial]
        t.until, t.starts, t.fresh = until, t.starts + 1, True
        return Job(trial, t.config, t.level, until, self._ahead(t), t.parent)

    def report(
        self, trial: int, level: int, dollars: float, score: float, left: float = math.inf
    ) -> int | None:
        """A result of a running trial: `dollars` since its last report, `score` (less is better).

        `left` is what may be spent as the purse knows it. Returns the level it is to go on to, or
        None: pause it (or it is whole).
        """
        t = self.trials[trial]
        self.outlook = self.mean_rate = None
        t.dollars += dollars
        t.results[level] = min([score, *t.results.values()])
        t.level, t.fresh = max(t.level, level), False
        if t.until is None or level < t.until:
            return t.until
        t.until = None
        t.over = level >= self.levels
        if not t.over:
            own = self.money - self.spent - self.committed
            choice = self._choose(min(left, own), trial)
            if choice is not None and choice[0] == trial:
                self.decisions += 1
                t.until = choice[2]
        return t.until

    def ended(self, trial: int) -> None:
        """The trial has ended by itself (diverged, failed for good): it cannot be continued."""
        t = self.trials[trial]
        t.until, t.over, self.outlook = None, True, None

    def withdrawn(self, trial: int) -> None:
        """The job was not begun after all: the purse refused it."""
        t = self.trials[trial]
        t.until, t.starts, t.fresh = None, t.starts - 1, False

    def interrupted(self) -> None:
        """Nothing runs (any more): what ran stands where it last reported."""
        for t in self.trials:
            t.until = None

    def best(self) -> int | None:
        """The trial of the best checkpoint."""
        known = [i for i, t in enumerate(self.trials) if t.heard]
        return min(known, key=lambda i: self.trials[i].best, default=None)

    def state(self) -> dict[str, Any]:
        """All there is, as JSON can hold it."""
        return {
            "of": {
                "money": self.money,
                "levels": self.levels,
                "workers": self.workers,
                "level_dollars": self.level_dollars,
                "restart_dollars": self.restart,
                "seed": self.seed,
                "first": self.first,
            },
            "rules": asdict(self.rules),
            "trials": [asdict(t) for t in self.trials],
            "decisions": self.decisions,
            "shape": self.shape and asdict(self.shape),
            "climbed": self.climbed,
        }

    @classmethod
    def restore(cls, space: Space, state: dict[str, Any]) -> Policy:
        """The policy as it was, jobs that ran then running (see `interrupted`); not `perturb`."""
        policy = cls(space, **state["of"], rules=Rules(**state["rules"]))
        for kept in state["trials"]:
            results = {int(level): score for level, score in kept["results"].items()}
            policy.trials.append(Trial(**(kept | {"results": results})))
        policy.taken = {repr(t.config) for t in policy.trials}
        policy.decisions = state["decisions"]
        if state["shape"]:
            policy.shape = Shape(tuple(state["shape"]["length_D"]), state["shape"]["nugget"])
        policy.climbed = state["climbed"]
        return policy

    def _open(self, new: New) -> None:
        t = Trial(new.config, self.space.encode(new.config).tolist(), parent=new.parent)
        if new.parent is not None:
            parent = self.trials[new.parent]
            t.level = t.since = parent.level
            t.results = {parent.level: parent.best}  # its checkpoints begin with that one
        self.trials.append(t)
        self.taken.add(repr(new.config))

    def _rung_after(self, level: int) -> int:
        return self.rungs[bisect.bisect_right(self.rungs, level)]

    def _rate(self, t: Trial) -> float:
        """Dollars a level: its own where it has run, or the mean of all."""
        if t.heard:
            paid = t.dollars - (t.starts - t.fresh) * self.restart
            return max(paid, 0.0) / (t.level - t.since)
        if t.parent is not None:
            return self._rate(self.trials[t.parent])
        if self.mean_rate is None:
            seen = [self._rate(u) for u in self.trials if u.heard]
            self.mean_rate = float(np.mean(seen)) if seen else self.level_dollars
        return self.mean_rate

    def _piece(self, t: Trial) -> float:
        """Dollars from where a trial stands to the next rung."""
        return self._rate(t) * (self._rung_after(t.level) - t.level)

    def _ahead(self, t: Trial) -> float:
        """Dollars from where a running trial was last seen to where it runs to."""
        assert t.until is not None
        return self._rate(t) * (t.until - t.level) + self.restart * t.fresh

    def _choose(self, free: float, here: int | None) -> tuple[int, New | None, int] | None:
        """A paused trial, or a new one (then the number means nothing), or neither.

        And the level to run to. `free` is what may be spent; `here` is the trial that a worker
        still holds: it need not be begun again.
        """
        rng = np.random.default_rng([self.seed, self.decisions])
        known = [i for i, t in enumerate(self.trials) if t.heard]
        first = self.restart + self._rate(Trial({}, [])) * self.rungs[0]
        for i, t in enumerate(self.trials):  # interrupted before its first result
            unheard = t.until is None and not (t.over or t.heard)
            if unheard and self.restart + self._piece(t) <= free:
                return i, None, self._rung_after(t.level)
        if len(self.trials) < self.rules.random or not known:
            waiting = [c for c in self.first if repr(c) not in self.taken]
            config = waiting[0] if waiting else self.space.sample(rng)
            if repr(config) not in self.taken and first <= free:
                return -1, New(0.0, config), self.rungs[0]
            if not known:
                return None
        known, outlook = self.outlook = self.outlook or self._outlook(known)
        best = self._continued(known, outlook, free, here)
        least = self.rules.deep * self.levels * float(np.mean(outlook.rate_N))
        closing = best[0] >= 0 and free < least
        begun = None if closing else self._begun(rng, outlook, free)
        branch = self._branched(known, outlook, free)
        if branch is not None and branch.worth > max(best[0], begun.worth if begun else 0.0):
            return -1, branch, self._rung_after(self.trials[branch.parent or 0].level)
        if begun is not None and begun.worth > best[0]:
            return -1, begun, self.rungs[0]
        if best[0] < 0:
            return None
        return best[1], None, self._rung_after(self.trials[best[1]].level)

    def _continued(
        self, known: list[int], outlook: Outlook, free: float, here: int | None
    ) -> tuple[float, int]:
        """The paused trial that promises the most, its worth before it; -1: there is none."""
        trials = [self.trials[i] for i in known]
        piece_N = np.array([0.0 if t.over else self._piece(t) for t in trials])
        fee_N = np.where(np.array(known) == here, 0.0, self.restart)
        # From the checkpoint of these a branch may yet have to begin.
        needed = {t.parent for t in self.trials if t.until is not None and not t.heard}
        open_N = np.array([not t.over and t.until is None for t in trials])
        open_N &= np.array([i not in needed for i in known])
        open_N &= fee_N + piece_N <= free
        if not open_N.any():
            return -1.0, -1
        level_N, rate_N = outlook.level_N, outlook.rate_N
        to_N = level_N + np.maximum((free - fee_N) / rate_N, 1e-3)
        to_N = np.minimum(to_N, np.maximum(self.levels, level_N))
        gain_N = outlook.going_on(to_N)
        worth_N = gain_N * self._thrift(fee_N, piece_N, fee_N + rate_N * (to_N - level_N))
        n = int(np.where(open_N, worth_N, -1.0).argmax())
        return float(worth_N[n]), known[n]

    def _begun(self, rng: np.random.Generator, outlook: Outlook, free: float) -> New | None:
        """The new configuration that promises the most."""
        # Whoever pauses a trial asks what is next at once: of the same candidates.
        if self.fresh is None or self.fresh[0] != self.decisions or self.fresh[1] is not outlook:
            self.fresh = (
                self.decisions,
                outlook,
                candidates(rng, self.space, self.taken, outlook, self.rules),
            )
        new = self.fresh[2]
        if new is None:
            return None
        rate_M = new.rate_M
        piece_M = rate_M * self.rungs[0]
        able_M = self.restart + piece_M <= free
        if not able_M.any():
            return None
        to_M = np.minimum(np.maximum((free - self.restart) / rate_M, 1.0), self.levels)
        fee_M = np.full(len(rate_M), self.restart)
        gain_M = outlook.begun(new, to_M) * outlook.apart(new.x_MD, self._busy())
        worth_M = gain_M * self._thrift(fee_M, piece_M, fee_M + rate_M * to_M)
        m = int(np.where(able_M, worth_M, -1.0).argmax())
        return New(float(worth_M[m]), new.config_M[m])

    def _branched(self, known: list[int], outlook: Outlook, free: float) -> New | None:
        """The branch that promises the most, of what is paused among the best quarter."""
        if self.perturb is None:
            return None
        rng = np.random.default_rng([self.seed, self.decisions, 1])
        quarter = np.argsort(outlook.own_N)[: max(1, len(known) // 4)]
        waiting = [n for n in quarter.tolist() if self._waits(self.trials[known[n]])]
        drawn = [
            (n, self.perturb(self.trials[known[n]].config, rng))
            for n in waiting[: self.rules.parents]
            for _ in range(self.rules.branches)
        ]
        drawn = [(n, config) for n, config in drawn if repr(config) not in self.taken]
        if not drawn:
            return None
        n_K = np.array([n for n, _ in drawn])
        x_KD = np.array([self.space.encode(config) for _, config in drawn])
        rate_K, level_K = outlook.rate_N[n_K], outlook.level_N[n_K]
        piece_K = np.array([self._piece(self.trials[known[n]]) for n in n_K])
        fee_K = np.full(len(n_K), self.restart)
        able_K = fee_K + piece_K <= free
        if not able_K.any():
            return None
        to_K = np.clip(level_K + (free - fee_K) / rate_K, level_K + 1e-3, self.levels)
        gain_K = outlook.branched(n_K, x_KD, to_K) * outlook.apart(x_KD, self._busy())
        worth_K = gain_K * self._thrift(fee_K, piece_K, fee_K + rate_K * (to_K - level_K))
        k = int(np.where(able_K, worth_K, -1.0).argmax())
        return New(float(worth_K[k]), drawn[k][1], known[drawn[k][0]])

    def _busy(self) -> Floats:
        """Where trials are of which nothing has been heard."""
        return np.array([t.vector for t in self.trials if not t.heard])

    def _waits(self, t: Trial) -> bool:
        """Whether it is paused at a rung: its checkpoint is there."""
        return not t.over and t.until is None and t.level in self.rungs

    def _thrift(self, fee: Floats, piece: Floats, whole: Floats) -> Floats:
        """By what an expected improvement is multiplied: what of a piece's money trains, and the
        money to the end, to the power `Rules.thrift`, below it."""
        return np.asarray(
            piece / np.maximum(fee + piece, 1e-9) / np.maximum(whole, 1e-9) ** self.rules.thrift
        )

    def _outlook(self, known: list[int]) -> tuple[list[int], Outlook]:
        """Of the trials that count: where they are too many, the deepest and the best."""
        if len(known) > self.rules.most:
            best = sorted(known, key=lambda i: (-self.trials[i].level, self.trials[i].best))
            known = sorted(best[: self.rules.most])
        trials = [self.trials[i] for i in known]
        shape = self.shape or Shape((0.8,) * len(trials[0].vector), 0.1)
        grow = len(known) >= max(8, 1.3 * self.climbed)
        rules = self.rules
        drop = Drop(rules.doubt, rules.doubt**2, rules.weight, rules.power)
        rate_N = np.array([max(self._rate(t), 1e-12) for t in trials])  # what is free is cheap
        outlook = Outlook.of(trials, rate_N, self.levels, drop, shape, grow)
        self.shape = outlook.process.shape
        self.climbed = len(known) if grow else self.climbed
        return known, outlook
