"""The adversarial step as anyone would write it in PyTorch: what the engines are compared with."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from raygen import augment, temporal
from raygen.conditions import Condition
from raygen.config import KINDS, Config, SuperresConfig
from raygen.draws import CriticDraws, Draws, GeneratorDraws, noise_like
from raygen.matching import Crossing
from raygen.models import build_critic, build_generator

Batch = tuple[Tensor, Tensor | Condition]


class PlainPair:
    """Adam, autograd, one process, one device; `step` takes whole global batches."""

    def __init__(self, config: Config, classes: int, device: torch.device) -> None:
        self.config, self.device = config, device
        torch.manual_seed(config.seed)
        shape = (config.model, config.data, classes, config.conditions)
        self.generator = build_generator(*shape).to(device)
        self.critic = build_critic(*shape).to(device)
        self.optim_g, self.optim_d = (
            torch.optim.Adam(net.parameters(), lr=adam.lr, betas=(adam.beta1, adam.beta2))
            for net, adam in (
                (self.generator, config.optim.generator),
                (self.critic, config.optim.critic),
            )
        )
        self.average = {k: v.clone() for k, v in self.generator.state_dict().items()}
        self.probability = 0.0 if config.augment.adaptive else config.augment.probability
        self.means: dict[str, Tensor] = {}
        # Of one clip each: those heard, and those of them that clips are told from.
        self.heard: list[Condition] = []
        self.others: list[Condition] = []
        self.steps = 0

    def step(self, batches: Sequence[Batch], draws: Draws, *, step: int, progress: float) -> None:
        """Steps of the critic, one of the generator, one of the average."""
        config, critic, generator = self.config, self.critic, self.generator
        optim = config.optim
        progress = min(progress / optim.burn_in, 1)
        decay = 0.5 * (1 + math.cos(math.pi * progress))
        for optimizer, adam in ((self.optim_g, optim.generator), (self.optim_d, optim.critic)):
            optimizer.param_groups[0]["lr"] = adam.lr * (
                optim.lr_decay + (1 - optim.lr_decay) * decay
            )
            if adam.beta2_end is not None:
                beta2 = adam.beta2 * decay + adam.beta2_end * (1 - decay)
                optimizer.param_groups[0]["betas"] = (adam.beta1, beta2)
        most = config.augment.probability
        if config.augment.probability_end is not None:
            most = most * decay + config.augment.probability_end * (1 - decay)
        if not config.augment.adaptive:
            self.probability = most

        self.others = self.heard[-64:]
        if draws.heard is not None and self.others:
            parts = zip(*self.others, strict=True)
            heard = Condition(*(None if p[0] is None else torch.cat(p) for p in parts))  # type: ignore[arg-type,type-var]
            crossed = Condition.of(self._crossed(heard, draws.heard)[0])
            self.others = [crossed.rows(slice(i, i + 1)) for i in range(len(self.others))]
        # What the averages are to take in: one tensor a batch, by name.
        measured: dict[str, list[Tensor]] = {}
        low = config.loss.gamma_decay
        gamma = config.loss.gamma * (low + (1 - low) * decay)
        for number, ((x, y), drawn) in enumerate(zip(batches, draws.critic, strict=True)):
            due = (step * config.loss.critic_steps + number) % config.loss.penalty_every == 0
            self.optim_d.zero_grad()
            given = self._lowered(x, without(y, drawn.dropped_BK), drawn)
            self._critic_loss(x, given, drawn, gamma if due else 0, measured).backward()  # type: ignore[no-untyped-call]
            self._clip(critic)
            self.optim_d.step()

        z, y = draws.generator.z_BD.to(self.device), without(y, draws.generator.dropped_BK)
        y = self._lowered(x, y, draws.generator)
        asked, y = self._crossed(y, draws.generator.crossing)
        fake = generator(z, asked)
        play, fake_features = self._looked_at(fake, y, draws)
        rival, real_features = self._looked_at(x, y, draws)
        loss = F.softplus(rival - play).mean()
        if config.loss.kind == "bce":
            loss = F.softplus(-play).mean()
        elif config.loss.kind == "hinge":
            loss = -play.mean()
        if config.loss.pixels:
            loss = loss + config.loss.pixels * F.l1_loss(fake, x)
        if config.loss.contrast:
            shown = augment.apply(fake, draws.generator.play, self.probability)
            entered = self.critic.layers(shown)  # type: ignore[operator]
            loss = loss + config.loss.contrast * self._contrast(entered, asked)
        for weight, name, statistics in (
            (config.loss.roughness, "roughness", lambda: map(temporal.roughness, (fake, x))),
            (config.loss.patches, "patches", lambda: map(temporal.unexplained, (fake, x))),
            (config.loss.features, "features", lambda: (fake_features, real_features)),
        ):
            if not weight:
                continue
            fakes, reals = statistics()
            if f"{name}/real" in self.means:
                gap = (self.means[f"{name}/fake"] - self.means[f"{name}/real"]).float()
                loss = loss + weight * (fakes.mean(0) * gap).sum()
            measured |= {f"{name}/fake": [fakes], f"{name}/real": [reals]}
        self.optim_g.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self._clip(generator)
        self.optim_g.step()
        self._remember(measured)
        for _, y in batches:
            self.heard += [Condition.of(y).rows(slice(i, i + 1)) for i in range(len(x))]
        if config.augment.adaptive:
            clips = config.train.batch_size * config.loss.critic_steps
            way = 1 if self.means["sure"] > config.augment.target else -1
            moved = self.probability + way * clips / config.augment.span
            self.probability = min(max(moved, 0), most)

        batch = config.train.batch_size
        halflife = optim.ema_halflife
        if optim.ema_halflife_end is not None:
            halflife = halflife * decay + optim.ema_halflife_end * (1 - decay)
        halflife = min(halflife, 0.05 * (step + 1) * batch)
        for name, tensor in generator.state_dict().items():
            if tensor.is_floating_point():
                self.average[name] += (1 - 0.5 ** (batch / halflife)) * (
                    tensor - self.average[name]
                )

    def _looked_at(
        self, clips: Tensor, y: Tensor | Condition, draws: Draws
    ) -> tuple[Tensor, Tensor]:
        """Logits, and what the critic's head reads, averaged over positions, if that is asked."""
        y = self._enlarged(y, draws.generator.play)
        if not self.config.loss.features:
            shown = augment.apply(clips, draws.generator.play, self.probability)
            return self.critic(shown, y), torch.zeros(len(clips), 1, device=self.device)
        layers: torch.nn.Module = self.critic.layers  # type: ignore[assignment]
        head: torch.nn.Module = self.critic.head  # type: ignore[assignment]
        map_ = layers(augment.apply(clips, draws.generator.play, self.probability))
        return head(map_, y), map_.mean((2, 3, 4))

    def _crossed(
        self, y: Tensor | Condition, crossing: Crossing | None
    ) -> tuple[Tensor | Condition, Tensor | Condition]:
        """What the generator is asked for, and what the critic is told."""
        if crossing is None or not self.heard:
            return y, y
        y, heard = Condition.of(y), self.heard[-64:]
        text, given, told = (part.clone() for part in (y.text, y.given_BK, y.given_BK))  # type: ignore[union-attr]
        for i, row in enumerate(text):
            other = heard[int(crossing.with_B[i] * len(heard))]
            if not (crossing.crossed_B[i] and given[i, 1] and other.given_BK[0, 1]):
                continue
            cut = int(1 + crossing.at_B[i] * (int((row > 0).sum()) - 1))
            words = [row, other.text[0]]  # type: ignore[index]
            first, last = words if crossing.order_B[i] >= 0.5 else words[::-1]
            text[i] = torch.cat([first[:cut], last[cut:]])
            given[i] = torch.tensor([False, True, False, False])
            told[i] = False
        return y._replace(text=text, given_BK=given), y._replace(given_BK=told)

    def _contrast(self, entered: Tensor, y: Tensor | Condition) -> Tensor:
        """Clip by clip, against those of other conditions alone."""
        head, loss = self.critic.head, torch.zeros((), device=self.device)
        kinds = [kind for kind in self.config.conditions.kinds if kind != "image"]
        for i, kind in itertools.product(range(len(entered)) if self.others else (), kinds):
            own, k = Condition.of(y).rows(slice(i, i + 1)).only(kind), KINDS.index(kind)
            says = {"class": "labels_B", "text": "text", "vector": "vector_BV"}[kind]
            others = [
                other.only(kind)
                for other in self.others
                if own.given_BK[0, k] and other.given_BK[0, k]
                if not torch.equal(getattr(own, says), getattr(other, says))
            ]
            hidden = F.leaky_relu(head.hidden(entered[i].flatten()), 0.2)  # type: ignore[operator,union-attr]
            said = torch.cat([head.embedding(c) for c in (own, *others)])  # type: ignore[operator,union-attr]
            scores = F.cosine_similarity(hidden[None], said) / 0.1
            picked = F.cross_entropy(scores[None], torch.zeros(1, dtype=torch.long))
            loss = loss + picked / (len(entered) * len(kinds))
        return loss

    def _lowered(
        self, x: Tensor, y: Tensor | Condition, drawn: CriticDraws | GeneratorDraws
    ) -> Tensor | Condition:
        """With the small clips that a stage of super-resolution enlarges."""
        model = self.config.model
        if not isinstance(model, SuperresConfig) or drawn.low is None:
            return y
        return drawn.low.of(x, Condition.of(y), model.factor)

    def _enlarged(self, y: Tensor | Condition, draw: augment.Draw) -> Tensor | Condition:
        """What the critic is shown of those small clips."""
        y = Condition.of(y)
        if y.low_BCTHW is None:
            return y
        data = self.config.data
        low = y.low_BCTHW.transpose(1, 2).flatten(0, 1)
        up = F.interpolate(low, (data.height, data.width), mode="bilinear")
        up = up.view(len(y.low_BCTHW), -1, 3, data.height, data.width).transpose(1, 2)
        return y._replace(low_BCTHW=augment.apply(up, draw, self.probability))

    def _remember(self, measured: dict[str, list[Tensor]]) -> None:
        self.steps += 1
        for name, values in measured.items():
            mean = torch.cat(values).detach().double().mean(0)
            kept = 0.99 if "logit" in name else 0.75 if name == "sure" else 0.9
            kept = min(kept, 1 - 1 / self.steps)
            self.means[name] = kept * self.means.get(name, mean) + (1 - kept) * mean

    def _clip(self, network: torch.nn.Module) -> None:
        if self.config.optim.clip_norm:
            torch.nn.utils.clip_grad_norm_(network.parameters(), self.config.optim.clip_norm)

    def _critic_loss(
        self,
        x: Tensor,
        y: Tensor | Condition,
        drawn: CriticDraws,
        gamma: float,
        measured: dict[str, list[Tensor]],
    ) -> Tensor:
        config, critic, given = self.config, self.critic, y
        with torch.no_grad():
            made = self.generator(drawn.z_BD.to(self.device), y)
        fake = augment.apply(
            made, drawn.fake if drawn.low is None else drawn.real, self.probability
        )
        shown = augment.apply(x, drawn.real, self.probability)
        y = self._enlarged(y, drawn.real)
        clips = [shown, fake]
        finite = gamma > 0 and not config.exact_penalty
        if finite:
            sigma = config.loss.penalty_sigma
            clips += [
                clip + sigma * noise_like(clip, drawn.noise_B2[:, i])
                for i, clip in enumerate((shown, fake))
            ]
        # In one pass, as the engine does it: Adam without momentum makes a full step of rounding.
        if config.model.batch_statistics:
            logits = [critic(clip, y) for clip in clips]
        else:
            logits = list(critic(torch.cat(clips), y.repeat(len(clips))).chunk(len(clips)))
        loss = F.softplus(logits[1] - logits[0]).mean()
        contrast = torch.zeros((), device=self.device)
        if config.loss.contrast:
            contrast = self._contrast(critic.layers(shown), given)  # type: ignore[operator]
        if config.loss.kind == "bce":
            loss = (F.softplus(-logits[0]) + F.softplus(logits[1])).mean()
        elif config.loss.kind == "hinge":
            loss = F.relu(1 - logits[0]).mean() + F.relu(1 + logits[1]).mean()
        sure = logits[0] - logits[1] if config.loss.kind == "relativistic" else logits[0]
        for name, value in (
            ("sure", sure.sign()),
            ("logit/real", logits[0]),
            ("logit/fake", logits[1]),
        ):
            measured.setdefault(name, []).append(value)
        if config.loss.lecam:
            zero = torch.zeros((), device=self.device)
            real_anchor, fake_anchor = (
                self.means.get(f"logit/{side}", zero).float() for side in ("real", "fake")
            )
            apart = (logits[0] - fake_anchor) ** 2 + (logits[1] - real_anchor) ** 2
            loss = loss + config.loss.lecam * apart.mean()
        loss = loss + config.loss.contrast * contrast
        weight = gamma / 2 * config.loss.penalty_every
        if finite:
            for near, far, share in (
                (logits[0], logits[2], config.loss.r1),
                (logits[1], logits[3], config.loss.r2),
            ):
                loss = loss + share * weight * (far - near).square().mean() / sigma**2
        elif gamma:
            for clip, share in ((shown, config.loss.r1), (fake, config.loss.r2)):
                leaf = clip.detach().requires_grad_(True)
                (gradient,) = torch.autograd.grad(critic(leaf, y).sum(), leaf, create_graph=True)
                loss = loss + share * weight * gradient.flatten(1).norm(dim=1).square().mean()
        return loss


def without(y: Tensor | Condition, dropped: Tensor | None) -> Tensor | Condition:
    """Conditions less what is left out of them."""
    return y if dropped is None else Condition.of(y).without(dropped)
