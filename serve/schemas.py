"""What callers are told and what they may send: the JSON of the API, as pydantic models."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

BEST = "best"
"""The name under which the best model answers, whichever it is."""

INTERPOLATED = 8  # clips from one end to the other, unless n says

Format = Literal["mp4", "webm", "av1", "webp", "gif", "png", "npy"]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
ClassName = Annotated[str, StringConstraints(max_length=200)]
Text = Annotated[str, StringConstraints(max_length=1000)]


class Model(BaseModel):
    """One model that answers here."""

    name: str
    digest: str = Field(description="first digits of the weights' SHA-256")
    best: bool = Field(description=f"whether it answers as `{BEST}` too")
    classes: list[str]
    conditions: list[str] = Field(description="what a clip can be asked for by")
    frames: int = Field(description="frames of a clip, unless others are asked for")
    size: int | str = Field(description="height and width, pixels: 64, or 64x96")
    height: int = Field(description="of a clip, pixels")
    width: int = Field(description="of a clip, pixels")
    fps: float = Field(description="frames per second, unless another rate is asked for")
    any_length: bool = Field(description="whether `frames` and `fps` may be others")
    metrics: dict[str, Any] | None = Field(description="what `raygen evaluate` found, if it ran")
    drawing: str | None = Field(description="how its clips are computed; null until it is loaded")
    clips_per_s: float | None = Field(
        description="of this replica, as measured when it was loaded; null where it was not"
    )


class Problem(BaseModel):
    """What went wrong (RFC 9457)."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str


class VideoRequest(BaseModel):
    """What POST /v1/videos draws: several clips in one file, side by side (npy: one after another).

    As multipart/form-data, lists are repeated fields and the image is a file.
    """

    model_config = ConfigDict(extra="forbid")

    model: str = Field(BEST, max_length=200, description="name, digest, or best")
    n: int | None = Field(None, ge=1, le=64, description="clips; left out: one a seed")
    seeds: list[Seed] = Field(
        [], max_length=64, description="one a clip, or the two ends; none: random ones"
    )
    classes: list[ClassName] = Field(
        [],
        max_length=64,
        description="one for all, one a clip, or the two ends; none: by the seeds",
    )
    texts: list[Text] = Field(
        [], max_length=64, description="one for all, one a clip, or the two ends"
    )
    image: str | None = Field(
        None, max_length=2**24, description="first frame of all clips: base64 of a picture"
    )
    interpolate: bool = Field(False, description="n clips from the first end to the second")
    frames: int | None = Field(None, ge=1, le=4096, description="for models of any_length")
    fps: float | None = Field(None, ge=1, le=240, description="for models of any_length")
    truncation: float = Field(1.0, ge=0, le=2, description="below 1: less varied, more usual")
    format: Format = "mp4"
    scale: int = Field(1, ge=1, le=8, description="enlarges all but png and npy")

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name, given in (
            ("seeds", self.seeds),
            ("classes", self.classes),
            ("texts", self.texts),
        ):
            allowed = {0, self.asked} if name == "seeds" else {0, 1, self.asked}
            if len(given) not in allowed:
                raise ValueError(f"{len(given)} {name} for {self.asked}; give one each")
        return self

    @property
    def asked(self) -> int:
        """What is described one by one: the clips, or the two ends."""
        if self.interpolate:
            return 2
        return self.n or len(self.seeds) or max(len(self.classes), len(self.texts), 1)

    @property
    def clips(self) -> int:
        """How many are drawn."""
        return (self.n or INTERPOLATED) if self.interpolate else self.asked


State = Literal["queued", "running", "done", "failed"]


class Video(BaseModel):
    """A video that was asked for by POST."""

    model_config = ConfigDict(extra="forbid")

    id: str
    state: State
    model: str = Field(description="digest of the model that draws it")
    seeds: list[int] = Field(description="of the clips; of the two ends where they interpolate")
    classes: list[str | None] = Field(description="of the clips, or of the two ends")
    clips: int = Field(description="clips in it")
    drawn: int = Field(description="clips that are drawn")
    format: str
    created: float = Field(description="seconds since 1970")
    content: str = Field(description="path of the file, once the state is done")
    problem: Problem | None = Field(description="why it failed")
