"""An export: a trained generator in a folder or S3 prefix that needs nothing else of the run.

raygen export runs/tiny -o exports/tiny
generator = load_generator("exports/tiny")
clips_NTHWC = generator.generate(seeds=[7], labels=[generator.class_id("wave")])
clips_NTHWC = generator.generate([7], text=["a red circle moves right"], truncation=0.7)

generator.safetensors   the averaged weights, no pickle
config.json             how to rebuild the network, what it was trained on; written last
README.md               the model card
"""

from __future__ import annotations

import contextlib
import difflib
import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import save as save_safetensors
from torch import Tensor, nn

from raygen import __version__, exported, sampling
from raygen.card import DIGEST_DIGITS, card
from raygen.conditioning import Conditioner
from raygen.conditions import Condition
from raygen.config import ConditionsConfig, DataConfig, ModelConfig
from raygen.data import store
from raygen.errors import ConfigError, ExportError, StorageError
from raygen.models import any_length
from raygen.runs import EVALUATION, Run

CARD = "README.md"

WEIGHTS, CONFIG = exported.WEIGHTS, exported.CONFIG
STATUS = ("step", "elapsed_s", "clips_seen")
KNOWN_SHOWN = 20  # class names that an error lists


@dataclass(frozen=True)
class Generator:
    """A loaded export: seeds and conditions in, clips out."""

    document: Mapping[str, Any]  # config.json
    model: ModelConfig
    data: DataConfig
    conditioner: Conditioner
    module: nn.Module  # in eval mode, on `device`
    device: torch.device

    @property
    def name(self) -> str:
        """The run's name."""
        return str(self.document["name"])

    @property
    def classes(self) -> list[str]:
        """Class names; the position is the id."""
        return list(self.document["classes"])

    @cached_property  # pydantic's reading of a network's settings takes longer than a request
    def latent_dims(self) -> list[int]:
        """Dimensions of the latents, of its networks in turn."""
        return exported.latent_dims(self.document)

    @property
    def conditions(self) -> ConditionsConfig:
        """What its clips can be asked for by."""
        return self.conditioner.config

    @property
    def fps(self) -> float:
        """Frames per second at which its clips play."""
        return self.data.fps

    @property
    def digest(self) -> str:
        """What the weights are: the first digits of their file's SHA-256."""
        return str(self.document["sha256"])[:DIGEST_DIGITS]

    @property
    def evaluation(self) -> dict[str, Any] | None:
        """What the judge said, as `Evaluation.as_dict` gives it; None where it was not asked."""
        evaluation: dict[str, Any] | None = self.document["evaluation"]
        return evaluation

    def class_id(self, name: str) -> int:
        """The id of a class. Raises ConfigError naming the nearest class and the known ones."""
        if name in self.classes:
            return self.classes.index(name)
        close = difflib.get_close_matches(name, self.classes, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        known = ", ".join(self.classes[:KNOWN_SHOWN])
        more = len(self.classes) - KNOWN_SHOWN
        rest = f" and {more} more" if more > 0 else ""
        raise ConfigError(f"no class {name!r}{hint}; this model knows {known}{rest}", "class")

    def times(self, frames: int | None, fps: float | None) -> list[float] | None:
        """When so many frames are drawn at `fps`, in frames of the trained rate; None: as trained.

        `fps` alone keeps the clip's length in seconds. Raises ConfigError for a family whose
        clips are of one length and rate.
        """
        if frames is None and fps is None:
            return None
        if not any_length(self.module):
            raise ConfigError(
                f"a {self.model.kind} model draws {self.data.frames} frames at {self.fps:g} a "
                "second and no others; model.kind=residual or triplane draws any",
                "frames",
            )
        step = self.fps / (fps or self.fps)
        count = frames or max(1, round(self.data.frames / step))
        return [k * step for k in range(count)]

    def generate(
        self,
        seeds: Sequence[int],
        labels: Sequence[int | None] | None = None,
        *,
        text: Sequence[str | None] | None = None,
        image: Sequence[npt.NDArray[np.uint8] | None] | None = None,
        vector: Sequence[Sequence[float] | None] | None = None,
        truncation: float = 1.0,
        times: Sequence[float] | None = None,
    ) -> npt.NDArray[np.uint8]:
        """One clip a seed (0 to 2**63 - 1): uint8 [N,T,H,W,3], 0 to 255.

        labels: class ids; image: first frames, uint8 [H, W, 3] of the clips' size, which are
        kept; vector: the user's own. One a clip; None where it is left out. `truncation` scales
        the latent: below 1, less varied; `times` is what `self.times` gave. The same seed and
        conditions give the same clip, to the bit, in whatever company. Raises ConfigError for
        what this model does not take.
        """
        z_ND, y_N = self.points(
            seeds, labels, text=text, image=image, vector=vector, truncation=truncation
        )
        return sampling.generate(self.module, z_ND, y_N, self.device, times)

    def points(
        self,
        seeds: Sequence[int],
        labels: Sequence[int | None] | None = None,
        *,
        text: Sequence[str | None] | None = None,
        image: Sequence[npt.NDArray[np.uint8] | None] | None = None,
        vector: Sequence[Sequence[float] | None] | None = None,
        truncation: float = 1.0,
    ) -> tuple[Tensor, Condition]:
        """The latents [N, D] and conditions that `generate` draws; the same arguments."""
        y_N = self._condition(len(seeds), labels, text, image, vector)
        return sampling.latents(seeds, self.latent_dims, truncation), y_N

    def interpolate(
        self,
        count: int,
        seeds: tuple[int, int],
        labels: tuple[int | None, int | None] | None = None,
        *,
        text: tuple[str | None, str | None] | None = None,
        image: npt.NDArray[np.uint8] | None = None,
        vector: tuple[Sequence[float], Sequence[float]] | None = None,
        truncation: float = 1.0,
        times: Sequence[float] | None = None,
    ) -> npt.NDArray[np.uint8]:
        """`count` clips from one seed and condition to another, as `generate` makes the ends.

        Latents go along their great circle, the conditions' embeddings along a line; a first
        frame is all the clips' own.
        """
        z_ND, y_N = self.path(
            count, seeds, labels, text=text, image=image, vector=vector, truncation=truncation
        )
        return sampling.generate(self.module, z_ND, y_N, self.device, times)

    @torch.inference_mode()
    def path(
        self,
        count: int,
        seeds: tuple[int, int],
        labels: tuple[int | None, int | None] | None = None,
        *,
        text: tuple[str | None, str | None] | None = None,
        image: npt.NDArray[np.uint8] | None = None,
        vector: tuple[Sequence[float], Sequence[float]] | None = None,
        truncation: float = 1.0,
    ) -> tuple[Tensor, Condition]:
        """The latents [N, D] and conditions that `interpolate` draws; the same arguments."""
        y_2 = self._condition(2, labels, text, [image] * 2, vector)
        ends_2D = sampling.latents(seeds, self.latent_dims, truncation)
        share_N = torch.linspace(0, 1, count)
        z_ND = sampling.spherical(ends_2D[0], ends_2D[1], share_N)
        embedding: Any = self.module.embedding
        first_E, last_E = embedding(y_2.to(self.device)).cpu()
        e_NE = torch.lerp(first_E, last_E, share_N[:, None])
        return z_ND, y_2.rows(torch.zeros(count, dtype=torch.int64))._replace(embedded_BE=e_NE)

    def _condition(
        self,
        count: int,
        labels: Sequence[int | None] | None,
        text: Sequence[str | None] | None,
        image: Sequence[npt.NDArray[np.uint8] | None] | None,
        vector: Sequence[Sequence[float] | None] | None,
    ) -> Condition:
        shape, nothing = (self.data.height, self.data.width, 3), [None] * count
        frames = nothing if image is None else image
        for frame_HWC in frames:
            if frame_HWC is not None and frame_HWC.shape != shape:
                raise ConfigError(
                    f"a first frame of shape {frame_HWC.shape}; this model takes {shape}",
                    "image",
                )
        return self.conditioner(
            nothing if labels is None else labels,
            texts=text,
            frames=[None if frame is None else sampling.to_float(frame) for frame in frames],
            vectors=vector,
        )


def export_run(run: Run, destination: str) -> None:
    """Write the run's newest averaged generator to an empty or new folder or S3 prefix.

    Raises ExportError where `destination` holds something already, StorageError where it cannot
    be written. What fails leaves nothing behind.
    """
    destination = store.absolute(destination)
    _refuse_taken(destination)
    weights = save_safetensors(exported.whole(run.config, run.load_ema()))
    document = _document(run, exported.sha256(weights))
    files = {
        WEIGHTS: weights,
        CARD: card(run, document).encode(),
        # Last: an S3 prefix without it is not an export.
        CONFIG: json.dumps(document, indent=2).encode(),
    }
    if store.is_s3(destination):
        _upload(files, destination)
    else:
        _move_into_place(files, Path(destination))


def load_generator(uri: str, device: str = "cpu") -> Generator:
    """The generator exported to `uri`, a folder or S3 prefix.

    Raises ExportError where there is no export, or a damaged one, or one of a newer raygen.
    """
    uri = store.absolute(uri)
    document, weights = exported.read(uri)
    try:
        return _assemble(document, weights, device)
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        raise exported.incomplete(uri, error) from None


def generator_of(run: Run, device: str = "cpu") -> Generator:
    """The run's newest averaged generator, as an export of it would load."""
    weights = exported.whole(run.config, run.load_ema())
    document = _document(run, exported.sha256(save_safetensors(weights)))
    return _assemble(document, weights, device)


def _assemble(document: Mapping[str, Any], weights: dict[str, Tensor], device: str) -> Generator:
    module = exported.network(document)
    # Batch norm counts its batches in an integer, which has no average and no effect here.
    counters = {k: t for k, t in module.state_dict().items() if not t.is_floating_point()}
    module.load_state_dict(counters | weights)
    data = DataConfig.model_validate(document["data"])
    conditions = ConditionsConfig.model_validate(document.get("conditions", {}))
    return Generator(
        document,
        exported.model_of(document),
        data,
        Conditioner(conditions, data.size),
        module.to(device).eval(),
        torch.device(device),
    )


def _document(run: Run, sha256: str) -> dict[str, Any]:
    config, status = run.config, run.status
    networks = exported.described(config, run.classes)
    plain = "base" not in networks and config.data.height == config.data.width
    return {
        "format": exported.PLAIN if plain else exported.FORMAT,
        "raygen": __version__,
        "name": config.name,
        "sha256": sha256,
        "classes": run.classes,
        "fps": config.data.fps,
        "seed": config.seed,
        **networks,
        "trained_on": run.data,
        "status": {key: status[key] for key in STATUS} | {"dollars": run.dollars},
        "evaluation": run.read_json(EVALUATION),
    }


def _refuse_taken(destination: str) -> None:
    if store.is_s3(destination):
        taken = next(store.list_objects(destination), None) is not None
    else:
        path = Path(destination)
        taken = path.exists() and (not path.is_dir() or any(path.iterdir()))
    if taken:
        raise ExportError(
            f"{destination} is not empty; export to another place, or remove it first", destination
        )


def _move_into_place(files: Mapping[str, bytes], destination: Path) -> None:
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{destination.name}-", dir=destination.parent))
        try:
            for name, data in files.items():
                (partial / name).write_bytes(data)
            partial.chmod(0o755)  # mkdtemp's folder is the user's alone
            partial.replace(destination)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise StorageError(
            f"cannot write {destination}: {error.strerror}", str(destination)
        ) from None


def _upload(files: Mapping[str, bytes], destination: str) -> None:
    try:
        for name, data in files.items():
            store.write_bytes(store.join(destination, name), data)
    except BaseException:
        for name in files:
            with contextlib.suppress(StorageError):
                store.delete(store.join(destination, name))
        raise
