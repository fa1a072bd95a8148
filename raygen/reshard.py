"""A checkpoint of one number of workers, read by another.

DeepSpeed's shards belong to the world size that wrote them; its universal format (arXiv
2406.18820) holds each parameter and its optimizer state whole. The conversion takes the memory of
one parameter, and a second or so: in this process, where DeepSpeed is loaded already.
"""

from __future__ import annotations

import contextlib
import io
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from deepspeed.checkpoint import ds_to_universal

from raygen.errors import CheckpointError

NETWORKS = ("generator", "critic")


def to_universal(folder: str, out: str, networks: Sequence[str] = NETWORKS) -> None:
    """Converts `networks`, folders of `folder`, to `out`: loadable at any world size.

    Raises CheckpointError where the shards are not whole.
    """
    for network in networks:
        settings = Namespace(
            input_folder=str(Path(folder) / network),
            output_folder=str(Path(out) / network),
            # More would be processes, forked from one that may hold a GPU.
            num_extract_workers=1,
            num_merge_workers=1,
            inject_missing_state=True,
            keep_temp_folder=False,
            strict=True,
        )
        try:
            # It reports each parameter, on both streams.
            with (
                contextlib.redirect_stdout(io.StringIO()),
                contextlib.redirect_stderr(io.StringIO()),
            ):
                ds_to_universal.main(settings)
        except Exception as error:
            why = f"{type(error).__name__}: {error}"
            raise CheckpointError(f"cannot convert the {network} of {folder}: {why}") from error
