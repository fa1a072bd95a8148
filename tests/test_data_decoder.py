"""Spans to clips with a cache behind: the same pixels, decoded once."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

from raygen.config import DataConfig
from raygen.data.decoder import Decoded, Decoder
from raygen.data.plan import Plan, Span
from raygen.data.scan import scan

TREE = {"frames": 8, "size": 16, "fps": 16, "cache_mb": 0}


def decode(folder: Path, spans: dict[int, Span], **more: object) -> Decoded:
    decoder = Decoder(scan(str(folder)), DataConfig.model_validate({**TREE, **more}))
    try:
        return decoder.decode(spans)
    finally:
        decoder.close()


def test_what_is_cached_is_what_was_decoded(shapes: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(shapes, tmp_path / "clips"))
    cache = {"cache": {"uri": str(tmp_path / "cache")}}
    plan = Plan(12, seed=0)
    spans = {p: plan.span(p) for p in range(36)}
    decoded = decode(folder, spans, **cache)
    # Clips begin on the grid of the cache: three in the 24 frames of each video.
    whole = decode(folder, {row: Span(row, 0.0) for row in range(12)}, frames=24).columns["clip"]
    for clip, row in zip(decoded.columns["clip"], decoded.columns["row"], strict=True):
        on_grid = whole[row].reshape(3, 8, 16, 16, 3)
        assert any(np.array_equal(clip, part) for part in on_grid)
    # The videos are gone, and only the cache can answer.
    found = scan(str(folder))
    shutil.rmtree(folder)
    decoder = Decoder(found, DataConfig.model_validate({**TREE, **cache}))
    again = decoder.decode(spans)
    decoder.close()
    assert not again.refused
    np.testing.assert_array_equal(again.columns["clip"], decoded.columns["clip"])


def test_a_square_video_has_nothing_to_crop(shapes: Path) -> None:
    centre = decode(shapes, {0: Span(3, 0.5)})
    corner = decode(shapes, {0: Span(3, 0.5, (0.0, 1.0))})
    np.testing.assert_array_equal(centre.columns["clip"], corner.columns["clip"])
