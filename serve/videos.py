"""Videos that were asked for by POST: a folder each, which every replica on the machine can read.

    videos = Videos(folder)
    video = videos.start(served, request, key="...")    # drawn beside; `await videos.wait(...)`
    videos.read(video.id), videos.content(video), videos.delete(video.id)

A video's folder holds video.json, replaced whole at each change, and then its file. The replica
that draws it touches the former every few seconds: where nobody does, that replica is gone and the
video has failed. On several machines `folder` must be one that they share.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from pathlib import Path

from raygen.errors import RaygenError
from serve.schemas import Problem, State, Video

KEPT_S = 3600.0  # after the last change
KEPT_BYTES = 2**31  # of all files together; the oldest go first
BEAT_S = 5.0
LOST_S = 60.0  # without a beat
OPEN = 64  # videos that one replica has not finished
_ID = re.compile(r"[0-9a-f]{32}")

Progress = Callable[[int], None]
"""Told how many clips are drawn."""


class KeyReused(RaygenError):
    """The Idempotency-Key of another request."""


class Videos:
    """Those of this machine, and the tasks of the ones that this replica draws."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._tasks: dict[str, asyncio.Task[None]] = {}
        (folder / "keys").mkdir(parents=True, exist_ok=True)

    @property
    def open(self) -> int:
        """Those that this replica has not finished."""
        return len(self._tasks)

    def claim(self, key: str, fingerprint: str, id: str) -> Video | None:
        """The video that this Idempotency-Key began; None where it now belongs to `id`.

        Raises KeyReused where its request was another one.
        """
        place = self._folder / "keys" / hashlib.sha256(key.encode()).hexdigest()
        for _ in range(2):
            # Written whole before it has its name, which one of several claims gets.
            partial = place.with_name(f".{id}")
            partial.write_text(json.dumps({"id": id, "fingerprint": fingerprint}))
            try:
                os.link(partial, place)
                return None
            except FileExistsError:
                claimed = json.loads(place.read_text())
            finally:
                partial.unlink()
            if claimed["fingerprint"] != fingerprint:
                raise KeyReused("this Idempotency-Key came with another request before")
            video = self.read(claimed["id"])
            if video is not None:
                return video
            place.unlink(missing_ok=True)  # of a video that is gone
        return None

    def start(self, video: Video, make: Callable[[Progress], Awaitable[bytes]]) -> None:
        """Begins to make its file. Errors become its problem."""
        self._prune()
        (self._folder / video.id).mkdir()
        self._write(video)
        task = asyncio.create_task(self._make(video, make))
        self._tasks[video.id] = task
        task.add_done_callback(lambda _: self._tasks.pop(video.id, None))

    async def wait(self, id: str, seconds: float) -> None:
        """Until it is made, or so many seconds have passed."""
        if id in self._tasks:
            await asyncio.wait([self._tasks[id]], timeout=seconds)

    def read(self, id: str) -> Video | None:
        """What is known of it; None where there is no such video."""
        if not _ID.fullmatch(id):
            return None
        path = self._folder / id / "video.json"
        try:
            video = Video.model_validate_json(path.read_bytes())
            silent_s = time.time() - path.stat().st_mtime
        except FileNotFoundError:
            return None
        if video.state in ("queued", "running") and silent_s > LOST_S:
            return _failed(
                video, HTTPStatus.SERVICE_UNAVAILABLE, "the replica that drew it is gone"
            )
        return video

    def content(self, video: Video) -> Path:
        """Where its file is, once it is done."""
        return self._folder / video.id / f"content.{video.format}"

    def delete(self, id: str) -> bool:
        """Forgets it and stops what draws it; whether there was such a video."""
        if not _ID.fullmatch(id) or not (self._folder / id).is_dir():
            return False
        if id in self._tasks:
            self._tasks[id].cancel()
        shutil.rmtree(self._folder / id, ignore_errors=True)  # another replica stops at its beat
        return True

    async def _make(self, video: Video, make: Callable[[Progress], Awaitable[bytes]]) -> None:
        drawn = 0

        def progress(clips: int) -> None:
            nonlocal drawn
            drawn = clips

        def now(state: State) -> Video:
            return video.model_copy(update={"state": state, "drawn": drawn})

        making = asyncio.ensure_future(make(progress))
        try:
            while not (await asyncio.wait([making], timeout=BEAT_S))[0]:
                self._write(now("running"))
            data = making.result()
            content = self.content(video)
            content.with_suffix(".partial").write_bytes(data)
            content.with_suffix(".partial").replace(content)
            self._write(now("done"))
        except FileNotFoundError:
            pass  # deleted meanwhile
        except RaygenError as error:
            self._write(_failed(now("failed"), HTTPStatus.UNPROCESSABLE_ENTITY, str(error)))
        except Exception:
            status = HTTPStatus.INTERNAL_SERVER_ERROR
            with contextlib.suppress(FileNotFoundError):
                self._write(_failed(now("failed"), status, "an error of this server"))
            raise
        finally:
            making.cancel()

    def _write(self, video: Video) -> None:
        path = self._folder / video.id / "video.json"
        partial = path.with_suffix(".partial.json")
        partial.write_text(video.model_dump_json())
        partial.replace(path)

    def _prune(self) -> None:
        """Removes what is old, and the oldest of what is too much."""
        files = sorted(
            ((path.stat().st_mtime, path) for path in self._folder.glob("*/video.json")),
            reverse=True,
        )
        total = 0
        for changed, path in files:
            total += sum(part.stat().st_size for part in path.parent.iterdir())
            if time.time() - changed > KEPT_S or total > KEPT_BYTES:
                self.delete(path.parent.name)
        for key in (self._folder / "keys").iterdir():
            with contextlib.suppress(FileNotFoundError):
                if time.time() - key.stat().st_mtime > 2 * KEPT_S:
                    key.unlink()


def new_id() -> str:
    """An id that nobody guesses: who has it may read and delete the video."""
    return secrets.token_hex(16)


def _failed(video: Video, status: HTTPStatus, detail: str) -> Video:
    problem = Problem(title=status.phrase, status=status, detail=detail)
    return video.model_copy(update={"state": "failed", "problem": problem})
