"""An export as it lies there: which networks its config.json describes, and their weights.

document, weights = read("exports/tiny")
module = network(document)
module.load_state_dict(weights, strict=False)

Of a stage of super-resolution the networks are a cascade: the document has that of the `base`, and
the names of its weights begin with base. and stage. A run of such a stage keeps its base's export
within itself, so that it needs nothing else.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import TypeAdapter
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from torch import Tensor, nn

from raygen import __version__
from raygen.config import ConditionsConfig, Config, DataConfig, ModelConfig, SuperresConfig
from raygen.data import store
from raygen.errors import ConfigError, ExportError
from raygen.models import Cascade, SuperresGenerator, build_generator
from raygen.runs import run_uri
from raygen.sides import Size, written

FORMAT = 3  # 1 had classes alone, 2 neither cascades nor other shapes than squares
PLAIN = 2
WEIGHTS = "generator.safetensors"
CONFIG = "config.json"
BASE = "base"  # of a run: the export whose clips its generator enlarges

Document = Mapping[str, Any]


def read(uri: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """config.json and the weights of the export at `uri`, a folder or S3 prefix.

    Raises ExportError where there is no export, or a damaged one, or one of a newer raygen.
    """
    if not store.exists(store.join(uri, CONFIG)):
        raise ExportError(f"no export at {uri}; make one with `raygen export RUN -o {uri}`", uri)
    try:
        document = json.loads(store.read_bytes(store.join(uri, CONFIG)))
        if document["format"] > FORMAT:
            raise ExportError(
                f"{uri} was exported by raygen {document['raygen']}, in a format newer than "
                f"{__version__} reads; upgrade raygen",
                uri,
            )
        weights = store.read_bytes(store.join(uri, WEIGHTS))
        if sha256(weights) != document["sha256"]:
            raise ExportError(f"{uri}: {WEIGHTS} is damaged; export the run again", uri)
        return document, load_safetensors(weights)
    except (ValueError, KeyError, TypeError, SafetensorError) as error:
        raise incomplete(uri, error) from None


def incomplete(uri: str, error: Exception) -> ExportError:
    """The answer to an export that says of itself what does not fit."""
    reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    return ExportError(f"{uri} is no complete export ({reason}); export again", uri)


def sha256(weights: bytes) -> str:
    """Of a file of weights, as a document gives it."""
    return hashlib.sha256(weights).hexdigest()


def model_of(document: Document) -> ModelConfig:
    """The last network's settings."""
    model: ModelConfig = TypeAdapter(ModelConfig).validate_python(document["model"])
    return model


def network(document: Document) -> nn.Module:
    """What it describes, with random weights."""
    model, data = model_of(document), DataConfig.model_validate(document["data"])
    conditions = ConditionsConfig.model_validate(document.get("conditions", {}))
    module = build_generator(model, data, len(document["classes"]), conditions)
    if not isinstance(model, SuperresConfig):
        return module
    assert isinstance(module, SuperresGenerator)
    base, low = network(document["base"]), (data.height // model.factor, data.width // model.factor)
    return Cascade(base, sum(latent_dims(document["base"])), module, low, model.noise_drawn)


def latent_dims(document: Document) -> list[int]:
    """Dimensions of the latents, of its networks in turn."""
    before = latent_dims(document["base"]) if "base" in document else []
    return [*before, model_of(document).latent_dim]


def described(config: Config, classes: Sequence[str]) -> dict[str, Any]:
    """Of a document what `network` needs, for the run of this config."""
    parts = {
        "classes": list(classes),
        "model": config.model.model_dump(mode="json"),
        "data": config.data.model_dump(mode="json"),
        "conditions": config.conditions.model_dump(mode="json"),
    }
    if isinstance(config.model, SuperresConfig):
        parts["base"] = read(store.join(run_uri(config), BASE))[0]
    return parts


def whole(config: Config, average: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The run's averaged weights as `network` names them; of a cascade with its base's."""
    if not isinstance(config.model, SuperresConfig):
        return dict(average)
    _, base = read(store.join(run_uri(config), BASE))
    named = ((f"stage.{name}", tensor) for name, tensor in average.items())
    return {f"base.{name}": tensor for name, tensor in base.items()} | dict(named)


def keep_base(config: Config, classes: Sequence[str]) -> None:
    """Copies the export that `model.base` names into the run, where the run has none yet.

    Raises ConfigError where it draws no clips that this stage enlarges.
    """
    model, place = config.model, store.join(run_uri(config), BASE)
    if not isinstance(model, SuperresConfig) or store.exists(store.join(place, CONFIG)):
        return
    if not model.base:
        raise ConfigError(
            "model.base is empty: name the export whose clips are to be enlarged, as in "
            "model.base=exports/low",
            "model.base",
        )
    document, _ = read(model.base)
    data, low = DataConfig.model_validate(document["data"]), config.data
    wanted: Size = written(low.height // model.factor, low.width // model.factor)
    for key, theirs, ours in (
        ("data.size", data.size, wanted),
        ("data.frames", data.frames, low.frames),
        ("data.fps", data.fps, low.fps),
        ("conditions", document.get("conditions"), config.conditions.model_dump(mode="json")),
        ("classes", document["classes"], list(classes)),
    ):
        if theirs != ours:
            raise ConfigError(
                f"model.base={model.base} has {key}={theirs}, and its clips, enlarged "
                f"{model.factor} times, are to be this run's: {key}={ours} is needed",
                "model.base",
            )
    # As everywhere, the document last: an export without it is none.
    for name in (WEIGHTS, CONFIG):
        store.write_bytes(store.join(place, name), store.read_bytes(store.join(model.base, name)))
