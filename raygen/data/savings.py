"""What a cache of decoded clips costs and saves, in bytes, in CPU time and in dollars."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from raygen.data import store

S3_PRICE_DATE = "2025-06-15"
"""When these were S3 Standard's list prices, in dollars (us-east-1)."""
S3_GB_MONTH = 0.023
S3_GET = 0.4e-6


@dataclass
class Report:
    """What filling the cache came to. Times are seconds of one CPU; an epoch is a clip a video.

    kept: clips that the cache holds in the end, of `clips`; decoded: in this run. source_bytes:
    of the videos. decode_s: of this run; epoch_decode_s: what an epoch without the cache costs,
    from what was decoded in this run. read_s: of one clip from the cache. refused: why, and how
    many videos. stopped: why the cache was not written any more, "" where it was; full: whether
    its limit was reached.
    """

    uri: str
    videos: int
    clips: int
    source_bytes: int
    source_on_s3: bool
    kept: int = 0
    decoded: int = 0
    cache_bytes: int = 0
    decode_s: float = 0.0
    epoch_decode_s: float = 0.0
    read_s: float = 0.0
    refused: Counter[str] = field(default_factory=Counter)
    stopped: str = ""
    full: bool = False

    @property
    def saved_s(self) -> float:
        """What an epoch from the cache saves."""
        return self.epoch_decode_s - self.videos * self.read_s

    @property
    def gets_saved(self) -> int:
        """Requests to S3 that an epoch from the cache saves."""
        return self.videos * (self.source_on_s3 - store.is_s3(self.uri))

    @property
    def dollars_month(self) -> float:
        """What keeping the clips costs a month; a disk that is there costs nothing."""
        return self.cache_bytes / 1e9 * S3_GB_MONTH if store.is_s3(self.uri) else 0.0

    def dollars_saved(self, cpu_hour: float) -> float:
        """What an epoch from the cache saves, where an hour of one CPU costs `cpu_hour`."""
        return self.saved_s / 3600 * cpu_hour + self.gets_saved * S3_GET

    def payback(self, cpu_hour: float) -> int | None:
        """Epochs until decoding once and a month's storage are earned; None: never."""
        saved = self.dollars_saved(cpu_hour)
        cost = self.decode_s / 3600 * cpu_hour + self.dollars_month
        return math.ceil(cost / saved) if saved > 0 else None

    def lines(self, node: str, cpu_hour: float) -> Iterator[str]:
        """For a person; `node` is what one CPU of costs `cpu_hour` dollars an hour."""
        share = f"{self.kept} of {self.clips}" if self.kept < self.clips else f"all {self.clips}"
        yield (
            f"{self.uri}: {share} clips of {self.videos} videos, {_size(self.cache_bytes)} "
            f"for {_size(self.source_bytes)} of video; {self.decoded} decoded now"
        )
        for reason, count in self.refused.most_common():
            yield f"refused {count}: {reason}"
        if self.stopped:
            yield f"nothing more was written: {self.stopped}"
        if self.full:
            yield "the cache is full: raise data.cache.gb to keep them all"
        if not self.decoded:
            return
        yield (
            f"decoding once cost {_minutes(self.decode_s)}; an epoch from the cache saves "
            f"{_minutes(self.saved_s)} (${self.dollars_saved(cpu_hour):.3g} on {node}) and "
            f"{self.gets_saved} GETs: {self.read_s * 1e3:.2f} ms a clip in place of "
            f"{self.epoch_decode_s / self.videos * 1e3:.2f}"
        )
        epochs = self.payback(cpu_hour)
        verdict = "does not pay back" if epochs is None else f"pays back after {epochs} epochs"
        yield f"keeping it costs ${self.dollars_month:.3g} a month ({S3_PRICE_DATE}); {verdict}"


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.1f} CPU-min" if seconds >= 60 else f"{seconds:.1f} CPU-s"
