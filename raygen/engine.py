"""The generator and the critic under DeepSpeed, and one adversarial step of theirs.

    pair = Pair(config, classes=4, device=device, world_size=2)
    pair.step([(x_BCTHW, y_B)], Draws.at(config, step, rows), step=step, progress=step / steps)

raygen.network holds what makes two engines in one process exact at every ZeRO stage;
tests/test_engine_parity.py holds the whole to a plain PyTorch loop. Names carry shapes: B clips
of this rank, C channels, T frames, H height, W width, D latent dimension.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from raygen import augment, losses, matching
from raygen.conditions import Condition
from raygen.config import Config, SuperresConfig
from raygen.draws import CriticDraws, Draws, GeneratorDraws, noise_like
from raygen.ema import ParameterEma
from raygen.losses import scheduled
from raygen.matching import Crossing
from raygen.models import build_critic, build_generator, enlarged, recompute_activations
from raygen.network import Learner, Network, Opponent, turn
from raygen.objective import Judged, Objective, Term, total

Batch = tuple[Tensor, Condition | Tensor]
"""Real clips x_BCTHW in [-1, 1] and what they show, y_B: conditions, or class ids alone."""

_DTYPE = {"fp32": torch.float32, "bf16": torch.bfloat16}
_Drawn = TypeVar("_Drawn", CriticDraws, GeneratorDraws)


class Pair:
    """Generator and critic, each at its ZeRO stage, the generator's EMA, and both schedules.

    Needs `deepspeed.init_distributed` to have been called. Weights are drawn from `config.seed`,
    alike on every rank. With `universal`, `load` takes what raygen.reshard made of a checkpoint
    of another world size; `lr_scale` multiplies both learning rates throughout. `notes` are lines
    about what was decided for the user; `shown_BCTHW` the last clips that the generator was
    trained on.
    """

    def __init__(
        self,
        config: Config,
        classes: int,
        *,
        device: torch.device,
        world_size: int,
        universal: bool = False,
        lr_scale: float = 1.0,
    ) -> None:
        train = config.train
        self.config = config
        self.device = device
        self.dtype = _DTYPE[train.precision]
        self.universal = universal
        self.lr_scale = lr_scale
        share = train.batch_size // world_size
        batches = train.accumulation(share)
        self.micro_batch = share // batches
        self.notes = _notes(config, batches, self.micro_batch)
        torch.manual_seed(config.seed)
        shape = (config.model, config.data, classes, config.conditions)
        generator, critic = build_generator(*shape), build_critic(*shape)
        if train.recompute:
            recompute_activations(generator)
            recompute_activations(critic)
        if train.compile:
            # Never the critic: a double backward fails through torch.compile.
            generator.compile()
        self.generator, self.critic = (
            Network(
                module,
                adam,
                config,
                stage=stage,
                micro_batch=self.micro_batch,
                batches=batches,
                universal=universal and stage > 0,  # stage 0 has no shards to convert
            )
            for module, adam, stage in (
                (generator, config.optim.generator, train.zero_stage),
                (critic, config.optim.critic, train.critic_zero_stage),
            )
        )
        self.ema = ParameterEma(generator, sharded=train.zero_stage == 3)
        self.objective = Objective(config, device)

    def step(
        self, batches: Sequence[Batch], draws: Draws, *, step: int, progress: float
    ) -> dict[str, Tensor]:
        """A step of the critic on each of the `loss.critic_steps` batches, one of the generator.

        `progress` in [0, 1] sets the schedules. Returns this rank's losses and logits, detached
        means over the step, and the gradient norms where they cost nothing.
        """
        config, objective, figures = self.config, self.objective, _Figures()
        progress = progress / config.optim.burn_in
        probability = objective.probability(progress)
        gamma = losses.cosine(
            progress, config.loss.gamma, config.loss.gamma * config.loss.gamma_decay
        )
        self._schedule(progress)
        for _, y_B in batches:
            objective.hear(Condition.of(y_B))
        heard_K = objective.heard(self.dtype)
        # Told from crossed texts too, a critic cannot but read each word of them.
        others_K = None if heard_K is None else _crossed(heard_K, heard_K, draws.heard)[0]

        for number, (batch, drawn) in enumerate(
            zip(batches, draws.critic, strict=True), step * config.loss.critic_steps
        ):
            # R1 + R2 (arXiv 2501.05441, eq. 3), lazily, so times the interval (StyleGAN2, B);
            # the mean over real and fake is that of R1 and R2, hence gamma and not gamma / 2.
            lazily = config.loss.penalty_every if number % config.loss.penalty_every == 0 else 0
            with turn(self.critic, against=self.generator) as (critic, generate):
                for x_BCTHW, y_B, draw in self._micro_batches(batch, drawn):
                    # Not of crossed texts: it would learn that what they combine is never real.
                    fake_BCTHW = generate(self._input(draw.z_BD), y_B)
                    # What was made from a small clip is moved as the real one and that clip are.
                    other = draw.fake if draw.low is None else draw.real
                    real_logit_B, fake_logit_B, penalty, entered_BC = self._scored(
                        critic,
                        augment.apply(x_BCTHW, draw.real, probability),
                        augment.apply(fake_BCTHW, other, probability),
                        _seen(y_B, x_BCTHW, draw.real, probability),
                        draw,
                        penalised=gamma * lazily > 0,
                    )
                    contrast = self._contrast(critic, entered_BC, y_B, others_K)
                    logits = real_logit_B, fake_logit_B
                    terms = objective.critic(*logits, penalty, gamma * lazily, contrast)
                    critic.minimise(total(terms))
                    figures.add_losses(terms)
                    figures.add("logit/real", real_logit_B.mean())
                    figures.add("logit/fake", fake_logit_B.mean())

        with turn(self.generator, against=self.critic) as (generator, judge):
            for x_BCTHW, given_B, play in self._micro_batches(batches[-1], draws.generator):
                asked_B, y_B = _crossed(given_B, heard_K, play.crossing)
                fake_BCTHW = generator(self._input(play.z_BD), asked_B)
                self.shown_BCTHW = fake_BCTHW.detach()
                seen_B = _seen(y_B, x_BCTHW, play.play, probability)
                shown_BCTHW = augment.apply(fake_BCTHW, play.play, probability)
                fake, entered_BC = _judged(judge, fake_BCTHW, shown_BCTHW, seen_B)
                shown_BCTHW = augment.apply(x_BCTHW, play.play, probability)
                real, _ = _judged(judge, x_BCTHW, shown_BCTHW, seen_B)
                contrast = self._contrast(judge, entered_BC, asked_B, others_K)
                terms = objective.generator(real, fake, contrast)
                generator.minimise(total(terms))
                figures.add_losses(terms)

        objective.settle(progress)
        figures.add("augment/probability", torch.as_tensor(probability, device=self.device))
        clips, optim = config.train.batch_size, config.optim
        halflife = scheduled(progress, optim.ema_halflife, optim.ema_halflife_end)
        self.ema.update(clips=clips, seen=(step + 1) * clips, halflife=halflife)
        return figures.means() | self._gradient_norms()

    def finite(self) -> bool:
        """Whether every parameter that this rank holds is finite; waits for the device."""
        return self.generator.finite() and self.critic.finite()

    def states(self) -> dict[str, Any]:
        """This rank's shards, copied to the CPU: file name, in generator/ or critic/, to state.

        Collective. raygen.packing makes files of them.
        """
        return self.generator.states("generator") | self.critic.states("critic")

    def load(
        self,
        folder: str,
        ema: dict[str, Tensor],
        objective: Mapping[str, Any],
        converted: str = "",
    ) -> None:
        """Takes up every rank's `states` in `folder`, the gathered EMA, and the objective's state.

        A `universal` pair takes its sharded networks from `converted`, where
        `reshard.to_universal` put them. Raises CheckpointError where a network is missing.
        """
        for network, tag in ((self.generator, "generator"), (self.critic, "critic")):
            network.load((network.universal and converted) or folder, tag)
        self.ema.load(ema)
        self.objective.load(objective)

    def _scored(
        self,
        critic: Learner,
        real_BCTHW: Tensor,
        fake_BCTHW: Tensor,
        y_B: Condition,
        draw: CriticDraws,
        *,
        penalised: bool,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Logits of real and fake, and the mean of R1 and R2, each without its gamma / 2.

        With `loss.r1` and `loss.r2`, though. Last, what of the real clips entered the head.
        """
        clips, loss = [real_BCTHW, fake_BCTHW], self.config.loss
        finite = penalised and not self.config.exact_penalty
        if finite:
            clips += [
                x_BCTHW + loss.penalty_sigma * noise_like(x_BCTHW, seed_B)
                for x_BCTHW, seed_B in zip(clips, draw.noise_B2.unbind(1), strict=True)
            ]
        if self.config.model.batch_statistics:
            # Apart, as the generator's turn will show it the fakes: a critic that normalises by
            # batch sees another clip in other company.
            judged = [critic.with_head(x_BCTHW, y_B) for x_BCTHW in clips]
            logits, entered = [logit_B.float() for logit_B, _ in judged], judged[0][1]
        else:
            logit_N, entered = critic.with_head(torch.cat(clips), y_B.repeat(len(clips)))
            logits = list(logit_N.float().chunk(len(clips)))
            entered = entered.chunk(len(clips))[0]
        penalty = torch.zeros((), device=self.device)
        weight_2 = torch.tensor([loss.r1, loss.r2], device=self.device)
        weight_B = weight_2.repeat_interleave(len(real_BCTHW))
        if finite:
            penalty = losses.difference_penalty(
                torch.cat(logits[:2]), torch.cat(logits[2:]), loss.penalty_sigma, weight_B
            )
        elif penalised:
            penalty = critic.gradient_penalty(torch.cat(clips), y_B.repeat(2), weight_B)
        return logits[0], logits[1], penalty, entered

    def _contrast(
        self,
        critic: Learner | Opponent,
        entered_BC: Tensor,
        y_B: Condition,
        others_K: Condition | None,
    ) -> Tensor | None:
        """Of clips that are to show y_B, of which this entered the head; None where not asked."""
        kinds = [k for k in self.config.conditions.kinds if k != "image"]  # seen, not told
        if others_K is None or not kinds:
            return None
        return matching.contrast(
            functools.partial(critic.cosines, entered_BC), y_B, others_K, kinds
        )

    def _micro_batches(
        self, batch: Batch, drawn: _Drawn
    ) -> Iterator[tuple[Tensor, Condition, _Drawn]]:
        x_BCTHW, y_B = batch[0], Condition.of(batch[1])
        if drawn.dropped_BK is not None:
            y_B = y_B.without(drawn.dropped_BK)
        for start in range(0, len(x_BCTHW), self.micro_batch):
            rows = slice(start, start + self.micro_batch)
            given_B = y_B.rows(rows).to(self.device, self.dtype)
            part_BCTHW, draw = x_BCTHW[rows].to(self.device, self.dtype), drawn[rows]
            model = self.config.model
            if isinstance(model, SuperresConfig) and draw.low is not None:
                given_B = draw.low.of(part_BCTHW, given_B, model.factor)
            yield part_BCTHW, given_B, draw

    def _input(self, z_BD: Tensor) -> Tensor:
        return z_BD.to(self.device, self.dtype)

    def _schedule(self, progress: float) -> None:
        optim = self.config.optim
        for network, adam in ((self.generator, optim.generator), (self.critic, optim.critic)):
            lr = losses.cosine(progress, adam.lr, adam.lr * optim.lr_decay)
            beta2 = scheduled(progress, adam.beta2, adam.beta2_end)
            network.set_adam(lr=lr * self.lr_scale, beta2=beta2)

    def _gradient_norms(self) -> dict[str, Tensor]:
        norms = {
            "grad/generator": self.generator.gradient_norm,
            "grad/critic": self.critic.gradient_norm,
        }
        return {name: norm.to(self.device) for name, norm in norms.items() if norm is not None}


