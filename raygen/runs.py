"""A run on its storage, as everything but the training loop sees it.

STORAGE/NAME/
  run.json              config, classes, what the data was, versions
  catalogue.parquet     the clips that this run trains on
  quarantine.parquet    the clips it could not decode, and why
  consumed/             which clips it has trained on, and at which step
  step-00000200/        a checkpoint: state.json, ema.safetensors, generator/, critic/
  evaluation.json       what the judge said
  tensorboard/
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import pyarrow.fs as pafs
from safetensors.torch import load as load_safetensors
from torch import Tensor

from raygen.config import Config
from raygen.data import store
from raygen.errors import CheckpointError, StorageError

MANIFEST = "run.json"
STATE = "state.json"
EMA = "ema.safetensors"
CATALOGUE = "catalogue.parquet"

# What must be as it was for a checkpoint to fit; the rest of the config may change on resume.
_FIXED = (
    "model.",
    "data.frames",
    "data.size",
    "data.sampling",
    "data.split",
    "seed",
    "train.batch_size",
    "train.zero_stage",
    "train.precision",
)


@dataclass(frozen=True)
class Progress:
    """How far a run is: optimizer steps, seconds of training, clips, dollars.

    `position` is the cursor of the data plan: every position before it has been consumed.
    """

    step: int = 0
    elapsed_s: float = 0.0
    clips_seen: int = 0
    dollars: float = 0.0
    position: int = 0

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> Progress:
        """The part of a checkpoint's state.json that this is."""
        return cls(*(state[field.name] for field in fields(cls)))


def run_uri(config: Config) -> str:
    """Where the run of this config is kept: STORAGE/NAME."""
    return store.join(store.absolute(config.storage), config.name)


def checkpoint_name(step: int) -> str:
    """The folder of the checkpoint taken after `step` optimizer steps."""
    return f"step-{step:08d}"


@dataclass(frozen=True)
class Run:
    """What is kept of one run at `uri`; it may be training, finished or interrupted."""

    uri: str
    manifest: Mapping[str, Any]

    @classmethod
    def open(cls, uri: str) -> Run:
        """The run at `uri` (STORAGE/NAME). Raises StorageError where there is none."""
        uri = store.absolute(uri)
        if not store.exists(store.join(uri, MANIFEST)):
            raise StorageError(f"no run at {uri}: give STORAGE/NAME, as in runs/tiny", uri)
        return cls(uri, json.loads(store.read_bytes(store.join(uri, MANIFEST))))

    @classmethod
    def find(cls, config: Config) -> Run | None:
        """The run that `config` names, if it was ever started."""
        uri = run_uri(config)
        return cls.open(uri) if store.exists(store.join(uri, MANIFEST)) else None

    @classmethod
    def create(cls, config: Config, classes: list[str], data: Mapping[str, Any]) -> Run:
        """Writes the manifest of a new run, or of one that goes on with another config.

        `data` says what is trained on: uri, digest, clips.
        """
        from raygen import __version__

        manifest = {
            "raygen": __version__,
            "config": config.dump(),
            "classes": classes,
            "data": dict(data),
        }
        run = cls(run_uri(config), manifest)
        run.write_json(MANIFEST, manifest)
        return run

    @property
    def config(self) -> Config:
        """The config it was last started with."""
        return Config.parse(self.manifest["config"])

    @property
    def classes(self) -> list[str]:
        """Class names; the position is the id."""
        return list(self.manifest["classes"])

    @property
    def data(self) -> dict[str, Any]:
        """What it trains on: uri, digest (of the catalogue), clips (their number)."""
        return dict(self.manifest["data"])

    @property
    def status(self) -> dict[str, Any]:
        """The newest checkpoint's step, elapsed_s, clips_seen and dollars."""
        state: dict[str, Any] = json.loads(
            store.read_bytes(store.join(self.latest_checkpoint(), STATE))
        )
        return state

    def check_resumable(self, config: Config) -> None:
        """Raises CheckpointError unless `config` can go on from this run's newest checkpoint."""
        if not self.checkpoints():
            return
        state = self.status
        before, now = Config.parse(state["config"]).flat(), config.flat()
        for key in sorted(before.keys() | now.keys()):
            if key.startswith(_FIXED) and before.get(key) != now.get(key):
                raise CheckpointError(
                    f"run {self.uri} has a checkpoint of step {state['step']} with "
                    f"{key}={before.get(key)}, but this command says {now.get(key)}: "
                    f"go on with {key}={before.get(key)}, or give the new run another name=",
                    state["step"],
                )

    def path(self, name: str) -> str:
        """The URI of something within the run."""
        return store.join(self.uri, name)

    def read_json(self, name: str) -> dict[str, Any] | None:
        """A JSON document of the run, or None where it has none of that name."""
        uri = self.path(name)
        return json.loads(store.read_bytes(uri)) if store.exists(uri) else None

    def write_json(self, name: str, document: Mapping[str, Any]) -> None:
        """Writes a JSON document into the run."""
        store.write_bytes(self.path(name), json.dumps(document, indent=2).encode())

    def checkpoints(self) -> list[str]:
        """URIs of the complete checkpoints, oldest first: those with a state.json."""
        uris = [self.path(checkpoint_name(step)) for step in self._saved()]
        return [uri for uri in uris if store.exists(store.join(uri, STATE))]

    def discard_after(self, step: int) -> None:
        """Removes checkpoints beyond `step`: a torn one must not be mixed with its successor."""
        filesystem, path = store.open_storage(self.uri)
        for saved in self._saved():
            if saved > step:
                filesystem.delete_dir(f"{path}/{checkpoint_name(saved)}")

    def _saved(self) -> list[int]:
        filesystem, path = store.open_storage(self.uri)
        entries = filesystem.get_file_info(pafs.FileSelector(path, allow_not_found=True))
        names = [e.base_name for e in entries if e.base_name.startswith("step-")]
        return sorted(int(name.removeprefix("step-")) for name in names)

    def latest_checkpoint(self) -> str:
        """The newest complete checkpoint's URI. Raises CheckpointError where there is none."""
        checkpoints = self.checkpoints()
        if not checkpoints:
            raise CheckpointError(
                f"{self.uri} has no checkpoint yet; train longer, or lower train.checkpoint_every"
            )
        return checkpoints[-1]

    def load_ema(self) -> dict[str, Tensor]:
        """Weights and buffers of the averaged generator in the newest checkpoint."""
        tensors: dict[str, Tensor] = load_safetensors(
            store.read_bytes(store.join(self.latest_checkpoint(), EMA))
        )
        return tensors
