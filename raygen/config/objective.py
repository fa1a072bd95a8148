"""Settings of what is minimised and how: losses, augmentation, optimizers, schedules."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from raygen.tree import Section


class LossConfig(Section):
    """The adversarial objective and its gradient penalties."""

    kind: Literal["relativistic", "bce", "hinge"] = Field(
        "relativistic", description="pairing loss, BCE or hinge"
    )
    gamma: float = Field(4.0, ge=0, description="weight of R1 and R2 at the start, 0: none")
    gamma_decay: float = Field(0.1, gt=0, le=1, description="that weight at the end, as a fraction")
    r1: float = Field(1.0, ge=0, description="R1, on real clips, as a multiple of gamma")
    r2: float = Field(1.0, ge=0, description="R2, on fakes, as a multiple of gamma")
    penalty_every: int = Field(4, ge=1, le=64, description="critic steps between lazy R1 and R2")
    penalty: Literal["auto", "exact", "finite"] = Field(
        "auto", description="R1 and R2 exact, or by finite differences as critic stage 3 needs"
    )
    penalty_sigma: float = Field(
        0.1, gt=0, le=1, description="noise of the finite form, in units of the [-1, 1] range"
    )
    critic_steps: int = Field(1, ge=1, le=16, description="critic steps, a batch each, a step")
    lecam: float = Field(0.0, ge=0, description="weight of LeCam on the logits, for small sets")
    roughness: float = Field(
        0.0, ge=0, description="weight of second differences in time being those of real clips"
    )
    patches: float = Field(
        0.0, ge=0, description="weight of frames explaining the next ones' patches as real ones do"
    )
    features: float = Field(0.0, ge=0, description="weight of matching the critic's mean features")
    contrast: float = Field(
        0.0, ge=0, description="weight of telling a clip's conditions from those of other clips"
    )
    pixels: float = Field(
        0.0, ge=0, description="superres: weight of L1 between an enlarged clip and the real one"
    )


class AugmentConfig(Section):
    """Differentiable augmentation of what the critic sees, drawn once a clip."""

    colour: float = Field(0.0, ge=0, le=1, description="strength of brightness and contrast")
    saturation: float = Field(0.0, ge=0, le=1, description="strength; at 1 from none to twice")
    translate: float = Field(0.0, ge=0, le=0.5, description="largest shift, fraction of the size")
    cutout: float = Field(0.0, ge=0, le=0.75, description="side of the erased box, fraction")
    probability: float = Field(1.0, ge=0, le=1, description="share of clips augmented, each kind")
    probability_end: float | None = Field(
        None, ge=0, le=1, description="that share at the end of its cosine; null: as at the start"
    )
    adaptive: bool = Field(
        False, description="that share found in training, from 0 up to probability"
    )
    target: float = Field(
        0.6, gt=-1, lt=1, description="adaptive: how sure of real clips the critic shall be"
    )
    span: int = Field(
        50_000, ge=1, description="adaptive: clips in which the share may go from 0 to 1"
    )

    @property
    def kinds(self) -> bool:
        """Whether there is anything to apply."""
        return any((self.colour, self.saturation, self.translate, self.cutout))


class AdamConfig(Section):
    """Adam for one network."""

    lr: float = Field(5e-4, gt=0, le=1, description="learning rate at the start of its cosine")
    beta1: float = Field(0.0, ge=0, lt=1, description="Adam's beta1")
    beta2: float = Field(0.99, ge=0, lt=1, description="Adam's beta2")
    beta2_end: float | None = Field(
        None, ge=0, lt=1, description="beta2 at the end of its cosine; null: as at the start"
    )


class OptimConfig(Section):
    """Both optimizers, and what follows the same schedule."""

    generator: AdamConfig = Field(AdamConfig(), description="")
    critic: AdamConfig = Field(AdamConfig(), description="")
    lr_decay: float = Field(0.1, gt=0, le=1, description="learning rates at the end, as a fraction")
    clip_norm: float = Field(0.0, ge=0, description="gradient norm to clip at, 0: none")
    ema_halflife: float = Field(500.0, ge=0, description="half-life of the generator's EMA, clips")
    ema_halflife_end: float | None = Field(
        None, ge=0, description="half-life at the end of its cosine, clips; null: as at the start"
    )
    burn_in: float = Field(
        1.0, gt=0, le=1, description="share of the run after which all schedules are at their end"
    )
