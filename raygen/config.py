"""The one typed tree that describes a run; every other module takes it, or a branch of it.

    raygen config tiny                          # the resolved preset, described key by key
    raygen train tiny optim.generator.lr=1e-4   # a dotted path is the key everywhere

A dotted path is the YAML key, the command-line override, the key of a search space and the name
in an error. The tree is frozen; a changed copy comes from `Config.load`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, PlainSerializer, PlainValidator, model_validator

from raygen import tree
from raygen.errors import ConfigError
from raygen.tree import Section

PRESETS = Path(__file__).parent / "presets"
KINDS = ("class", "text", "image", "vector")
"""Kinds of conditions, in the order in which networks and draws keep them."""


class CacheConfig(Section):
    """Where decoded clips are kept beyond the memory of a decode actor."""

    uri: str = Field("", description="folder or s3://bucket/prefix; empty: none")
    gb: float = Field(20.0, gt=0, description="largest size of that cache, GB")


class LimitsConfig(Section):
    """What one clip may cost before it is refused."""

    seconds: float = Field(30.0, gt=0, description="time to decode one clip, seconds")
    memory_mb: int = Field(2048, ge=64, description="memory that one clip may take, MB")
    megapixels: float = Field(40.0, gt=0, description="largest frame, millions of pixels")
    object_mb: int = Field(2048, ge=1, description="largest video file that is fetched, MB")


class DataConfig(Section):
    """Which clips, and the shape in which they reach the networks."""

    uri: str = Field("", description="clips: a folder, s3://bucket/prefix, or a catalogue.parquet")
    frames: int = Field(16, ge=4, le=256, multiple_of=4, description="frames of a clip (T)")
    size: int = Field(32, ge=16, le=512, multiple_of=16, description="height and width, pixels")
    fps: float = Field(16.0, gt=0, le=240, description="frames per second sampled from the source")
    split: str = Field("", description="only clips of this split, such as train; empty: all")
    crop: Literal["centre", "random"] = Field("centre", description="which square of the frame")
    sampling: Literal["uniform", "balanced", "weighted"] = Field(
        "uniform", description="each clip once an epoch, classes alike, or by column weight"
    )
    decoders: int = Field(1, ge=1, le=64, description="decode actors per worker")
    prefetch: int = Field(2, ge=1, le=64, description="batches ready for each worker")
    ahead_mb: int = Field(64, ge=1, description="decoded clips that may wait for the trainer, MB")
    cache_mb: int = Field(256, ge=0, description="decoded short videos kept per decode actor, MB")
    cache: CacheConfig = Field(CacheConfig(), description="")
    limits: LimitsConfig = Field(LimitsConfig(), description="")

    @property
    def clip_bytes(self) -> int:
        """Bytes of one decoded clip, uint8 [T, H, W, 3]."""
        return self.frames * self.size * self.size * 3

    @model_validator(mode="after")
    def _cache_can_hit(self) -> Self:
        if self.cache.uri and self.crop == "random":
            raise ValueError("crop=random never meets a cached clip again; take crop=centre")
        return self


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


class StridedConfig(_Family):
    """4x4x4 transposed convolutions, group norm: texture and pose."""

    kind: Literal["strided"] = Field("strided", description="model family")


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
    | UpsamplingConfig
    | ResidualConfig
    | TriplaneConfig
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
        if "image" in self.kinds and not self.drop_share:
            raise ValueError(
                "drop=0 makes a model that cannot draw without a first frame, and samples and "
                "judgements are drawn without; take drop=0.1"
            )
        return self


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
    node: str = Field("local", description="node type that prices this run (raygen prices)")

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
    """Optional limits; the first one reached ends the run, saved and successful."""

    minutes: float | None = Field(None, gt=0, description="training time; schedules end here too")
    dollars: float | None = Field(None, gt=0, description="price of the nodes while they train")


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


class Config(Section):
    """A whole run: `Config.load("tiny", {"optim.generator.lr": 1e-4})`."""

    name: str = Field(
        "run", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="run name; the same resumes"
    )
    storage: str = Field("runs", min_length=1, description="where runs are kept: folder or s3://")
    seed: int = Field(0, ge=0, lt=2**31, description="seed of weights, order, latents")
    data: DataConfig = Field(DataConfig(), description="")
    model: ModelConfig = Field(StridedConfig(), description="")
    conditions: ConditionsConfig = Field(ConditionsConfig(), description="")
    loss: LossConfig = Field(LossConfig(), description="")
    augment: AugmentConfig = Field(AugmentConfig(), description="")
    optim: OptimConfig = Field(OptimConfig(), description="")
    train: TrainConfig = Field(TrainConfig(), description="")
    budget: Budget = Field(Budget(), description="")
    health: HealthConfig = Field(HealthConfig(), description="")
    tracking: TrackingConfig = Field(TrackingConfig(), description="")
    evaluate: EvaluateConfig = Field(EvaluateConfig(), description="")

    @property
    def exact_penalty(self) -> bool:
        """Whether R1 and R2 are exact (a double backward) or by finite differences."""
        if self.loss.penalty == "auto":
            return self.train.critic_zero_stage < 3
        return self.loss.penalty == "exact"

    @model_validator(mode="after")
    def _engines_can(self) -> Self:
        # What no single key is to blame for; a ConfigError passes through pydantic as it is.
        train, model = self.train, self.model
        if self.exact_penalty and train.critic_zero_stage == 3:
            raise ConfigError(
                "loss.penalty=exact is wrong at train.critic_stage=3; take critic_stage=2, "
                "or loss.penalty=finite",
                "loss.penalty",
            )
        if train.offload and 0 in (train.zero_stage, train.critic_zero_stage):
            raise ConfigError(
                "train.offload moves sharded optimizer state; take train.zero_stage and "
                "train.critic_stage of 1 to 3",
                "train.offload",
            )
        if self.augment.adaptive and not self.augment.kinds:
            raise ConfigError(
                "augment.adaptive has nothing to apply; give augment.colour, saturation, "
                "translate or cutout a strength",
                "augment.adaptive",
            )
        if train.recompute and model.batch_statistics:
            raise ConfigError(
                f"train.recompute would show model.kind={model.kind}'s batch norm each batch "
                "twice; take another kind, or a smaller train.micro_batch",
                "train.recompute",
            )
        return self

    @classmethod
    def load(cls, preset: str | Path, overrides: Mapping[str, Any] | Iterable[str] = ()) -> Config:
        """A preset's name or a YAML file, with dotted overrides on top.

        `overrides` is a mapping of dotted paths or an iterable of `key=value` strings, whose
        values are read as YAML. Raises ConfigError naming the key, the rule and the value.
        """
        return cls.parse(_read_preset(preset), overrides)

    @classmethod
    def parse(
        cls, nested: Mapping[str, Any], overrides: Mapping[str, Any] | Iterable[str] = ()
    ) -> Config:
        """A nested tree, as `dump` gives it, with dotted overrides on top."""
        return tree.validated(cls, nested, overrides)

    def dump(self) -> dict[str, Any]:
        """The nested tree in plain JSON types; `Config.parse` takes it back."""
        return self.model_dump(mode="json")

    def flat(self) -> dict[str, Any]:
        """Dotted path to value, for every leaf."""
        return dict(tree.leaves(self.dump()))

    def to_yaml(self) -> str:
        """YAML that `load` reads back, each key followed by its description."""
        return "\n".join(tree.describe(self)) + "\n"


def presets() -> list[str]:
    """The names of the presets that ship with raygen."""
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def families() -> dict[str, type[Section]]:
    """Model kind to its config class."""
    return tree.variants(ModelConfig)


def _read_preset(preset: str | Path) -> dict[str, Any]:
    path = Path(preset)
    if path.suffix not in (".yaml", ".yml"):
        path = PRESETS / f"{preset}.yaml"
        if not path.is_file():
            hint = tree.nearest(str(preset), presets())
            raise ConfigError(
                f"no preset {str(preset)!r}{hint}; there are {', '.join(presets())}, "
                "or give a .yaml file"
            )
    return tree.read_yaml(path)
