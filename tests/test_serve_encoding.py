"""Files made by another process: what it makes, its death, and callers that are gone."""

from __future__ import annotations

import asyncio
import os
import queue
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raygen import video, watermark
from serve import encoding
from serve.encoding import Encoders, File

FPS = 12.5


@pytest.fixture
def encoders() -> Iterator[Encoders]:
    made = Encoders(1)
    yield made
    made.close()


def clips(count: int, frames: int = 4, size: int = 32) -> list[video.Clips]:
    random = np.random.default_rng(0)
    shape = (frames, size, size, 3)
    return [random.integers(0, 256, shape, np.uint8) for _ in range(count)]


def child(encoders: Encoders) -> Any:
    only = encoders._pool.get()
    encoders._pool.put(only)
    return only


async def every(encoders: Encoders, files: Sequence[File]) -> list[bytes]:
    return await asyncio.gather(*(encoders(file) for file in files))


async def tried(encoders: Encoders, files: Sequence[File]) -> list[bytes | BaseException]:
    return await asyncio.gather(*(encoders(file) for file in files), return_exceptions=True)


def mp4s(made: Sequence[video.Clips]) -> list[File]:
    return [File([clip_THWC], "mp4", FPS) for clip_THWC in made]


@pytest.mark.parametrize("format", [name for name in video.MEDIA_TYPES if name != "npy"])
def test_a_file_is_what_it_would_be_here(encoders: Encoders, format: str) -> None:
    made = clips(3)
    files = [File([clip_THWC], format, FPS, ["one"], scale=2) for clip_THWC in made]
    files.append(File(made, format, FPS, ["a", "b", "c"]))
    assert asyncio.run(every(encoders, files)) == [file.encode() for file in files]


def test_a_mark_is_that_of_the_weights(encoders: Encoders) -> None:
    [clip_THWC] = clips(1, 16, 64)
    still_THWC = np.broadcast_to(clip_THWC[:1] // 4 + 96, clip_THWC.shape)
    file = File([still_THWC], "gif", FPS, digest="0f3a91c2d4e5")
    assert asyncio.run(encoders(file)) == file.encode()
    assert file.encode() != file._replace(digest="").encode()
    assert watermark.detect(watermark.mark(still_THWC, file.digest)).digest == "0f3a91c2"


def test_a_file_larger_than_the_memory_that_stays(
    encoders: Encoders, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoding, "KEPT", 1 << 16)
    files = [File([clip_THWC], "gif", FPS) for clip_THWC in (*clips(2), *clips(1, 9, 200))]

    async def main() -> None:
        for some in (files[:1], files, files[2:], files[:1]):
            assert await every(encoders, some) == [file.encode() for file in some]

    asyncio.run(main())


def test_another_child_goes_on_where_one_died(encoders: Encoders) -> None:
    files = mp4s(clips(8))
    before = child(encoders)._process
    before.kill()
    before.wait()
    assert asyncio.run(every(encoders, files)) == [file.encode() for file in files]
    assert child(encoders)._process.pid != before.pid


def test_what_kills_every_child_fails_alone(
    encoders: Encoders, monkeypatch: pytest.MonkeyPatch
) -> None:
    deadly, *others = mp4s(clips(3))
    send = encoding._Child._send

    def sent(self: Any, files: Sequence[File]) -> None:
        if files[0] is deadly:
            self._process.kill()
            self._process.wait()
        send(self, files)

    monkeypatch.setattr(encoding._Child, "_send", sent)
    failed, *made = asyncio.run(tried(encoders, [deadly, *others]))
    assert isinstance(failed, RuntimeError)
    assert "-9" in str(failed)
    assert made == [file.encode() for file in others]


def test_what_cannot_be_made_says_why_and_the_others_are_made(encoders: Encoders) -> None:
    files = mp4s(clips(3))
    files[1] = files[1]._replace(format="mp5")
    first, second, third = asyncio.run(tried(encoders, files))
    assert [first, third] == [files[0].encode(), files[2].encode()]
    assert isinstance(second, RuntimeError)
    assert "mp5" in str(second)


def test_files_that_nobody_waits_for_any_more_are_not_the_next_ones(encoders: Encoders) -> None:
    files = mp4s(clips(20))

    async def leave() -> None:
        asked = [asyncio.create_task(encoders(file)) for file in files]
        await asked[0]  # and its loop is closed while the others are made

    asyncio.run(leave())
    assert asyncio.run(encoders(files[-1])) == files[-1].encode()


def test_children_are_shared_and_end_with_their_process() -> None:
    script = """
import os, signal, sys
from serve.encoding import Encoders
first, second = Encoders(2), Encoders(2)
assert first._pool is second._pool
print([first._pool.get()._process.pid for _ in range(2)], flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, check=False)
    assert done.returncode == -signal.SIGKILL
    deadline = time.monotonic() + 60
    for pid in eval(done.stdout):
        while alive(pid):
            assert time.monotonic() < deadline
            time.sleep(0.05)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_how_long_a_file_would_wait(encoders: Encoders) -> None:
    async def main() -> None:
        assert encoders.wait_s == 0
        asked = [asyncio.create_task(encoders(file)) for file in mp4s(clips(40))]
        await asked[0]
        # Their time is known once all of a batch are made.
        while not encoders.wait_s:
            assert not all(task.done() for task in asked)
            await asyncio.sleep(0.001)
        await asyncio.gather(*asked)
        assert encoders.wait_s == 0

    asyncio.run(main())


def test_the_batches_of_one_pool_do_not_meet(encoders: Encoders) -> None:
    assert isinstance(encoders._pool, queue.SimpleQueue)
    other = Encoders(1)
    files = mp4s(clips(20))

    async def main() -> list[bytes]:
        half = [encoders if place % 2 else other for place in range(len(files))]
        return await asyncio.gather(*(e(f) for e, f in zip(half, files, strict=True)))

    assert asyncio.run(main()) == [file.encode() for file in files]
    other.close()
    assert os.path.exists(f"/proc/{child(encoders)._process.pid}")  # noqa: PTH110
