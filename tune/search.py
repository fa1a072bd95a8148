"""A search from its first trial to its best: what `python -m tune SPACE.yaml` runs.

Everything that can be wrong is said before the first trial. Then Ray Tune runs trials (tune.trial)
as the BudgetScheduler says, an accountant holds the cap, and what happens is kept on the storage
as it happens: the same command goes on where the last one ended, however it ended.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError
from ray.tune import Callback, RunConfig, TuneConfig, Tuner, with_resources

from raygen.cost import cap as capped
from raygen.cost.bill import Bill
from raygen.cost.remote import Remote, start
from raygen.data import store
from raygen.data.catalog import Catalogue
from raygen.data.scan import scan
from raygen.errors import ClusterError, ConfigError, DataError, Interrupted, TrainingError
from raygen.interrupts import counted_interrupts
from raygen.train import connect
from tune.budget import BudgetScheduler
from tune.desk import Desk, beside_driver
from tune.finish import finish
from tune.hooks import Kept, Money, Over, Recorder
from tune.hparams import HParams
from tune.judge import start_judge
from tune.measure import Profile, measure
from tune.perturb import Perturbation
from tune.policy import Policy
from tune.prepare import committed
from tune.progress import Progress, Purse
from tune.records import CATALOGUE, Records
from tune.space import Allowed, Space
from tune.terms import Rules
from tune.trial import Handed, run_trial

LOOK_EVERY_S = 0.5
RUNGS = 3  # a training ends at each, and going on costs a start
# Of the time to end at the cap, what trials have to save and end, and what all have until this
# process ends its own Ray, whatever still hangs in it.
PATIENT, LAST = 0.6, 0.8
# Trials that failed, and nothing else: it is not their configuration.
BARREN = 3
# A trial's start beside its engines' (workers, decoders, a first fetch), and a judgement, seconds;
# after the first level of the first trial the policy knows better.
START_S, JUDGE_S = 8.0, 20.0


class Search:
    """One run of a search; `run` returns why it ended, once the best is exported.

    `parallel` trials run at once, as many as the cluster has room for if it is None; a new search
    tries `first` before what it draws. With `perturb`, trials branch. Raises
    RaygenError: Interrupted after Ctrl-C, saved; TrainingError where no trial can be trained;
    ClusterError where the cluster is gone.
    """

    def __init__(
        self,
        space: Space,
        records: Records,
        budget: float,
        progress: Progress,
        *,
        parallel: int | None = None,
        seed: int = 0,
        first: Sequence[Mapping[str, Any]] = (),
        perturb: Perturbation | None = None,
    ) -> None:
        self.space, self.records, self.budget, self.progress = space, records, budget, progress
        self._parallel, self._seed, self._first = parallel, seed, first
        self._perturb = perturb
        self.interrupts: list[int] = []
        self.over = threading.Event()
        self.failure: BaseException | None = None
        self._fatal = ""
        self._end_at = math.inf  # by when this process ends its own Ray, on time.monotonic

    def run(self) -> str:
        """Searches until the money, the trials or the user's patience are at their end."""
        # A Ray of this process's own ends with the search. Nobody else would end it in time.
        self._own = not (ray.is_initialized() or "RAY_ADDRESS" in os.environ)
        connect(self.space.base, self.progress.note)
        self._catalogue()
        terms = self.space.base.budget
        try:
            self.accountant = start(
                self.records.storage,
                cap=self.budget,
                owner="search",
                otherwise=self.space.base.train.node,
                lease_s=terms.lease_s,
                drain_s=terms.drain_s,
            )
        except ConfigError as error:
            message = str(error).replace("budget.dollars=", "--budget ")
            raise ConfigError(message, "budget") from None
        self.accounts = Remote(self.accountant)
        self._kept = Kept(self.records, self.accounts)
        with counted_interrupts(self.interrupts):
            try:
                reason = self._search()
                if not self._own:  # the nodes are paid until the best is saved
                    spent = self.accounts.bill().dollars
                    finish(self.records, reason, budget=self.budget, spent=spent)
            except RayActorError:
                raise ClusterError(
                    "a process that the search itself needs is gone, with its node or for want of "
                    "memory; what was found is kept, and the same command goes on"
                ) from None
            finally:
                self._let_go()
            if self._own:
                spent = committed(self.records)
                finish(self.records, reason, budget=self.budget, spent=spent)
        return reason

    def _let_go(self) -> None:
        """Closes the ledger, and ends this process's own Ray: by the cap, however slow that is.

        A lease that could not be closed in time is charged in full, and that is within the cap.
        """
        rest_s = (1 - LAST) * self.space.base.budget.drain_s if self._end_at < math.inf else None
        with contextlib.suppress(GetTimeoutError, RayActorError):
            ray.get(self.accountant.close.remote(), timeout=rest_s)
        if self._own:
            ray.shutdown()

    def _catalogue(self) -> None:
        uri, data = self.records.path(CATALOGUE), self.space.base.data
        if store.exists(uri):
            return
        if data.uri.endswith(".parquet"):
            found = Catalogue.read(data.uri)
        else:
            found = scan(data.uri, limits=data.limits)
        found = found.of_split(data.split) if data.split else found
        usable = found.usable(data.frames / data.fps)
        if not len(usable):
            raise DataError(f"none of the {len(found)} videos at {data.uri} can be used", data.uri)
        usable.write(uri)

    def _search(self) -> str:
        policy = self._policy(self._slots())
        self.desk = beside_driver(Desk).remote()
        judge = start_judge(self.space.base.evaluate.cpus)
        handed = Handed(
            self.space, self.records.storage, self.desk, judge, self.accountant, policy.rungs
        )
        self._money = Money(self.accountant)
        scheduler = BudgetScheduler(
            policy,
            self._money,
            self._kept,
            metric=self.space.metric,
            mode=self.space.mode,
        )
        hparams = HParams(self.records.storage, self.space.metric)
        recorder = Recorder(self.records, hparams)
        tuning = threading.Thread(
            target=self._tune, args=(handed, scheduler, recorder), name="tune", daemon=True
        )
        tuning.start()
        reason = self._watch(tuning, policy)
        hparams.close(self.records)
        if self.interrupts:
            raise Interrupted("stopped and saved; the same command goes on")
        if self._fatal:
            raise TrainingError(self._fatal, 0)
        if self.failure is not None:
            raise self.failure
        return reason

    def _tune(self, handed: Handed, scheduler: BudgetScheduler, recorder: Callback) -> None:
        os.environ["RAY_AIR_NEW_OUTPUT"] = "0"  # the new one has its say whatever `verbose` is
        os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
        os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", str(1 << 30))  # the state is our own

        # A trial that fails is told in a line of its own.
        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)

        def trainable(config: dict[str, Any]) -> None:
            run_trial(config, handed)

        try:
            Tuner(
                # Workers reserve what they need; their driver waits, and needs a bit of memory.
                with_resources(trainable, {"CPU": 0, "memory": 1 << 20}),
                tune_config=TuneConfig(
                    scheduler=scheduler,
                    search_alg=scheduler.searcher,
                    num_samples=self.space.trials + len(self.records.trials),
                    reuse_actors=False,
                ),
                run_config=RunConfig(
                    name="search",
                    storage_path=tempfile.mkdtemp(prefix="raygen-tune-"),
                    callbacks=[recorder],
                    stop=Over(self.over, scheduler, self._kept),
                    verbose=0,
                ),
            ).fit()
        except BaseException as error:
            self.failure = error

    def _policy(self, slots: int) -> Policy:
        picked = Allowed(self.space)
        kept = self.records.load_policy()
        if kept is not None:
            policy = Policy.restore(picked, json.loads(kept))
            policy.money, policy.workers = self.budget, slots
            policy.perturb = self._perturb
            return policy
        profile = self._profile()
        bill = self.accounts.bill()
        # Of everything that is paid, idle nodes included, a trial's part.
        rate = bill.rate / slots
        step_s = max(profile.step_s, 1e-4)
        level_s = step_s * self.space.levels[0] + JUDGE_S
        start_s = profile.start_s + START_S
        policy = Policy(
            picked,
            money=self.budget,
            levels=len(self.space.levels),
            workers=slots,
            level_dollars=level_s * rate,
            restart_dollars=start_s * rate,
            seed=self._seed,
            rules=Rules(steps=RUNGS),
            first=[dict(values) for values in self._first],
            perturb=self._perturb,
        )
        first_s = start_s + level_s * policy.rungs[0]
        least = bill.dollars + bill.rate * first_s
        if least > bill.limit:
            raise ConfigError(
                f"--budget {self.budget:g} is too little: a trial's first rung takes about "
                f"{first_s:.0f} s, ${bill.rate * first_s:.3g}; the least that works is "
                f"{capped.up(least + self.budget - bill.limit):g}"
            )
        return policy

    def _profile(self) -> Profile:
        known = self.records.document.get("profile")
        if known is None:
            self.progress.note("measuring 30 steps of the base configuration")
            try:
                known = asdict(measure(self.space.base, lambda: self._wanted(self.accounts.bill())))
            except Interrupted as error:
                if self.interrupts:
                    raise Interrupted("stopped; the same command goes on") from None
                raise TrainingError(f"{error} before 30 steps were measured: raise it", 0) from None
            self.records.set(profile=known)
        profile = Profile(**known)
        self.progress.note(
            f"a step takes {profile.step_s * 1e3:.0f} ms and {profile.memory_gb:.2g} GB, "
            f"drawing a clip {profile.clip_s * 1e3:.0f} ms"
        )
        return profile

    def _slots(self) -> int:
        return self._parallel or _slots(self.space, ray.cluster_resources())

    def _watch(self, tuning: threading.Thread, policy: Policy) -> str:
        """Shows how it goes until it is over; why it is."""
        reason, told_at = "nothing that the money buys is left to do", 0.0
        drain_s = self.space.base.budget.drain_s
        while tuning.is_alive() and time.monotonic() < self._end_at:
            tuning.join(LOOK_EVERY_S)
            running, notes = ray.get(self.desk.look.remote())
            for note in [*notes, *self.accounts.notes()]:
                self.progress.note(note)
            policy.workers = self._slots()  # nodes come and go
            bill = self.accounts.bill()
            purse = Purse(
                bill.dollars, ray.get(self.accountant.reserved.remote()), self.budget, bill.rate
            )
            self.progress.show(self.records, self.space, running, purse)
            failed = [trial for trial in self.records.trials.values() if trial.detail]
            if len(failed) >= BARREN and len(failed) == len(self.records.trials):
                self._fatal = f"none of {len(failed)} trials could be trained: {failed[-1].detail}"
            wanted = self._wanted(bill)
            if wanted and not told_at:
                told_at, reason = time.monotonic(), wanted
                self.progress.note(f"{wanted}: saving what runs")
                # Nothing more is begun, and what stops now is not over to the policy.
                self._kept.close()
                self._money.close()
                self.desk.stop.remote()
            late = bool(bill.stop) and self._ahead_s(bill) < (1 - PATIENT) * drain_s
            if len(self.interrupts) > 1 or late or (told_at and not running):
                self.over.set()
        return reason

    def _wanted(self, bill: Bill) -> str:
        """Why to end now, if it is time; at the cap this process's own Ray ends soon after."""
        if bill.stop and self._own:
            last_s = (1 - LAST) * self.space.base.budget.drain_s
            self._end_at = time.monotonic() + self._ahead_s(bill) - last_s
        return bill.stop or ("Ctrl-C" if self.interrupts else "") or self._fatal

    def _ahead_s(self, bill: Bill) -> float:
        """Seconds that the cap still pays for: they tell how late it is, however late one looks."""
        return (self.budget - bill.dollars) / max(bill.rate, 1e-12)


def _slots(space: Space, resources: Mapping[str, float]) -> int:
    """How many trials of the fewest workers the cluster holds now; one at least."""
    train = space.base.train
    each = {"CPU": train.cpus_per_worker, "GPU": train.gpus_per_worker}
    judge = {"CPU": space.base.evaluate.cpus}
    counts = [
        int((resources.get(kind, 0.0) - judge.get(kind, 0.0)) / (amount * train.least_workers))
        for kind, amount in each.items()
        if amount
    ]
    return max(1, min(counts))
