from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import av
import numpy as np
import pytest

from raygen.config import DataConfig, LimitsConfig
from raygen.data import decode, store, warden
from raygen.data.frames import Clip
from raygen.data.sandbox import Decoded, Refusal, Request, Sandbox
from raygen.errors import AccessError, RaygenError

FRAMES, SIZE, FPS = 8, 32, 16.0
SECONDS = 1.5  # of each of the rendered shapes


def config(*, cache_mb: int = 0, **limits: float) -> DataConfig:
    return DataConfig(
        frames=FRAMES,
        size=SIZE,
        fps=FPS,
        cache_mb=cache_mb,
        limits=LimitsConfig.model_validate(limits),
    )


@contextmanager
def opened(settings: DataConfig) -> Iterator[Sandbox]:
    box = Sandbox(settings)
    try:
        yield box
    finally:
        box.close()


@pytest.fixture
def box() -> Iterator[Sandbox]:
    with opened(config()) as box:
        yield box


def request(
    uri: Path | str,
    *,
    etag: str = "",
    offset: int = 0,
    size: int | None = None,
    seconds: float = SECONDS,
    start: float = 0.5,
    shot: tuple[float, float] | None = None,
) -> Request:
    if not etag and not str(uri).startswith("s3://"):
        stat = Path(uri).stat()
        etag, size = f"{stat.st_mtime_ns:x}-{stat.st_size:x}", size or stat.st_size
    low, high = shot or (0.0, seconds)
    return Request(str(uri), etag, offset, size or 0, seconds, start, (0.5, 0.5), low, high)