class _Figures:
    """Means of what the backward passes of one step had to say."""

    def __init__(self) -> None:
        self._values: defaultdict[str, list[Tensor]] = defaultdict(list)

    def add(self, name: str, value: Tensor) -> None:
        self._values[name].append(value.detach())

    def add_losses(self, terms: Sequence[Term]) -> None:
        """The whole under the name of the first, the others without their weights."""
        self.add(f"loss/{terms[0].name}", total(terms))
        for term in terms[1:]:
            self.add(f"loss/{term.name}", term.value)

    def means(self) -> dict[str, Tensor]:
        return {name: torch.stack(values).mean() for name, values in self._values.items()}


def _seen(
    y_B: Condition, x_BCTHW: Tensor, draw: augment.Draw, probability: Tensor | float
) -> Condition:
    """Conditions as a critic takes them: a small clip enlarged, and augmented like `x_BCTHW`."""
    if y_B.low_BCTHW is None:
        return y_B
    low_BCTHW = enlarged(y_B.low_BCTHW, x_BCTHW.shape[3:])
    return y_B._replace(low_BCTHW=augment.apply(low_BCTHW, draw, probability))


def _crossed(
    y_B: Condition, heard_K: Condition | None, crossing: Crossing | None
) -> tuple[Condition, Condition]:
    return (y_B, y_B) if crossing is None else crossing.of(y_B, heard_K)


