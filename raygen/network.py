"""One network under DeepSpeed ZeRO, and the only ways in: `turn` trains it against another.

    with turn(critic, against=generator) as (train, generate):
        train.minimise(loss(train(x_BCTHW, y_B), generate(z_BD, y_B)))

Two engines in one process go wrong in ways that raise at one ZeRO stage and are silent at the
next: the opponent's engine takes gradients that are not its own, an opponent left unfrozen carries
them into its next step, a double backward through an engine or through stage 3 is off. So an
engine never leaves this module. What a turn hands out is the learner, through its engine, and the
opponent's bare module, frozen; both are dead when the turn is over.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any

import deepspeed
import torch
from torch import Tensor, nn

from raygen import losses, shards
from raygen.conditions import Condition
from raygen.config import AdamConfig, Config
from raygen.errors import CheckpointError
from raygen.models import parameter_count
from raygen.models.blocks import Projection

# The highest stage through which a double backward, and so exact R1 and R2, comes out right.
EXACT_STAGE = 2


class Network:
    """A module, its Adam and its shards; collective to build, to save and to load.

    `batches` are the backward passes of one optimizer step, of `micro_batch` clips each, over
    which gradients are averaged. With `universal`, `load` takes what raygen.reshard made.
    """

    def __init__(
        self,
        module: nn.Module,
        adam: AdamConfig,
        config: Config,
        *,
        stage: int,
        micro_batch: int,
        batches: int,
        universal: bool,
    ) -> None:
        logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
        self.module = module
        self.stage = stage
        self.universal = universal
        if config.train.channels_last:
            _run_channels_last(module)
        optimizer = torch.optim.Adam(
            module.parameters(), lr=adam.lr, betas=(adam.beta1, adam.beta2)
        )
        made = settings(
            config,
            parameter_count(module),
            stage=stage,
            micro_batch=micro_batch,
            batches=batches,
            universal=universal,
        )
        # In bf16 at stage 1 DeepSpeed prints how much memory it takes, eight times.
        with redirect_stdout(io.StringIO()):
            self._engine, *_ = deepspeed.initialize(
                model=module, optimizer=optimizer, config=made, dist_init_required=False
            )
        for state in self._engine.basic_optimizer.state.values():
            # In bf16 at stage 0 a step on no gradients has allocated this state, and Adam's bias
            # correction would count it.
            state["step"].zero_()

    @property
    def gradient_norm(self) -> Tensor | None:
        """Of the last step, over all ranks and before clipping; None where no engine computes it.

        Only stage 0 in fp32 does not.
        """
        norm = self._engine.get_global_grad_norm()
        return None if norm is None else torch.as_tensor(norm)

    def set_adam(self, *, lr: float, beta2: float) -> None:
        """Of the steps to come."""
        for group in self._engine.optimizer.param_groups:
            group["lr"], group["betas"] = lr, (group["betas"][0], beta2)

    @torch.no_grad()
    def finite(self) -> bool:
        """Whether every parameter that this rank holds is finite."""
        parameters: Iterable[Any] = self.module.parameters()
        held = (p.ds_tensor if self.stage == 3 else p for p in parameters)
        return bool(torch.stack([p.isfinite().all() for p in held]).all())

    def states(self, tag: str) -> dict[str, Any]:
        """This rank's files of a checkpoint, `tag`/NAME, as raygen.shards captures them."""
        return shards.capture(self._engine, tag)

    def load(self, folder: str, tag: str) -> None:
        """Takes up the files of `states`, or what was made of them. Raises CheckpointError."""
        found, _ = self._engine.load_checkpoint(folder, tag=tag)
        if found is None:
            raise CheckpointError(f"no {tag} of this run in {folder}")


class Learner:
    """The network whose turn it is: calling it runs its engine."""

    def __init__(self, network: Network) -> None:
        self._network, self._over = network, False

    def __call__(self, *inputs: Tensor | Condition) -> Tensor:
        """The network's output, which `minimise` can follow back into its weights."""
        self._check()
        output: Tensor = self._network._engine(*inputs)
        return output

    def with_head(self, *inputs: Tensor | Condition) -> tuple[Tensor, Tensor]:
        """As calling it, a critic; and what entered its `head`, for `cosines`."""
        with _entering(self._network.module) as entered:
            output = self(*inputs)
        return output, entered[0]

    def cosines(
        self, entered_NC: Tensor, y_B: Condition, others_K: Condition
    ) -> tuple[Tensor, Tensor]:
        """`Projection.cosines` of clips of which this entered a critic's head: [B] and [B, K]."""
        self._check()
        return _head(self._network.module).cosines(entered_NC, y_B, others_K)

    def gradient_penalty(
        self, x_BCTHW: Tensor, y_B: Condition | Tensor, weight_B: Tensor | float = 1.0
    ) -> Tensor:
        """`losses.gradient_penalty` of the network; raises at stage 3, where it would be wrong."""
        self._check()
        if self._network.stage > EXACT_STAGE:
            raise RuntimeError("a double backward through ZeRO stage 3 is wrong")
        # Beside the engine: its hooks on the output would take the inner backward for the outer.
        return losses.gradient_penalty(self._network.module, x_BCTHW, y_B, weight_B)

    def minimise(self, loss: Tensor) -> None:
        """One backward pass; the last of the step's also moves the weights."""
        self._check()
        self._network._engine.backward(loss)
        self._network._engine.step()

    def _check(self) -> None:
        if self._over:
            raise RuntimeError("this network's turn is over")