def videos(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.mp4"))


def expected(data: bytes, start: float = 0.5) -> Clip:
    first = int(start * (decode.frame_count(SECONDS, FPS) - FRAMES + 1))
    return decode.decode(data, start=first / FPS, frames=FRAMES, fps=FPS, size=SIZE)


def clip(outcome: Decoded | Refusal) -> Clip:
    assert isinstance(outcome, Decoded), outcome
    return outcome.clip_THWC


def reason(outcome: Decoded | Refusal) -> str:
    assert isinstance(outcome, Refusal)
    return outcome.reason


def fifo(folder: Path) -> Path:
    """A file that hangs whoever opens it."""
    path = folder / "hangs.mp4"
    os.mkfifo(path)
    return path


def numbered(path: Path, frames: int, *, side: int = 64, rate: int = int(FPS)) -> Path:
    """A video whose frame k is grey level 5 x k."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(
            "libx264", rate=rate, options={"g": "8", "crf": "1", "preset": "ultrafast"}
        )
        stream.width, stream.height, stream.pix_fmt = side, side, "yuv420p"
        for k in range(frames):
            image = np.full((side, side, 3), 5 * k, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return path


def kill_at(path: Path, box: Sandbox, number: int, times: int) -> threading.Thread:
    """Sends the child a signal, so often, whenever it is inside of the FIFO `path`."""

    def run() -> None:
        for _ in range(times):
            # Opening one end of a FIFO waits for the other.
            os.close(os.open(path, os.O_WRONLY))
            pid = box.pid
            assert pid is not None
            os.kill(pid, number)
            while box.pid == pid:
                time.sleep(0.01)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


@pytest.mark.parametrize("cache_mb", [0, 64], ids=["spans", "whole"])
def test_clips_are_those_that_decoding_here_gives(shapes: Path, cache_mb: int) -> None:
    paths = videos(shapes)
    starts = np.linspace(0, 0.999, len(paths))
    with opened(config(cache_mb=cache_mb)) as box:
        for count in (2, len(paths), 3):  # the shared memory grows, and is used again
            asked = [request(p, start=s) for p, s in zip(paths[:count], starts, strict=False)]
            outcomes = box.decode(asked)
            for path, start, outcome in zip(paths, starts, outcomes, strict=False):
                np.testing.assert_array_equal(clip(outcome), expected(path.read_bytes(), start))
                assert isinstance(outcome, Decoded)
                assert outcome.decode_s > 0
                assert outcome.fetch_s >= 0
            assert len(outcomes) == count
            np.testing.assert_array_equal(box.clips_NTHWC, np.stack([clip(o) for o in outcomes]))
        assert box.restarts == 0


def test_nothing_asked_is_nothing_started(box: Sandbox) -> None:
    assert box.decode([]) == []
    assert box.pid is None


@pytest.mark.parametrize("cache_mb", [0, 64], ids=["spans", "whole"])
def test_a_clip_lies_within_its_shot(tmp_path: Path, cache_mb: int) -> None:
    path = numbered(tmp_path / "numbered.mp4", 48)
    shots = [(0.0, 3.0), (0.51, 1.3), (1.0, 1.5), (2.26, 3.0)]
    starts = (0.0, 0.4, 0.999)
    with opened(config(cache_mb=cache_mb)) as box:
        outcomes = box.decode(
            [request(path, seconds=3.0, start=s, shot=shot) for shot in shots for s in starts]
        )
    firsts = [round(float(clip(o)[0].mean()) / 5) for o in outcomes]
    lasts = [round(float(clip(o)[-1].mean()) / 5) for o in outcomes]
    for number, (low, high) in enumerate(shots):
        of_shot = slice(3 * number, 3 * number + 3)
        # From the first whole frame of the shot on, and up to its last.
        assert firsts[of_shot][0] == np.ceil(low * FPS)
        assert lasts[of_shot][2] == int(high * FPS) - 1
        assert firsts[of_shot] == sorted(firsts[of_shot])


def test_what_cannot_be_decoded_is_refused_and_the_rest_comes(
    shapes: Path, tmp_path: Path, box: Sandbox
) -> None:
    good = videos(shapes)[0]
    page, empty, changed = (tmp_path / name for name in ("page.mp4", "empty.mp4", "changed.mp4"))
    page.write_text("<html>denied</html>")
    empty.write_bytes(b"")
    changed.write_bytes(good.read_bytes())
    outcomes = box.decode(
        [
            request(good),
            request(page),
            request(empty),
            request(tmp_path / "absent.mp4", etag="0-0"),
            request(changed, etag="0-0"),
            request(good, seconds=60.0, start=0.9),
            request(good, start=0.0),
        ]
    )
    assert "not a video" in reason(outcomes[1])
    assert reason(outcomes[2])
    assert "No such file" in reason(outcomes[3])
    assert "was replaced since it was scanned" in reason(outcomes[4])
    assert "before the clip" in reason(outcomes[5])
    np.testing.assert_array_equal(clip(outcomes[0]), expected(good.read_bytes()))
    np.testing.assert_array_equal(clip(outcomes[6]), expected(good.read_bytes(), 0.0))
    assert len(box.clips_NTHWC) == 2
    assert box.restarts == 0


def test_a_clip_that_hangs_is_refused_and_the_rest_comes(shapes: Path, tmp_path: Path) -> None:
    paths = videos(shapes)
    with opened(config(seconds=1.5)) as box:
        outcomes = box.decode(
            [*map(request, paths[:3]), request(fifo(tmp_path)), *map(request, paths)]
        )
        assert reason(outcomes[3]) == "took more than 1.5 s to decode (data.limits.seconds)"
        for path, outcome in zip([*paths[:3], *paths], outcomes[:3] + outcomes[4:], strict=True):
            np.testing.assert_array_equal(clip(outcome), expected(path.read_bytes()))
        assert box.restarts == 1


def test_storage_that_hangs_is_refused(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warden, "FETCH_SECONDS", 1.5)
    paths = videos(shapes)
    stuck = request(fifo(tmp_path), offset=1, size=100)
    with opened(config()) as box:
        outcomes = box.decode([request(paths[0]), stuck, request(paths[1])])
        assert reason(outcomes[1]) == "took more than 1.5 s to fetch"
        np.testing.assert_array_equal(clip(outcomes[2]), expected(paths[1].read_bytes()))
        assert box.restarts == 1


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT])
def test_a_clip_that_kills_its_decoder_twice_is_refused(
    shapes: Path, tmp_path: Path, box: Sandbox, number: signal.Signals
) -> None:
    paths = videos(shapes)
    killer = fifo(tmp_path)
    thread = kill_at(killer, box, number, times=2)
    outcomes = box.decode([request(paths[0]), request(killer), *map(request, paths[1:])])
    thread.join(10)
    assert reason(outcomes[1]) == f"crashed the decoder ({number.name})"
    for path, outcome in zip(paths, outcomes[:1] + outcomes[2:], strict=True):
        np.testing.assert_array_equal(clip(outcome), expected(path.read_bytes()))
    assert box.restarts == 2


def test_a_child_killed_by_an_outsider_costs_no_clip(shapes: Path, box: Sandbox) -> None:
    asked = [request(path) for path in videos(shapes) * 20]
    box.decode(asked[:1])
    before = box.pid
    assert before is not None
    # Stopped, it cannot be through before it is killed.
    os.kill(before, signal.SIGSTOP)
    threading.Timer(0.05, os.kill, (before, signal.SIGKILL)).start()
    outcomes = box.decode(asked)
    assert box.restarts == 1
    for item, outcome in zip(asked, outcomes, strict=True):
        np.testing.assert_array_equal(clip(outcome), expected(Path(item.uri).read_bytes()))


def test_a_child_killed_while_idle_is_replaced(shapes: Path, box: Sandbox) -> None:
    asked = [request(path) for path in videos(shapes)[:2]]
    box.decode(asked)
    assert box.pid is not None
    os.kill(box.pid, signal.SIGKILL)
    for outcome, item in zip(box.decode(asked), asked, strict=True):
        np.testing.assert_array_equal(clip(outcome), expected(Path(item.uri).read_bytes()))
    assert box.restarts == 1


def test_a_clip_that_needs_too_much_memory_is_refused(shapes: Path, tmp_path: Path) -> None:
    bomb = numbered(tmp_path / "bomb.mp4", 3, side=4096, rate=6)
    good = videos(shapes)[:3]
    asked = [request(good[0]), request(bomb, seconds=0.5, start=0), *map(request, good[1:])]
    with opened(config(memory_mb=64)) as box:
        outcomes = box.decode(asked)
        assert reason(outcomes[1]) == "needs more than 64 MB to decode (data.limits.memory_mb)"
        for path, outcome in zip(good, outcomes[:1] + outcomes[2:], strict=True):
            np.testing.assert_array_equal(clip(outcome), expected(path.read_bytes()))
    with opened(config(memory_mb=2048)) as box:
        assert all(isinstance(outcome, Decoded) for outcome in box.decode(asked))


def test_a_child_that_cannot_start_is_an_error(
    shapes: Path, box: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(RaygenError, match=r"3 decoder processes in a row .* \(exit code 1\)"):
        box.decode([request(videos(shapes)[0])])


def test_the_child_outlives_the_thread_that_started_it(shapes: Path, box: Sandbox) -> None:
    asked = [request(path) for path in videos(shapes)[:2]]
    thread = threading.Thread(target=box.decode, args=(asked,))
    thread.start()
    thread.join()
    pid = box.pid
    assert pid is not None
    os.kill(pid, signal.SIGINT)  # Ctrl-C is the parent's
    assert all(isinstance(outcome, Decoded) for outcome in box.decode(asked))
    assert box.pid == pid
    assert box.restarts == 0


def test_the_child_ends_with_its_parent(tmp_path: Path) -> None:
    hangs = fifo(tmp_path)
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(hangs)])
    os.close(os.open(hangs, os.O_WRONLY))  # the child is inside
    children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()
    assert len(children) == 1
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 30
    while Path(f"/proc/{children[0]}").exists():
        assert time.monotonic() < deadline, "the child outlived its parent"
        time.sleep(0.05)


PARENT = """
import sys
from raygen.config import DataConfig
from raygen.data.sandbox import Request, Sandbox
from pathlib import Path
stat = Path(sys.argv[1]).stat()
etag = f"{stat.st_mtime_ns:x}-{stat.st_size:x}"
Sandbox(DataConfig()).decode([Request(sys.argv[1], etag, 0, 1, 9.0, 0.0, (0.5, 0.5), 0.0, 9.0)])
"""


def test_the_child_loads_no_more_than_it_needs(shapes: Path, box: Sandbox) -> None:
    box.decode([request(videos(shapes)[0])])
    maps = Path(f"/proc/{box.pid}/maps").read_text()
    assert "libavcodec" in maps
    assert not [name for name in ("torch", "arrow", "pydantic", "_raylet") if name in maps]


def test_close_ends_the_child(shapes: Path) -> None:
    with opened(config()) as box:
        (outcome,) = box.decode([request(videos(shapes)[0])])
        pid = box.pid
    assert not Path(f"/proc/{pid}").exists()
    np.testing.assert_array_equal(clip(outcome), expected(videos(shapes)[0].read_bytes()))


def uploaded(prefix: str, paths: Sequence[Path]) -> list[Request]:
    for path in paths:
        store.write_bytes(store.join(prefix, path.name), path.read_bytes())
    found = {item.uri: item for item in store.list_objects(prefix)}
    items = [found[store.join(prefix, path.name)] for path in paths]
    return [request(item.uri, etag=item.etag, size=item.size) for item in items]


def test_clips_come_from_s3(shapes: Path, s3: str) -> None:
    paths = videos(shapes)
    asked = uploaded(s3, paths)
    gone = request(store.join(s3, "gone.mp4"), etag="00", size=10_000)
    with opened(config(memory_mb=64)) as box:  # which reading storage does not count towards
        box.decode([request(paths[0])])
        outcomes = box.decode([*asked[:5], gone, *asked[5:]])
        assert "no object at" in reason(outcomes.pop(5))
        for path, outcome in zip(paths, outcomes, strict=True):
            np.testing.assert_array_equal(clip(outcome), expected(path.read_bytes()))
        assert box.restarts == 0


def test_a_clip_killed_over_s3_is_fetched_again(shapes: Path, s3: str, tmp_path: Path) -> None:
    paths = videos(shapes)[:4]
    asked = uploaded(s3, paths)
    with opened(config(seconds=1.5)) as box:
        outcomes = box.decode([asked[0], request(fifo(tmp_path)), *asked[1:]])
        assert "1.5 s" in reason(outcomes.pop(1))
        for path, outcome in zip(paths, outcomes, strict=True):
            np.testing.assert_array_equal(clip(outcome), expected(path.read_bytes()))


@pytest.fixture(params=["local", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    place: str = request.getfixturevalue("s3") if request.param == "s3" else str(tmp_path / "root")
    return place


def test_members_of_a_shard_are_read_by_their_offset(shapes: Path, root: str, box: Sandbox) -> None:
    bodies = [path.read_bytes() for path in videos(shapes)[:3]]
    uri = store.join(root, "shard.tar")
    store.write_bytes(uri, b"\0" * 512 + b"".join(bodies))
    (shard,) = store.list_objects(root)
    offsets = 512 + np.cumsum([0, *map(len, bodies[:-1])])
    asked = [
        request(uri, etag=shard.etag, offset=int(offset), size=len(body))
        for offset, body in zip(offsets, bodies, strict=True)
    ]
    for body, outcome in zip(bodies, box.decode(asked), strict=True):
        np.testing.assert_array_equal(clip(outcome), expected(body))


def test_a_short_video_is_read_once(shapes: Path, root: str) -> None:
    body = videos(shapes)[0].read_bytes()
    uri = store.join(root, "clip.mp4")
    store.write_bytes(uri, body)
    (item,) = store.list_objects(root)
    asked = [request(uri, etag=item.etag, size=item.size, start=s) for s in (0.0, 0.9)]
    with opened(config(cache_mb=64)) as box:
        box.decode(asked)
        store.delete(uri)
        for start, outcome in zip((0.9, 0.0), box.decode(asked[::-1]), strict=True):
            np.testing.assert_array_equal(clip(outcome), expected(body, start))


def test_an_object_above_the_limit_is_not_fetched() -> None:
    with opened(config(object_mb=1)) as box:
        (outcome,) = box.decode([request("s3://nowhere/film.mp4", etag="0", size=5 << 20)])
        assert reason(outcome) == "is 5 MB, above 1 MB (data.limits.object_mb)"
        assert box.pid is None


def test_storage_out_of_reach_ends_the_call(
    shapes: Path, box: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:7")
    local = request(videos(shapes)[0])
    with pytest.raises(AccessError, match="cannot reach S3"):
        box.decode([local, request("s3://bucket/clip.mp4", etag="0", size=10_000), local])
    (outcome,) = box.decode([local])
    np.testing.assert_array_equal(clip(outcome), expected(Path(local.uri).read_bytes()))
