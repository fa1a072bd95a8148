"""What the watermark survives, at what PSNR and at what cost.

    python -m tests.benchmarks.watermark --json PATH

Rendered shapes of 16 frames at 32, 64 and 128 pixels, changed as tests/test_watermark.py does.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from raygen.data import synthetic
from raygen.provenance import read_clip
from raygen.watermark import Clip, bit_accuracy, detect, mark
from tests.test_watermark import CHANGES, psnr, resized

SIZES = (32, 64, 128)
CLIPS = 6


def clips(size: int) -> list[Clip]:
    """CLIPS clips of shapes, uint8 [16,size,size,3]."""
    with tempfile.TemporaryDirectory() as folder:
        synthetic.synthesize(folder, synthetic.class_names(CLIPS), 1, seed=0, size=128)
        found = [read_clip(path.read_bytes())[:16] for path in sorted(Path(folder).rglob("*.mp4"))]
    return [clip if size == 128 else resized(clip, size) for clip in found]


def measure(size: int) -> tuple[list[list[str]], dict[str, float]]:
    """A row a change: its name, the share recognised, the bits right of those; and all figures."""
    originals = clips(size)
    digests = [f"{0x9E3779B9 * (k + 1) % 2**32:08x}" for k in range(CLIPS)]
    mark(originals[0], digests[0])
    started = time.process_time()
    marked = [mark(clip, digest) for clip, digest in zip(originals, digests, strict=True)]
    figures = {
        f"ms_{size}": 1000 * (time.process_time() - started) / CLIPS,
        f"psnr_{size}": min(map(psnr, marked, originals)),
    }
    rows = []
    for name, change in CHANGES.items():
        found = [detect(change(clip)) for clip in marked]
        right = [bit_accuracy(f, d) for f, d in zip(found, digests, strict=True) if f.present]
        share, bits = len(right) / CLIPS, float(np.mean(right)) if right else 0.0
        figures |= {f"found_{size}_{name}": share, f"bits_{size}_{name}": bits}
        rows.append([name, f"{share:.2f}", f"{bits:.3f}"])
    return rows, figures


def main() -> None:
    """Prints a table a size; `--json PATH` writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    path = parser.parse_args().json
    figures: dict[str, float] = {}
    for size in SIZES:
        rows, found = measure(size)
        figures |= found
        title = f"{size}x{size}: {found[f'psnr_{size}']:.1f} dB, {found[f'ms_{size}']:.1f} ms"
        table = Table("change", "recognised", "bits right", title=title)
        for row in rows:
            table.add_row(*row)
        Console().print(table)
    if path is not None:
        path.write_text(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
