"""What raygen raises when a user can mend it. The message is one line: what is wrong, and the fix.

    RaygenError              exit 1
    ├── ConfigError          exit 2   a key, a value, a preset, an argument   (.key)
    ├── DataError            exit 1   clips, catalogues, buckets              (.uri)
    ├── StorageError         exit 1   a file or object that cannot be had     (.uri)
    │   ├── AccessError               credentials, endpoint, bucket: nothing there will work
    │   └── ObjectChanged             replaced since it was scanned
    ├── ClusterError         exit 1   Ray: too few nodes, a lost controller
    ├── CheckpointError      exit 1   a checkpoint that does not fit          (.step)
    ├── TrainingError        exit 1   networks that ran away                  (.step)
    ├── ExportError          exit 1   an export that cannot be written or read (.uri)
    ├── ServiceError         exit 1   an endpoint that refuses or does not answer (.status)
    └── Interrupted          exit 130 Ctrl-C, after everything was saved

Anything else that escapes is a bug and keeps its traceback.
"""

from __future__ import annotations


class RaygenError(Exception):
    """A condition that the user can mend; `str(error)` is the one line to print."""

    exit_code = 1


class ConfigError(RaygenError):
    """A wrong key, value, preset or argument; `key` is its dotted path where there is one."""

    exit_code = 2

    def __init__(self, message: str, key: str = "") -> None:
        super().__init__(message)
        self.key = key


class _AtUri(RaygenError):
    def __init__(self, message: str, uri: str = "") -> None:
        super().__init__(message)
        self.uri = uri


class DataError(_AtUri):
    """Clips that cannot be listed, read or decoded at `uri`."""


class StorageError(_AtUri):
    """A file, object or folder at `uri` that cannot be read or written."""


class AccessError(StorageError):
    """No other object will do better than that at `uri`: credentials, the endpoint, the bucket."""


class ObjectChanged(StorageError):
    """What lies at `uri` is not what the catalogue describes."""


class ExportError(_AtUri):
    """An export at `uri` that cannot be written or read."""


class ServiceError(RaygenError):
    """An endpoint that refuses (HTTP `status`), or does not answer (0)."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class ClusterError(RaygenError):
    """Ray cannot give what was asked of it."""


class CheckpointError(RaygenError):
    """A checkpoint (of `step`) that does not fit this run."""

    def __init__(self, message: str, step: int | None = None) -> None:
        super().__init__(message)
        self.step = step


class TrainingError(RaygenError):
    """A training that went wrong at `step`, in itself and not for want of anything."""

    def __init__(self, message: str, step: int) -> None:
        super().__init__(message)
        self.step = step


class Interrupted(RaygenError):
    """The user stopped the run; what was trained is saved."""

    exit_code = 130
