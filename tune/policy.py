"""What to start, continue or pause next, for the money that is left: no Ray, no clock, no files.

A trial runs from rung to rung. Whoever is free gets the piece of work that promises the most for
a dollar: the expected improvement of a trial's *final* score over the best there is, by the cost
of getting there. tune.model predicts; `Rules` holds what was tuned on half of the benchmark's
tasks (tests.benchmarks.search).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tune.model import Floats, Process, Shape, Warp, climb, finals, improvement

Config = dict[str, Any]


class Space(Protocol):
    """What the picker draws from (tune.space offers it)."""

    def sample(self, rng: np.random.Generator) -> Config:
        """One configuration, drawn as the space says."""
        ...

    def encode(self, config: Config) -> NDArray[np.float64]:
        """The configuration as a point of [0, 1]^d; a choice is one-hot."""
        ...

    def decode(self, vector: NDArray[np.float64]) -> Config:
        """The configuration nearest to a point of [0, 1]^d."""
        ...


@dataclass(frozen=True)
class Job:
    """A piece of training to run: from where the trial stands to a level."""

    trial: int
    config: Config
    since: int  # levels already run; 0: a new trial
    until: int  # the level to run to, then ask `Policy.report`
    dollars: float  # what it is expected to cost, the (re)start included


@dataclass(frozen=True)
class Rules:
    """What the policy's behaviour hangs on: tuned on half of the benchmark's tasks."""

    eta: float = 3.3
    rungs: int = 3
    random: int = 5  # trials before the model picks
    endgame: float = 0.3  # of the money: nothing new is begun with less left
    narrow: float = 0.33  # of trials go on from a rung that tells all
    doubt: float = 0.35  # what one rung is taken to tell of the next, in spreads
    drawn: int = 32  # candidates at random
    near: int = 16  # and near the best
    most: int = 70  # trials that the process looks at
    hedge: float = 0.1  # of the money: for trials that run to the end whatever they show
    hedges: int = 3  # at most


@dataclass
class Trial:
    """What is known of one; `results` maps levels to the best score until then."""

    config: Config
    vector: list[float]
    results: dict[int, float] = field(default_factory=dict)
    dollars: float = 0.0
    starts: int = 0
    until: int | None = None  # while it runs
    over: bool = False
    level: int = 0
    fresh: bool = False  # begun (again), and its start not yet paid for

    @property
    def best(self) -> float:
        """The score of its best checkpoint."""
        return min(self.results.values())


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
    ) -> None:
        """A search of `money` dollars in all, over trials of `levels` judged checkpoints each.

        `level_dollars` is what one level costs as far as is known before the first result.
        """
        self.space, self.money, self.levels, self.workers = space, money, levels, workers
        self.level_dollars, self.restart = level_dollars or 0.0, restart_dollars
        self.seed, self.rules = seed, rules or Rules()
        self.trials: list[Trial] = []
        self.decisions = 0
        self.hedged = 0
        self.taken: set[str] = set()
        self.shape: Shape | None = None
        self.climbed = 0
        first = levels / self.rules.eta ** (self.rules.rungs - 1)
        steps = (first * self.rules.eta**k for k in range(self.rules.rungs))
        self.rungs = tuple(sorted({max(round(s), 1) for s in steps} | {levels}))

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
        trial, config, until = choice
        if config is not None:
            self.trials.append(Trial(config, self.space.encode(config).tolist()))
            self.taken.add(repr(config))
            trial = len(self.trials) - 1
        t = self.trials[trial]
        t.until, t.starts, t.fresh = until, t.starts + 1, True
        return Job(trial, t.config, t.level, until, self._ahead(t))

    def report(self, trial: int, level: int, dollars: float, score: float) -> int | None:
        """A result of a running trial: `dollars` since its last report, `score` (less is better).

        Returns the level it is to go on to, or None: pause it (or it is whole).
        """
        t = self.trials[trial]
        t.dollars += dollars
        t.results[level] = min([score, *t.results.values()])
        t.level, t.fresh = max(t.level, level), False
        if t.until is None or level < t.until:
            return t.until
        t.until = None
        t.over = level >= self.levels
        if not t.over:
            choice = self._choose(self.money - self.spent - self.committed, trial)
            if choice is not None and choice[0] == trial:
                self.decisions += 1
                t.until = choice[2]
        return t.until

    def ended(self, trial: int) -> None:
        """The trial has ended by itself (diverged, failed for good): it cannot be continued."""
        t = self.trials[trial]
        t.until, t.over = None, True

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
        known = [i for i, t in enumerate(self.trials) if t.results]
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
            },
            "rules": asdict(self.rules),
            "trials": [asdict(t) for t in self.trials],
            "decisions": self.decisions,
            "hedged": self.hedged,
            "shape": self.shape and asdict(self.shape),
            "climbed": self.climbed,
        }

    @classmethod
    def restore(cls, space: Space, state: dict[str, Any]) -> Policy:
        """The policy as it was, jobs that ran then running: see `interrupted`."""
        policy = cls(space, **state["of"], rules=Rules(**state["rules"]))
        for kept in state["trials"]:
            results = {int(level): score for level, score in kept["results"].items()}
            policy.trials.append(Trial(**(kept | {"results": results})))
        policy.taken = {repr(t.config) for t in policy.trials}
        policy.decisions, policy.hedged = state["decisions"], state["hedged"]
        if state["shape"]:
            policy.shape = Shape(tuple(state["shape"]["length_D"]), state["shape"]["nugget"])
        policy.climbed = state["climbed"]
        return policy

    def _rung_after(self, level: int) -> int:
        return next(r for r in self.rungs if r > level)

    def _rate(self, t: Trial) -> float:
        """Dollars a level: its own where it has run, or the mean of all."""
        if t.level:
            return max(t.dollars - (t.starts - t.fresh) * self.restart, 0.0) / t.level
        seen = [self._rate(u) for u in self.trials if u.level]
        return float(np.mean(seen)) if seen else self.level_dollars

    def _piece(self, t: Trial) -> float:
        """Dollars from where a trial stands to the next rung."""
        return self._rate(t) * (self._rung_after(t.level) - t.level)

    def _ahead(self, t: Trial) -> float:
        """Dollars from where a running trial was last seen to where it runs to."""
        assert t.until is not None
        return self._rate(t) * (t.until - t.level) + self.restart * t.fresh

    def _choose(self, free: float, here: int | None) -> tuple[int, Config | None, int] | None:
        """A paused trial, or a new configuration (then the number means nothing), or neither.

        And the level to run to. `free` is what may be spent; `here` is the trial that a worker
        still holds: it need not be begun again.
        """
        rng = np.random.default_rng([self.seed, self.decisions])
        known = [i for i, t in enumerate(self.trials) if t.results]
        closing = free < self.rules.endgame * self.money
        first = self.restart + self._rate(Trial({}, [])) * self.rungs[0]
        if first <= free:
            for i, t in enumerate(self.trials):  # interrupted before its first result
                if not (t.over or t.results) and t.until is None:
                    return i, None, self.rungs[0]
        if len(self.trials) < self.rules.random or not known:
            config = self.space.sample(rng)
            if self._fresh(config) and first <= free and not (closing and known):
                return -1, config, self.rungs[0]
            if not known:
                return None
        known = self._looked_at(known)
        trials = [self.trials[i] for i in known]
        mean_N, var_N, ahead_K = self._finals(trials)
        x_ND = np.array([t.vector for t in trials])
        shape = self._shape(x_ND, mean_N, var_N)
        process = Process(x_ND, mean_N, var_N, shape)
        own_N, spread_N = process.own()
        gain_N = improvement(0.0, own_N, spread_N)
        rate_N = np.array([self._rate(t) for t in trials])
        open_N = np.array([not t.over and t.until is None for t in trials])
        fee_N = np.where(np.array(known) == here, 0.0, self.restart)
        full = self.levels * float(np.mean(rate_N))
        if self.hedged < min(self.rules.hedges, self.rules.hedge * self.money / full):
            to_N = fee_N + rate_N * np.array([self.levels - t.level for t in trials])
            able_N = open_N & (to_N <= free)
            if able_N.any():
                n = int(np.where(able_N, gain_N / (to_N + full / 2), -1.0).argmax())
                if here is None or known[n] == here:
                    self.hedged += 1
                return known[n], None, self.levels
        # What share goes on from a rung: few where it tells all, all where it tells nothing.
        tells_K = process.scale / (process.scale + ahead_K)
        on_K = self.rules.narrow * tells_K + (1 - tells_K)
        reach = self._reach(on_K)
        best: tuple[float, int, Config | None] = (-1.0, -1, None)
        for n, t in enumerate(trials):
            if open_N[n] and fee_N[n] + self._piece(t) <= free:
                worth = float(gain_N[n] / (fee_N[n] + rate_N[n] * reach(t.level)))
                best = max(best, (worth, known[n], None), key=lambda b: b[0])
        if not closing:
            config_M = self._candidates(rng, x_ND, own_N)
            if config_M:
                v_MD = np.array([self.space.encode(c) for c in config_M])
                gain_M = improvement(0.0, *process.fresh(v_MD))
                busy = [t.vector for t in self.trials if not t.results]
                if busy:
                    gap = (((v_MD[:, None] - np.array(busy)) / shape.length_D) ** 2).sum(2).min(1)
                    gain_M = gain_M * (1 - np.exp(-gap))
                rate_M = self._rates(x_ND, rate_N, v_MD)
                worth_M = gain_M / (self.restart + rate_M * reach(0))
                worth_M[self.restart + rate_M * self.rungs[0] > free] = -1.0
                m = int(worth_M.argmax())
                best = max(best, (float(worth_M[m]), -1, config_M[m]), key=lambda b: b[0])
        worth, trial, new = best
        if worth < 0:
            return None
        return trial, new, self._rung_after(self.trials[trial].level if new is None else 0)

    def _finals(self, trials: list[Trial]) -> tuple[Floats, Floats, Floats]:
        """What each will reach: tune.model.finals of what they have at the rungs."""
        warp = Warp.of(np.array([t.best for t in trials]))
        result_NK = np.full((len(trials), len(self.rungs)), np.nan)
        for n, t in enumerate(trials):
            for level, score in t.results.items():
                k = next(k for k, rung in enumerate(self.rungs) if rung >= level)
                result_NK[n, k] = score
            if t.over:
                result_NK[n, -1] = t.best
        at_N = len(self.rungs) - 1 - np.argmax(~np.isnan(result_NK[:, ::-1]), axis=1)
        return finals(self.rungs, warp(result_NK), at_N, self.rules.doubt)

    def _reach(self, on_K: Floats) -> Any:
        """Levels that a trial is expected to run from a level on."""

        def reach(level: int) -> float:
            total, chance, since = 0.0, 1.0, level
            for k, rung in enumerate(self.rungs):
                if rung <= level:
                    continue
                total += chance * (rung - since)
                chance, since = chance * on_K[k], rung
            return total

        return reach

    def _looked_at(self, known: list[int]) -> list[int]:
        """Trials for the process: where they are too many, the deepest and the best."""
        if len(known) <= self.rules.most:
            return known
        best = sorted(known, key=lambda i: (-self.trials[i].level, self.trials[i].best))
        return sorted(best[: self.rules.most])

    def _shape(self, x_ND: Floats, mean_N: Floats, var_N: Floats) -> Shape:
        n = len(self.trials)
        if self.shape is None:
            self.shape = Shape((0.8,) * x_ND.shape[1], 0.1)
        if n >= 8 and n >= 1.3 * self.climbed:
            self.shape = climb(x_ND, mean_N, var_N, self.shape)
            self.climbed = n
        return self.shape

    def _candidates(self, rng: np.random.Generator, x_ND: Floats, own_N: Floats) -> list[Config]:
        drawn = [self.space.sample(rng) for _ in range(self.rules.drawn)]
        best = x_ND[np.argsort(own_N)[:3]]
        for k in range(self.rules.near):
            step = rng.choice([0.05, 0.15]) * rng.standard_normal(x_ND.shape[1])
            step *= rng.random(x_ND.shape[1]) < 0.6
            drawn.append(self.space.decode(np.clip(best[k % len(best)] + step, 0, 1)))
        return [c for c in drawn if self._fresh(c)]

    def _fresh(self, config: Config) -> bool:
        return repr(config) not in self.taken

    def _rates(self, x_ND: Floats, rate_N: Floats, v_MD: Floats) -> Floats:
        """Dollars a level of new configurations: a ridge on the logarithm."""
        y_N = np.log(rate_N + 1e-12)
        centre = x_ND.mean(0)
        a = x_ND - centre
        w = np.linalg.solve(a.T @ a + 1.0 * np.eye(a.shape[1]), a.T @ (y_N - y_N.mean()))
        return np.asarray(np.exp(y_N.mean() + (v_MD - centre) @ w))
