"""Settings of the clips: which, in what shape, at what cost."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, PlainSerializer, PlainValidator, model_validator

from raygen.sides import Size, sides, written
from raygen.tree import Section


def _size(value: Any) -> Size:
    try:
        both = sides(value if isinstance(value, str | int) else "")
    except ValueError:
        both = (0, 0)
    if any(isinstance(value, bool) or not 16 <= n <= 512 or n % 16 for n in both):
        raise ValueError(
            "must be from 16 to 512, or HEIGHTxWIDTH of such, as 64x96, "
            f"each a multiple of 16 (got {value})"
        )
    return written(*both)


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
    size: Annotated[Size, PlainValidator(_size), PlainSerializer(lambda v: v)] = Field(
        32, description="height and width, pixels: 64, or 64x96"
    )
    fps: float = Field(16.0, gt=0, le=240, description="frames per second sampled from the source")
    split: str = Field("", description="only clips of this split, such as train; empty: all")
    crop: Literal["centre", "random"] = Field("centre", description="which part of the frame")
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
    def height(self) -> int:
        """Of a clip, pixels."""
        return sides(self.size)[0]

    @property
    def width(self) -> int:
        """Of a clip, pixels."""
        return sides(self.size)[1]

    @property
    def clip_bytes(self) -> int:
        """Bytes of one decoded clip, uint8 [T, H, W, 3]."""
        return self.frames * self.height * self.width * 3

    @model_validator(mode="after")
    def _cache_can_hit(self) -> Self:
        if self.cache.uri and self.crop == "random":
            raise ValueError("crop=random never meets a cached clip again; take crop=centre")
        return self
