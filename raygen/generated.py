"""Clips that anything generated, read from a folder: what `raygen evaluate FOLDER` judges.

FOLDER/wave/0001.mp4          a subfolder a class, a video a clip, taken from its beginning
FOLDER/wave/batch.npy         or arrays: uint8 [T,H,W,3] or [N,T,H,W,3], nothing lost

Shapes: N clips, T frames, H, W, C = 3, uint8 0 to 255.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import PurePosixPath

import numpy as np
import numpy.typing as npt

from raygen.config import Config
from raygen.data import store
from raygen.data.catalog import Catalogue
from raygen.data.decoder import Decoder
from raygen.data.labels import Folders
from raygen.data.listing import SUFFIXES, suffix
from raygen.data.plan import Span
from raygen.data.scan import scan
from raygen.data.store import Object
from raygen.errors import DataError
from raygen.sides import written

Clips = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]

ARRAY = ".npy"


def read_folder(uri: str, overrides: Sequence[str] = ()) -> tuple[Clips, list[str], Config]:
    """The clips [N,T,H,W,3] below `uri`, a class name for each, and the config that fits them.

    Videos are decoded as `data` of `overrides` (key=value) says; arrays are taken as they are, and
    set data.frames and data.size. Raises DataError where there is nothing to judge or something
    is no clip.
    """
    uri = store.absolute(uri)
    found = [item for item in store.list_objects(uri) if suffix(item.uri) in {ARRAY, *SUFFIXES}]
    arrays = [item for item in found if suffix(item.uri) == ARRAY]
    if not found:
        raise DataError(f"no clip below {uri}: put .npy or videos into a subfolder a class", uri)
    if arrays and len(arrays) < len(found):
        raise DataError(f"{uri} holds videos and .npy: give one kind, the other decodes alike", uri)
    if arrays:
        clips, names = _arrays(arrays, uri)
        height, width = clips.shape[2:4]
        shape = [f"data.frames={clips.shape[1]}", f"data.size={written(height, width)}"]
        return clips, names, Config.parse({}, [*overrides, *shape])
    config = Config.parse({}, overrides)
    catalogue = usable(uri, config)
    clips, labels, _ = decode(catalogue, [Span(row, 0.0) for row in range(len(catalogue))], config)
    return clips, [catalogue.classes[label] for label in labels], config


def usable(uri: str, config: Config) -> Catalogue:
    """The videos at `uri`, a place or a catalogue.parquet, that are as long as a clip.

    Raises DataError where there is none.
    """
    found = (
        Catalogue.read(uri) if uri.endswith(".parquet") else scan(uri, limits=config.data.limits)
    )
    seconds = config.data.frames / config.data.fps
    kept = found.usable(seconds)
    if not len(kept):
        raise DataError(
            f"none of the {len(found)} videos at {uri} decodes and lasts {seconds:g} s; "
            "lower data.frames or raise data.fps",
            uri,
        )
    return kept


def decode(
    catalogue: Catalogue, wanted: Sequence[Span], config: Config
) -> tuple[Clips, Labels, Labels]:
    """uint8 [N,T,H,W,3], class ids [N] and catalogue rows [N] of the spans that can be decoded.

    Raises DataError where none can.
    """
    decoder = Decoder(catalogue, config.data)
    try:
        found = decoder.decode(dict(enumerate(wanted))).columns
    finally:
        decoder.close()
    if not len(found["clip"]):
        where = catalogue.names()[0].as_py()
        raise DataError(f"no clip can be decoded any more, {where} to begin with", where)
    return found["clip"], found["label"], found["row"]


def known(names: Sequence[str], classes: Sequence[str], against: str) -> Labels:
    """The class ids [N] of `names`. Raises DataError where a class is not among the real ones."""
    for name in names:
        if name not in classes:
            raise DataError(
                f"generated clips of class {name!r}, which {against} does not have: name each "
                f"subfolder after one of {', '.join(classes)}",
                against,
            )
    return np.array([classes.index(name) for name in names])


def _arrays(items: Sequence[Object], root: str) -> tuple[Clips, list[str]]:
    clips: list[Clips] = []
    names: list[str] = []
    for item in items:
        try:
            array = np.load(io.BytesIO(store.read_bytes(item.uri)), allow_pickle=False)
        except ValueError:
            raise DataError(f"{item.uri} is no array of numpy", item.uri) from None
        array = array[None] if array.ndim == 4 else array
        whole = array.ndim == 5 and array.shape[4] == 3
        if (
            array.dtype != np.uint8
            or not whole
            or (clips and array.shape[1:] != clips[0].shape[1:])
        ):
            raise DataError(
                f"{item.uri} is {array.dtype} {list(array.shape)}: clips are uint8 [T,H,W,3] or "
                "[N,T,H,W,3], all of one shape",
                item.uri,
            )
        clips.append(array)
        path = PurePosixPath(item.uri.removeprefix(root).lstrip("/"))
        names += [Folders()(str(path)).label] * len(array)
    return np.concatenate(clips), names
