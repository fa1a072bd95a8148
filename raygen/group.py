"""One group of workers as one Ray Train job, and what its workers run."""

from __future__ import annotations

import os
import threading
import traceback

import ray
import ray.train
from ray.exceptions import RayError, RayTaskError
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from raygen.data import store
from raygen.errors import RaygenError
from raygen.job import Job

# How soon Ray Train itself notices, seconds; its own defaults are 2, 5 and 60.
_PROMPT = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "30",
}


class Group:
    """A number of `workers` at work on `job`, as `job.config.train` says.

    Whether to start again after a loss, and with how many, is not decided here.
    """

    def __init__(self, job: Job, workers: int) -> None:
        for name, value in _PROMPT.items():
            os.environ.setdefault(name, value)
        config, train = job.config, job.config.train
        filesystem, path = store.open_storage(config.storage)
        self._trainer = TorchTrainer(
            _train_worker,
            train_loop_config={"job": job},
            scaling_config=ScalingConfig(
                num_workers=workers,
                use_gpu=train.gpus_per_worker > 0,
                resources_per_worker={"CPU": train.cpus_per_worker, "GPU": train.gpus_per_worker},
            ),
            run_config=RunConfig(
                name=config.name,
                storage_path=path,
                storage_filesystem=filesystem,
                failure_config=FailureConfig(
                    max_failures=0, controller_failure_limit=0, max_preemption_failures=0
                ),
            ),
        )
        self.error: BaseException | None = None
        self._over = threading.Event()
        # Beside the main thread, where Ray would take Ctrl-C for itself and abort unsaved.
        threading.Thread(target=self._fit, daemon=True).start()

    def over(self, seconds: float) -> bool:
        """Whether it has come to its end, within `seconds`; `error` is what Ray Train raised.

        Its workers may be done some seconds before: without a dashboard, Ray Train waits in vain
        for an actor that removes what they reserved, long after it was removed.
        """
        return self._over.wait(seconds)

    def _fit(self) -> None:
        try:
            self._trainer.fit()
        except BaseException as error:
            self.error = error
        finally:
            self._over.set()


def _train_worker(handed: dict[str, Job]) -> None:
    import torch

    if not torch.cuda.is_available():
        os.environ["DS_ACCELERATOR"] = "cpu"
    job = handed["job"]
    try:
        # DeepSpeed chooses its accelerator when it is imported, so not before this line.
        from raygen.worker import train_worker

        train_worker(job)
    except RaygenError as error:
        ray.get(job.board.fail.remote(error))
    except Exception as error:
        if not _is_loss(error):
            # Ray Train tells of the rank that it saw fail first, which may be an echo of another.
            rank = ray.train.get_context().get_world_rank()
            crash = RuntimeError(f"worker {rank} failed:\n{traceback.format_exc()}")
            ray.get(job.board.fail.remote(crash))
        raise


def _is_loss(error: Exception) -> bool:
    """Whether a rank failed only because another, or its node, is gone."""
    from torch import distributed

    if isinstance(error, RayError):
        return not isinstance(error, RayTaskError)
    words = ("gloo", "Connection closed by peer", "NCCL")
    return isinstance(error, distributed.DistError) or any(word in str(error) for word in words)