class Opponent:
    """The frozen network that is played against: its bare module.

    Gradients flow through it to its inputs, never into its weights.
    """

    def __init__(self, network: Network) -> None:
        self._module, self._over = network.module, False

    def __call__(self, *inputs: Tensor | Condition) -> Tensor:
        """The network's output."""
        if self._over:
            raise RuntimeError("this opponent's turn is over")
        # A frozen network makes no graph of its own; said aloud, a compiled one knows it too.
        # Conditions are given, never learned from.
        followed = any(isinstance(part, Tensor) and part.requires_grad for part in inputs)
        with torch.set_grad_enabled(followed):
            output: Tensor = self._module(*inputs)
        return output

    def with_head(self, *inputs: Tensor | Condition) -> tuple[Tensor, Tensor]:
        """A critic's logits [B], and what enters its `head`: [B, C, ...].

        Of a critic that judges frame by frame, a row a frame.
        """
        with _entering(self._module) as entered:
            output = self(*inputs)
        return output, entered[0]

    def cosines(
        self, entered_NC: Tensor, y_B: Condition, others_K: Condition
    ) -> tuple[Tensor, Tensor]:
        """As of a learner."""
        return _head(self._module).cosines(entered_NC, y_B, others_K)


@contextmanager
def turn(network: Network, *, against: Network) -> Iterator[tuple[Learner, Opponent]]:
    """A turn of `network`: itself to train, and its frozen opponent to call."""
    learner, opponent = Learner(network), Opponent(against)
    against.module.requires_grad_(False)
    try:
        yield learner, opponent
    finally:
        against.module.requires_grad_(True)
        learner._over = opponent._over = True


def _head(critic: nn.Module) -> Projection:
    head: Projection = critic.head  # type: ignore[assignment]
    return head


@contextmanager
def _entering(critic: nn.Module) -> Iterator[list[Tensor]]:
    """What enters the critic's head in each call."""
    entered: list[Tensor] = []
    hook = _head(critic).register_forward_pre_hook(lambda _, given: entered.append(given[0]))
    try:
        yield entered
    finally:
        hook.remove()


def settings(
    config: Config,
    parameters: int,
    *,
    stage: int,
    micro_batch: int,
    batches: int,
    universal: bool,
) -> dict[str, Any]:
    """DeepSpeed's settings for a network of so many `parameters`."""
    # The buckets default to 5e8 elements each, allocated at once; it wants them even.
    bucket = (parameters // 1024 + 1) * 1024
    bf16 = config.train.precision == "bf16"
    made: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": micro_batch,
        "gradient_accumulation_steps": batches,
        # Left out, DeepSpeed clips at 1.
        "gradient_clipping": config.optim.clip_norm,
        # Master weights and Adam's moments stay in fp32, and so do accumulated gradients where
        # the stage can: stage 0 accumulates in the weights' own type.
        "bf16": {"enabled": bf16},
        "data_types": {"grad_accum_dtype": "fp32" if stage or not bf16 else "bf16"},
        "zero_optimization": {
            "stage": stage,
            "reduce_bucket_size": bucket,
            "allgather_bucket_size": bucket,
            "stage3_prefetch_bucket_size": bucket,
        },
        # Our optimizer is PyTorch's own Adam; parity with it is tested at every stage.
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "checkpoint": {"load_universal": universal},
        "steps_per_print": 1 << 62,
    }
    if config.train.offload:
        made["zero_optimization"]["offload_optimizer"] = {"device": "cpu"}
    return made


def _run_channels_last(module: nn.Module) -> None:
    """Has every convolution read and write channels last; weights keep their layout.

    ZeRO lays weights out flat, so only the activations can say it.
    """

    def reorder_3d(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(x.contiguous(memory_format=torch.channels_last_3d) for x in inputs)

    def reorder_2d(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(x.contiguous(memory_format=torch.channels_last) for x in inputs)

    for part in module.modules():
        if isinstance(part, nn.Conv3d | nn.ConvTranspose3d):
            part.register_forward_pre_hook(reorder_3d)
        elif isinstance(part, nn.Conv2d | nn.ConvTranspose2d):
            part.register_forward_pre_hook(reorder_2d)
