"""LitServe for tests.benchmarks.serve_peers; a module of its own, as its workers import it anew."""

# No `from __future__ import annotations`: LitServe reads the types of its hooks as they stand.

import litserve
from fastapi import Request, Response

from raygen import video
from serve.drawing import MAX_BATCH
from tests.benchmarks.serve_peers import Source

BATCH_WAIT_S = 0.01  # for a batch to fill

Asked = tuple[int, str]  # seed and format
Drawn = tuple[video.Clips, str]


class Api(litserve.LitAPI):  # type: ignore[misc]
    """Batches of clips from the same source; each is encoded in the worker."""

    def __init__(self, export: str, drawing: str) -> None:
        super().__init__(max_batch_size=MAX_BATCH, batch_timeout=BATCH_WAIT_S)
        self._made_of = (export, drawing)

    def setup(self, device: str) -> None:
        self.source = Source(*self._made_of)

    def decode_request(self, request: Request) -> Asked:
        return request["seed"], request["format"]  # its JSON, by the time that it is here

    def batch(self, asked: list[Asked]) -> list[Asked]:
        return asked

    def predict(self, asked: list[Asked]) -> list[Drawn]:
        clips = self.source.draw([seed for seed, _ in asked])
        return [(clip, format) for clip, (_, format) in zip(clips, asked, strict=True)]

    def unbatch(self, drawn: list[Drawn]) -> list[Drawn]:
        return drawn

    def encode_response(self, drawn: Drawn) -> Response:
        return Response(self.source.encode(*drawn), media_type=video.MEDIA_TYPES[drawn[1]])


def run(export: str, port: int, drawing: str) -> None:
    """Answers POST /predict until the process is ended."""
    server = litserve.LitServer(
        Api(export, drawing), accelerator="cpu", workers_per_device=1, timeout=120
    )
    server.run("127.0.0.1", port, generate_client_file=False, log_level="warning")
