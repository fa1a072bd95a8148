"""A run on its storage, as everything but the training loop sees it.

STORAGE/NAME/
  run.json              config, classes, what the data was, versions
  catalogue.parquet     the clips that this run trains on
  quarantine.parquet    the clips it could not decode, and why
  consumed/             which clips it has trained on, and at which step
  ledger.jsonl          what its nodes cost (on S3: ledger/)
  history.json          when its workers came and went, and why
  step-00000200/        a checkpoint: state.json, ema.safetensors, generator/, critic/, and
                        evaluation.json where it was judged beside the training
  evaluation.json       what the judge said
  tensorboard/
  base/                 of a stage of super-resolution: the export whose clips it enlarges
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from safetensors.torch import load as load_safetensors
from torch import Tensor

from raygen.config import Config
from raygen.cost.report import spent_on
from raygen.data import store
from raygen.errors import CheckpointError, StorageError

MANIFEST = "run.json"
STATE = "state.json"
EMA = "ema.safetensors"
CATALOGUE = "catalogue.parquet"
EVALUATION = "evaluation.json"

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
    "train.critic_stage",
    "train.precision",
)


def may_change(key: str) -> bool:
    """Whether a run can go on from its checkpoint with another value of this key of Config."""
    return not key.startswith(_FIXED)


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


def step_of(uri: str) -> int:
    """The optimizer step of the checkpoint at `uri`."""
    return int(uri.rstrip("/").rpartition("step-")[2])


def sealed(state: Mapping[str, Any]) -> bytes:
    """state.json: `state` with a checksum of its own."""
    return json.dumps({**state, "sha256": _digest(state)}, indent=1).encode()


def unsealed(data: bytes, uri: str) -> dict[str, Any]:
    """The state in the state.json at `uri`. Raises CheckpointError where it is not what was saved.

    One without a checksum is taken as it is.
    """
    try:
        state: dict[str, Any] = json.loads(data)
    except ValueError:
        raise CheckpointError(f"{uri} is not what was saved") from None
    if state.pop("sha256", None) not in (None, _digest(state)):
        raise CheckpointError(f"{uri} is not what was saved")
    return state


def read_part(checkpoint: str, name: str, files: Mapping[str, Any]) -> bytes:
    """A file of `checkpoint`, of the size and sha256 that `files` of its state.json gives.

    Raises CheckpointError where it is missing or is not what was saved.
    """
    uri, step = store.join(checkpoint, name), step_of(checkpoint)
    size, digest = files[name]
    if not store.exists(uri):
        raise CheckpointError(f"{uri} is missing", step)
    data = store.read_bytes(uri)
    if len(data) != size or hashlib.sha256(data).hexdigest() != digest:
        raise CheckpointError(f"{uri} is not what was saved", step)
    return data


def _digest(state: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(state).encode()).hexdigest()


@dataclass(frozen=True)
class Run:
    """What is kept of one run at `uri`; it may be training, finished or interrupted.

    Its status and weights are those of the newest checkpoint, or of `checkpoint` (see `at`).
    """

    uri: str
    manifest: Mapping[str, Any]
    checkpoint: str = ""

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

    def at(self, checkpoint: str) -> Run:
        """The same run as it was at the checkpoint of this URI."""
        return replace(self, checkpoint=checkpoint)

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
        """The checkpoint's step, elapsed_s, clips_seen and dollars, as of then.

        Raises CheckpointError.
        """
        uri = store.join(self.checkpoint or self.latest_checkpoint(), STATE)
        return unsealed(store.read_bytes(uri), uri)

    @property
    def dollars(self) -> float:
        """What it has cost so far, by its ledger; as a trial, its share of its search's."""
        return spent_on(self.uri)

    def changes(self, config: Config) -> list[str]:
        """What `config` sets otherwise than the newest checkpoint's, a line a key.

        Raises CheckpointError, naming the key, where a change does not fit the checkpoint.
        """
        for uri in reversed(self.checkpoints()):
            try:
                state = self.at(uri).status
            except CheckpointError:  # a run goes on from the one before it
                continue
            break
        else:
            return []
        before, now = Config.parse(state["config"]).flat(), config.flat()
        changed = [k for k in sorted(before.keys() | now.keys()) if before.get(k) != now.get(k)]
        for key in changed:
            if not may_change(key):
                raise CheckpointError(
                    f"run {self.uri} has a checkpoint of step {state['step']} with "
                    f"{key}={before.get(key)}, but this command says {now.get(key)}: "
                    f"go on with {key}={before.get(key)}, or give the new run another name=",
                    state["step"],
                )
        return [f"{key}: {before.get(key)} -> {now.get(key)}" for key in changed]

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
        """Removes checkpoints beyond `step`, and what is left of torn ones. Raises StorageError."""
        whole = {step_of(uri) for uri in self.checkpoints()}
        for saved in self._saved():
            if saved > step or saved not in whole:
                self.discard(saved)

    def prune(self, keep: int, spare: Collection[int | None] = ()) -> None:
        """Removes checkpoints but for the newest `keep`, the best of those that were judged, and
        those of the steps to `spare`. Raises StorageError.
        """
        spared = {self.best(), *(self.path(checkpoint_name(s)) for s in spare if s is not None)}
        for uri in self.checkpoints()[:-keep]:
            if uri not in spared:
                self.discard(step_of(uri))

    def discard(self, step: int) -> None:
        """Removes the checkpoint of `step`, its state.json first, or what there is of it.

        Raises StorageError, soon where storage does not answer.
        """
        folder = self.path(checkpoint_name(step))
        filesystem, path = store.open_storage(folder)
        try:
            if filesystem.get_file_info(f"{path}/{STATE}").is_file:
                filesystem.delete_file(f"{path}/{STATE}")
            filesystem.delete_dir(path)
        except FileNotFoundError:
            return
        except OSError as error:
            raise StorageError(f"cannot delete {folder}: {error}", folder) from None

    def best(self) -> str | None:
        """The checkpoint of the least score among those judged beside the training."""
        scores = {}
        for uri in self.checkpoints():
            judged = store.join(uri, EVALUATION)
            if store.exists(judged):
                score = json.loads(store.read_bytes(judged))["score"]
                scores[uri] = float("inf") if score is None else score
        return min(scores, key=scores.__getitem__, default=None)

    def _saved(self) -> list[int]:
        names = [uri.rpartition("/")[2] for uri in store.prefixes(self.uri)]
        return sorted(step_of(name) for name in names if name.startswith("step-"))

    def latest_checkpoint(self) -> str:
        """The newest complete checkpoint's URI. Raises CheckpointError where there is none."""
        checkpoints = self.checkpoints()
        if not checkpoints:
            raise CheckpointError(
                f"{self.uri} has no checkpoint yet; train longer, or lower train.checkpoint_every"
            )
        return checkpoints[-1]

    def load_ema(self) -> dict[str, Tensor]:
        """Weights and buffers of the averaged generator in the checkpoint.

        Raises CheckpointError where they are not what was saved.
        """
        checkpoint = self.checkpoint or self.latest_checkpoint()
        files = self.at(checkpoint).status["files"]
        tensors: dict[str, Tensor] = load_safetensors(read_part(checkpoint, EMA, files))
        return tensors