def _judged(
    judge: Opponent, x_BCTHW: Tensor, shown_BCTHW: Tensor, y_B: Condition
) -> tuple[Judged, Tensor]:
    logit_B, entered_BC = judge.with_head(shown_BCTHW, y_B)
    feature_BC = entered_BC.reshape(*entered_BC.shape[:2], -1).mean(2)
    return Judged(x_BCTHW, logit_B.float(), feature_BC.float()), entered_BC


def _notes(config: Config, batches: int, micro_batch: int) -> list[str]:
    train, loss, notes = config.train, config.loss, []
    if train.zero_stage == 3 and train.critic_stage is None:
        notes.append(
            "train.zero_stage=3: the critic takes stage 2, the highest at which exact R1 and R2 "
            "survive (train.critic_stage)"
        )
    if loss.gamma and loss.penalty == "auto" and not config.exact_penalty:
        notes.append(
            f"loss.penalty=finite, sigma {loss.penalty_sigma:g}: exact R1 and R2 do not survive "
            f"the critic's stage {train.critic_zero_stage}"
        )
    if batches > 1:
        notes.append(
            f"train.micro_batch={train.micro_batch}: each worker accumulates the gradients of "
            f"{batches} x {micro_batch} clips"
        )
        if config.model.batch_statistics:
            notes.append(
                f"model.kind={config.model.kind}: batch norm sees {micro_batch} clips at a time, "
                "so the result depends on train.micro_batch"
            )
    return notes
