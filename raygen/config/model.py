"""Settings of the networks: the families by `model.kind`, and what a clip can be asked for by."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from raygen import tree
from raygen.tree import Section

KINDS = ("class", "text", "image", "vector")
"""Kinds of conditions, in the order in which networks know them."""


class _Family(Section):
    kind: str
    latent_dim: int = Field(64, ge=1, le=1024, description="dimension of the latent z")
    class_dim: int = Field(64, ge=1, le=1024, description="dimension of a condition's embedding")
    generator_width: int = Field(32, ge=4, le=1024, description="channels of the last hidden layer")
    critic_width: int = Field(32, ge=4, le=1024, description="channels of the critic's first layer")
    frame_critic: int = Field(
        0, ge=0, le=256, description="frames that a 2D critic judges beside the clip, 0: none"
    )

    @property
    def batch_statistics(self) -> bool:
        """Whether a layer's output depends on the other clips of its batch."""
        return False

    @property
    def any_aspect(self) -> bool:
        """Whether its clips may be wider than high, or higher than wide."""
        return True


class StridedConfig(_Family):
    """4x4x4 transposed convolutions, group norm: texture and pose."""

    kind: Literal["strided"] = Field("strided", description="model family")


class TwoStreamConfig(_Family):
    """A moving foreground over a still background (VGAN, arXiv 1609.02612), modulated, filtered."""

    kind: Literal["twostream"] = Field("twostream", description="model family")


class UpsamplingConfig(_Family):
    """Trilinear upsampling, convolutions modulated by (latent, class), pixel norm: clean motion."""

    kind: Literal["upsampling"] = Field("upsampling", description="model family")


class _Residual(_Family):
    attention: bool = Field(False, description="temporal attention at 16x16 and below")


class ResidualConfig(_Residual):
    """Grouped residual blocks, motion at low resolution, any length: no normalisation."""

    kind: Literal["residual"] = Field("residual", description="model family")


class TriplaneConfig(_Residual):
    """Three feature planes that frames are read from, any length (RAVEN, arXiv 2401.06035)."""

    kind: Literal["triplane"] = Field("triplane", description="model family")

    @property
    def any_aspect(self) -> bool:
        """False: its lines along x and along y go through one network."""
        return False


class SuperresConfig(_Family):
    """Enlarges the clips of another export, frame by frame: cascades (arXiv 2106.15282)."""

    kind: Literal["superres"] = Field("superres", description="model family")
    base: str = Field("", description="export whose clips are enlarged: folder or s3://")
    factor: Literal[2, 4, 8] = Field(4, description="how many times as high and wide")
    blocks: int = Field(4, ge=1, le=64, description="residual blocks at the low resolution")
    noise: float = Field(
        0.1, gt=0, le=1, description="most noise on small clips in training, of the [-1, 1] range"
    )
    noise_drawn: float = Field(
        0.02, ge=0, le=1, description="noise on the base's clips, of the [-1, 1] range"
    )

    @model_validator(mode="after")
    def _trained_so_far(self) -> Self:
        if self.noise_drawn > self.noise:
            raise ValueError(
                f"noise_drawn={self.noise_drawn:g} is more than noise={self.noise:g}, the most "
                "that training shows; lower it"
            )
        return self


class Conv3dConfig(_Family):
    """The literal baseline: 3D transposed convolutions and batch norm (VGAN, arXiv 1609.02612)."""

    kind: Literal["conv3d"] = Field("conv3d", description="model family")

    @property
    def batch_statistics(self) -> bool:
        """Batch norm: true."""
        return True


class DcganConfig(_Family):
    """The literal baseline of pictures: 2D, frame by frame, batch norm (arXiv 1511.06434)."""

    kind: Literal["dcgan"] = Field("dcgan", description="model family")

    @property
    def batch_statistics(self) -> bool:
        """Batch norm: true."""
        return True


class MlpConfig(_Family):
    """The literal first baseline: fully connected, all pixels at once (arXiv 1406.2661)."""

    kind: Literal["mlp"] = Field("mlp", description="model family")
    generator_width: int = Field(32, ge=4, le=1024, description="units of both hidden layers")
    critic_width: int = Field(32, ge=4, le=1024, description="maxout units of the critic")


ModelConfig = Annotated[
    StridedConfig
    | TwoStreamConfig
    | UpsamplingConfig
    | ResidualConfig
    | TriplaneConfig
    | SuperresConfig
    | Conv3dConfig
    | DcganConfig
    | MlpConfig,
    Field(discriminator="kind"),
]


class ConditionsConfig(Section):
    """What a clip can be asked for by; one network serves every mixture of these kinds."""

    kinds: tuple[Literal["class", "text", "image", "vector"], ...] = Field(
        ("class",), description="any of class, text, image (the first frame), vector (your own)"
    )
    drop: float | None = Field(
        None, ge=0, le=0.9, description="share left out in training, each kind; null: as kinds need"
    )
    crossed: float = Field(
        0.0,
        ge=0,
        le=0.9,
        description="share of texts crossed of two captions, for a generator to draw; tokens only",
    )
    encoder: str = Field(
        "tokens",
        min_length=1,
        description="of text: tokens (learned), minilm (raygen[text]), or a transformers folder",
    )
    text_length: int = Field(32, ge=1, le=512, description="words that encoder tokens reads")
    text_dim: int = Field(384, ge=1, le=8192, description="dimension of any other text encoder's")
    vector_dim: int = Field(64, ge=1, le=8192, description="dimension of the catalogue's vectors")

    @property
    def drop_share(self) -> float:
        """How often each kind is left out: 0.1, or never where classes alone are known."""
        if self.drop is not None:
            return self.drop
        return 0.0 if self.kinds == ("class",) else 0.1

    @property
    def optional(self) -> bool:
        """Whether a kind may be left out; no class may where classes alone are always given."""
        return self.drop_share > 0 or self.kinds != ("class",)

    @model_validator(mode="after")
    def _kinds_fit(self) -> Self:
        if not self.kinds or len(set(self.kinds)) < len(self.kinds):
            raise ValueError(
                f"kinds must be one or more of {', '.join(KINDS)}, each once "
                f"(got {list(self.kinds)})"
            )
        if self.crossed and ("text" not in self.kinds or self.encoder != "tokens"):
            raise ValueError("crossed crosses texts of encoder tokens; take crossed=0 without them")
        if "image" in self.kinds and not self.drop_share:
            raise ValueError(
                "drop=0 makes a model that cannot draw without a first frame, and samples and "
                "judgements are drawn without; take drop=0.1"
            )
        return self


def families() -> dict[str, type[Section]]:
    """Model kind to its config class, of those that draw clips by themselves: not superres."""
    kinds = tree.variants(ModelConfig)
    del kinds["superres"]
    return kinds
