"""Checkpoints judged beside the training, by tasks that no step waits for.

Ray Train's own validation holds a group of workers open until it is done, and with it the restart
on what a drained node left: these tasks belong to the driver.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ray
from ray.exceptions import RayError

from raygen.config import EvaluateConfig
from raygen.evaluate import judge_checkpoint
from raygen.runs import Run, checkpoint_name, step_of


class Judging:
    """At most one checkpoint at a time; the newest when its turn comes.

    `on_figures` is called with a step and what the judge said of it, `on_note` where it could not.
    `judge`, of a run's URI and a checkpoint's, is somebody's remote method; without one a task
    learns to judge each time.
    """

    def __init__(
        self,
        run: Run,
        config: EvaluateConfig,
        on_figures: Callable[[int, dict[str, float]], None],
        on_note: Callable[[str], None],
        judge: Any = None,
    ) -> None:
        self._run, self._config = run, config
        task = ray.remote(num_cpus=config.cpus, max_retries=0)(judge_checkpoint)
        self._judge = task if judge is None else judge
        self._on_figures, self._on_note = on_figures, on_note
        self._task: Any = None
        self.step: int | None = None
        best = run.best()
        self._last = 0 if best is None else step_of(best)

    def look(self, saved_at: int) -> None:
        """Takes the verdict if there is one, and begins with the checkpoint of step `saved_at`."""
        every = self._config.every
        if self._task is not None and ray.wait([self._task], timeout=0)[0]:
            self._take()
        if every is not None and self._task is None and saved_at - self._last >= every:
            checkpoint = self._run.path(checkpoint_name(saved_at))
            self._task = self._judge.remote(self._run.uri, checkpoint)
            self.step = self._last = saved_at

    def finish(self) -> None:
        """Waits for the verdict on the checkpoint that is being judged."""
        if self._task is not None:
            self._take()

    def _take(self) -> None:
        assert self.step is not None
        try:
            self._on_figures(self.step, ray.get(self._task))
        except RayError as error:
            why = str(getattr(error, "cause", None) or error).strip().splitlines()[-1]
            self._on_note(f"the checkpoint of step {self.step} could not be judged: {why}")
        self._task = self.step = None
