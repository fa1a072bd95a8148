"""The servers that tests.benchmarks.serve compares: one generator and one encoder behind each.

    python -m tests.benchmarks.serve_peers raygen EXPORT PORT DRAWING     until stdin ends

    raygen     serve.app on a Ray of its own
    litserve   LitServe, batches of up to 8
    uvicorn    a plain FastAPI endpoint under uvicorn, one clip at a time

Each answers GET or POST with ?seed= and ?format= (raygen at its own address).
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import sys
import threading
from typing import Any

os.environ["RAY_AUTH_MODE"] = "disabled"
os.environ["OMP_NUM_THREADS"] = "1"  # as in a replica of one CPU
os.environ["RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S"] = "300"  # a busy machine is slow, not broken

from raygen import video
from raygen.export import load_generator
from serve.drawing import Drawer, Point, choose


class Source:
    """The generator and the encoder, without a server."""

    def __init__(self, export: str, drawing: str) -> None:
        self.generator = load_generator(export)
        self.drawer: Drawer = choose(self.generator, drawing)

    def draw(self, seeds: list[int]) -> list[video.Clips]:
        classes = len(self.generator.classes)
        points = [Point(*self.generator.points([s], [s % classes])) for s in seeds]
        clips: dict[int, video.Clips] = {}
        for rows, clips_NTHWC in self.drawer(points):
            clips |= dict(zip(rows, clips_NTHWC, strict=True))
        return [clips[row] for row in range(len(seeds))]

    def encode(self, clip_THWC: video.Clips, format: str) -> bytes:
        return video.encode(clip_THWC[None], format, self.generator.fps)


def raygen(export: str, port: int, drawing: str) -> None:
    import ray
    from ray import serve

    from serve import edge
    from serve.app import AppArgs, build

    os.environ[edge.VARIABLE] = "serve.edge:edge"  # as `serve run` has it
    ray.init("local", num_cpus=2, include_dashboard=False, configure_logging=False)
    # With HAProxy, Serve's own default is every interface.
    options = {"host": "127.0.0.1", "port": port}
    # It waits for a minute, which a busy machine's proxy may not be there in.
    with contextlib.suppress(TimeoutError):
        serve.start(http_options=options, logging_config={"enable_access_log": False})
    # The peers allow any number of requests.
    args = AppArgs(export=export, drawing=drawing, rate=1e6, burst=10**6)
    serve.run(build(args), route_prefix="/")
    sys.stdin.read()
    serve.shutdown()
    ray.shutdown()


def litserve(export: str, port: int, drawing: str) -> None:
    from tests.benchmarks.serve_litserve import run

    threading.Thread(target=end_with_stdin, daemon=True).start()
    run(export, port, drawing)


def uvicorn(export: str, port: int, drawing: str) -> None:
    import uvicorn as server
    from fastapi import FastAPI, Response

    source, lock = Source(export, drawing), threading.Lock()
    app = FastAPI()

    def clip(seed: int, format: str) -> Any:
        with lock:  # a module draws in one thread at a time
            (clip_THWC,) = source.draw([seed])
        return Response(source.encode(clip_THWC, format), media_type=video.MEDIA_TYPES[format])

    app.add_api_route("/predict", clip, methods=["POST"], response_class=Response)
    threading.Thread(target=end_with_stdin, daemon=True).start()
    server.run(app, host="127.0.0.1", port=port, log_level="warning")


def end_with_stdin() -> None:
    """Ends this process and its children when whoever started it lets go of its input."""
    # Not sys.stdin: LitServe's forked workers close that, and would wait for its lock.
    while os.read(0, 1):
        pass
    for child in multiprocessing.active_children():
        child.kill()
    os._exit(0)


if __name__ == "__main__":
    kind, export, port, drawing = sys.argv[1:]
    {"raygen": raygen, "litserve": litserve, "uvicorn": uvicorn}[kind](export, int(port), drawing)
