"""One rank that trains noise, saves and resumes, as a test asks over pipes.

    with Trainer(log) as trainer:
        trainer.begin(run_uri)
        trainer.train(2)
        assert trainer.save().saved_at == 2

pytest's own process must not import DeepSpeed; this one (`python -m tests.checkpoint_worker`) does,
once for many tests.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from torch import Tensor

from raygen.config import Config
from raygen.data import s3, store
from raygen.data.catalog import SCHEMA, Catalogue
from raygen.errors import RaygenError
from raygen.runs import Progress, Run
from tests.parity_worker import BASE, CLASSES, batches, whole

BATCH = int(str(BASE["train.batch_size"]))
# What the objective remembers of the steps before is in a checkpoint, too.
REMEMBERED = {
    "loss.lecam": 0.1,
    "loss.roughness": 1,
    "loss.features": 1,
    "augment.adaptive": True,
    "augment.target": -0.9,
    "augment.span": 100,
}
# Of the time for which a request to a failing bucket is worth another attempt.
PATIENCE_S = 1.0


@dataclass(frozen=True)
class Report:
    """How the rank stands: `digest` is of every weight, of their average and of the objective."""

    step: int = 0
    saved_at: int = 0
    digest: str = ""
    notes: list[str] = field(default_factory=list)
    consumed: tuple[tuple[int, int], ...] = ()
    at_take: str = ""


def rows_of(step: int) -> list[int]:
    """The rows of the catalogue that `step` trains on, as this rank has it."""
    return list(range((step - 1) * BATCH, step * BATCH))


class Trainer:
    """The other side of the pipes. Every call raises what its work raised, a RaygenError.

    `log` takes what the rank prints.
    """

    def __init__(self, log: Path) -> None:
        with log.open("wb") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.checkpoint_worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=os.environ | {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"},
            )

    def __enter__(self) -> Trainer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.kill()

    def begin(self, uri: str) -> Report:
        """A new run at `uri` (STORAGE/NAME), at step 0."""
        return self._ask("begin", uri)

    def resume(self, uri: str) -> Report:
        """The run at `uri`, from what there is to go on from; `notes` say what was passed over."""
        return self._ask("resume", uri)

    def train(self, steps: int) -> Report:
        """So many more steps."""
        return self._ask("train", steps)

    def save(self) -> Report:
        """Takes and finishes a checkpoint; `notes` are those since the last report."""
        return self._ask("save")

    def snapshot(self) -> Report:
        """Takes the state to memory alone."""
        return self._ask("snapshot")

    def save_behind(self) -> Report:
        """A checkpoint that is still being committed when the next one is taken, two steps on, and
        the training two more ahead when that is written; `at_take` is the digest that it is of.
        """
        return self._ask("save_behind")

    def begin_saving(self) -> None:
        """As `save`, but does not wait for it; for a rank that is to be killed."""
        self._send("save")

    def remember(self) -> Report:
        """Keeps its next parts in the memory of an actor, too; starts a local Ray."""
        return self._ask("remember")

    def forget_after(self, step: int) -> Report:
        """Has that actor forget what is beyond `step`."""
        return self._ask("forget_after", step)

    def kill(self) -> None:
        """SIGKILL."""
        self._process.kill()
        self._process.communicate()

    def _ask(self, what: str, *arguments: Any) -> Report:
        self._send(what, *arguments)
        assert self._process.stdout is not None
        answer = pickle.load(self._process.stdout)
        if isinstance(answer, Exception):
            raise answer
        assert isinstance(answer, Report)
        return answer

    def _send(self, what: str, *arguments: Any) -> None:
        assert self._process.stdin is not None
        names = [name for name in os.environ if name.startswith(("AWS_", "RAYGEN_"))]
        environment = {name: os.environ[name] for name in names}
        pickle.dump((environment, what, arguments), self._process.stdin)
        self._process.stdin.flush()


class _Rank:
    def __init__(self) -> None:
        self.notes: list[str] = []
        self.vaults: dict[str, Any] = {}

    def begin(self, uri: str) -> Report:
        storage, _, name = uri.rpartition("/")
        given = BASE | REMEMBERED | {"name": name, "storage": storage}
        config = Config.load("tiny", given)
        Run.create(config, [str(k) for k in range(CLASSES)], {"uri": "", "digest": "", "clips": 0})
        return self.resume(uri)

    def resume(self, uri: str) -> Report:
        import torch

        from raygen.checkpoint import Resumption
        from raygen.data import lineage
        from raygen.engine import Pair
        from raygen.saver import Saver
        from raygen.vault import Vaults

        self.notes.clear()
        run, vaults = Run.open(uri), Vaults(self.vaults)
        gather, note = lambda mine: [mine], self.notes.append
        resumption = Resumption(run, vaults, gather, note, rank=0, nodes=["here"])
        found = resumption.found
        config = Config.parse(run.config.dump(), {"seed": 1 + found.progress.step})
        self.pair = Pair(config, CLASSES, device=torch.device("cpu"), world_size=1)
        self.pair.config = run.config
        resumption.load(self.pair)
        lineage.forget_after(uri, found.saved_at)
        self.step, self.consumed = found.progress.step, list(found.consumed)
        self.saver = Saver(
            self.pair,
            run,
            Catalogue(SCHEMA.empty_table()),
            rank=0,
            world_size=1,
            near=list(self.vaults.values()),
            gather=gather,
            saved_at=found.saved_at,
            note=note,
        )
        return self.report()

    def train(self, steps: int) -> Report:
        from raygen.draws import Draws

        config, rows = self.pair.config, slice(0, BATCH)
        for _ in range(steps):
            draws = Draws.at(config, self.step, rows)
            noise = batches(config, self.step, rows)
            self.pair.step(noise, draws, step=self.step, progress=0.5)
            self.step += 1
            self.consumed += [(self.step, row) for row in rows_of(self.step)]
        return self.report()

    def save(self) -> Report:
        self._take()
        self.saver.finish()
        return self.report()

    def snapshot(self) -> Report:
        self._take(to_storage=False)
        self.saver.finish()
        return self.report()

    def save_behind(self) -> Report:
        self._take()
        self.saver.commit()
        self.train(2)
        self._take()
        at_take = self._digest()
        self.train(2)
        self.saver.finish()
        return self.report(at_take)

    def remember(self) -> Report:
        import ray

        from raygen.vault import Vaults

        ray.init("local", num_cpus=1, include_dashboard=False, logging_level="error")
        self.vaults = {"here": Vaults.start(ray.get_runtime_context().get_node_id())}
        self.saver.near = list(self.vaults.values())
        return self.report()

    def forget_after(self, step: int) -> Report:
        from raygen.vault import Vaults

        Vaults(self.vaults).forget_after(step)
        return self.report()

    def report(self, at_take: str = "") -> Report:
        notes = list(self.notes)
        self.notes.clear()
        consumed = tuple(self.consumed)
        return Report(self.step, self.saver.saved_at, self._digest(), notes, consumed, at_take)

    def _take(self, *, to_storage: bool = True) -> None:
        from raygen.saver import Moment

        progress = Progress(self.step, position=self.step * BATCH)
        consumed = [pair for pair in self.consumed if pair[0] > self.saver.saved_at]
        self.saver.take(Moment(progress, consumed, {}, {}, {}), to_storage=to_storage)

    def _digest(self) -> str:
        digest = hashlib.sha256()
        networks = [self.pair.generator, self.pair.critic]
        states: list[dict[str, Tensor]] = [whole(n.module, n.stage) for n in networks]
        for state in (*states, self.pair.ema.gather()):
            for name in sorted(state):
                digest.update(state[name].detach().numpy().tobytes())
        digest.update(json.dumps(self.pair.objective.state(), sort_keys=True).encode())
        return digest.hexdigest()


def main() -> None:
    # What DeepSpeed prints is not to come between the answers.
    answers: BinaryIO = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    import torch

    from tests.benchmarks.engine import join

    torch.set_num_threads(1)
    s3.RETRY_S = PATIENCE_S
    join()
    rank = _Rank()
    while True:
        try:
            environment, what, arguments = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        os.environ.update(environment)
        answer: Report | Exception
        try:
            answer = getattr(rank, what)(*arguments)
        except RaygenError as error:
            answer = error
        pickle.dump(answer, answers)
        answers.flush()


def checkpoints(uri: str) -> list[int]:
    """The steps of the complete checkpoints of the run at `uri`."""
    return [int(item.rpartition("-")[2]) for item in Run.open(uri).checkpoints()]


def files_of(uri: str, step: int) -> list[str]:
    """What there is of a checkpoint, as URIs."""
    folder = f"/step-{step:08d}/"
    return [item.uri for item in store.list_objects(uri) if folder in item.uri]


if __name__ == "__main__":
    # Under its own name, or its answers would be of another class to who reads them.
    from tests import checkpoint_worker

    checkpoint_worker.main()
