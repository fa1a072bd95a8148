"""Settings of a run: workers, budget, health, trackers, judgement."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, PlainSerializer, PlainValidator, model_validator

from raygen.tree import Section


def _workers(value: Any) -> Any:
    bounds = value if isinstance(value, list | tuple) else [value, value]
    whole = all(isinstance(n, int) and not isinstance(n, bool) for n in bounds)
    if len(bounds) != 2 or not whole or not 1 <= bounds[0] <= bounds[1] <= 1024:
        raise ValueError("must be a number from 1 to 1024, or [fewest, most] of such")
    return value if isinstance(value, int) else tuple(value)


Workers = Annotated[int | tuple[int, int], PlainValidator(_workers), PlainSerializer(lambda v: v)]


class TrainConfig(Section):
    """How the work is spread and how far it goes."""

    workers: Workers = Field(1, description="training workers (ranks), or [fewest, most] of them")
    cpus_per_worker: float = Field(1.0, gt=0, description="CPUs that Ray reserves per worker")
    gpus_per_worker: float = Field(0.0, ge=0, description="GPUs that Ray reserves per worker")
    zero_stage: Literal[0, 1, 2, 3] = Field(1, description="ZeRO stage of the generator")
    critic_stage: Literal[0, 1, 2, 3] | None = Field(
        None, description="ZeRO stage of the critic; null: as zero_stage, at most 2"
    )
    precision: Literal["fp32", "bf16"] = Field("fp32", description="arithmetic of both networks")
    offload: bool = Field(False, description="optimizer state in CPU memory, from stage 1 up")
    recompute: bool = Field(False, description="activations recomputed in the backward pass")
    compile: bool = Field(False, description="torch.compile of the generator")
    channels_last: bool = Field(False, description="convolutions in channels_last")
    batch_size: int = Field(16, ge=1, description="clips in the global batch, over all workers")
    micro_batch: int | None = Field(
        None, ge=1, description="most clips a worker holds at once; null: its whole share"
    )
    steps: int = Field(2000, ge=1, description="optimizer steps; the schedules end here")
    checkpoint_every: int | None = Field(
        None, ge=1, description="steps between checkpoints; null: as their cost and losses suggest"
    )
    snapshot_every: int | None = Field(
        None, ge=1, description="steps between copies in another node's memory; null: 2 % of time"
    )
    sample_every: int = Field(200, ge=1, description="steps between samples in the tracker")
    keep_checkpoints: int = Field(2, ge=1, description="newest checkpoints kept, and the best")
    max_failures: int = Field(20, ge=0, description="losses without notice that a run survives")
    stall_s: float = Field(300.0, gt=0, description="seconds without a step: workers are restarted")
    node: str = Field("local", description="type of nodes that do not say theirs (raygen prices)")

    @property
    def least_workers(self) -> int:
        """The fewest workers that train."""
        return self.workers if isinstance(self.workers, int) else self.workers[0]

    @property
    def most_workers(self) -> int:
        """The most workers that train."""
        return self.workers if isinstance(self.workers, int) else self.workers[1]

    @property
    def world_sizes(self) -> list[int]:
        """Numbers of workers, ascending, among which the global batch can be split evenly."""
        wanted = range(self.least_workers, self.most_workers + 1)
        return [n for n in wanted if self.batch_size % n == 0]

    @model_validator(mode="after")
    def _batch_divides(self) -> Self:
        if not self.world_sizes:
            least, most = self.least_workers, self.most_workers
            named = f"{least}" if least == most else f"any of {least} to {most}"
            fits = self.batch_size // least * least or least
            raise ValueError(
                f"batch_size {self.batch_size} cannot be split over {named} workers; "
                f"take batch_size={fits}"
            )
        return self

    def accumulation(self, share: int) -> int:
        """The fewest equal micro-batches, of `micro_batch` clips at most, that make up `share`."""
        most = self.micro_batch or share
        return next(a for a in range(1, share + 1) if share % a == 0 and share // a <= most)

    @property
    def critic_zero_stage(self) -> Literal[0, 1, 2, 3]:
        """The critic's ZeRO stage: 2 beside a generator at 3, unless told otherwise.

        2 is the highest at which a double backward, and so exact R1 and R2, comes out right.
        """
        if self.critic_stage is not None:
            return self.critic_stage
        return 2 if self.zero_stage == 3 else self.zero_stage


class Budget(Section):
    """Optional limits; the first one reached ends the run, saved and successful.

    `dollars` is a cap: it is not exceeded, whatever dies.
    """

    minutes: float | None = Field(None, gt=0, description="training time; schedules end here too")
    dollars: float | None = Field(
        None, gt=0, description="all that the run's nodes cost, from first to last; --budget"
    )
    steps: int | None = Field(
        None, ge=1, description="stops here, on the schedules of train.steps; with more it goes on"
    )
    drain_s: float = Field(
        60.0, gt=0, description="seconds kept paid at the end of dollars, to save and be gone"
    )
    lease_s: float = Field(
        240.0, ge=1, description="seconds for which nodes are booked ahead, and outlive a driver"
    )


class HealthConfig(Section):
    """When a training counts as failed, and what is done about it."""

    rewinds: int = Field(3, ge=0, description="times a failed run goes back before it ends")
    lr_factor: float = Field(0.5, gt=0, le=1, description="by which each time lowers both lr")
    patience: int = Field(20, ge=1, description="bad looks in a row that count, of 10 steps each")
    saturation: float = Field(
        30.0, gt=0, description="bad above: distance of the mean logits of real and fake clips"
    )
    diversity: float = Field(
        0.1, ge=0, le=1, description="bad below: spread of the fakes over the real clips', 0: off"
    )
    warmup: int = Field(
        20_000, ge=0, description="clips after which fakes that were never diverse are bad too"
    )


class TrackingConfig(Section):
    """Where scalars and samples go."""

    kind: Literal["tensorboard", "wandb", "mlflow"] = Field("tensorboard", description="tracker")
    project: str = Field("raygen", min_length=1, description="project or experiment of the tracker")


class EvaluateConfig(Section):
    """The judge, and how much it looks at."""

    clips: int = Field(512, ge=32, description="generated clips that are judged")
    judge_steps: int = Field(300, ge=10, description="training steps of the embedded classifier")
    batch_size: int = Field(32, ge=2, description="clips a batch while judging")
    features: str = Field(
        "embedded",
        min_length=1,
        description="of the distances: embedded, a TorchScript file, or a transformers folder",
    )
    every: int | None = Field(
        None, ge=1, description="steps between judgements beside the training; null: none"
    )
    cpus: float = Field(0.0, ge=0, description="CPUs reserved for those, 0: whatever is idle")
