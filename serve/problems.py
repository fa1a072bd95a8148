"""Errors as problem documents (RFC 9457), whatever raised them."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from raygen.errors import ConfigError, StorageError
from serve.generator import Overloaded
from serve.models import ModelNotFound
from serve.schemas import Problem

MEDIA_TYPE = "application/problem+json"
SHOWN = 100  # characters of a wrong value that are repeated


def problem(status: int, detail: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """The answer that says so."""
    status = HTTPStatus(status)
    document = Problem(title=status.phrase, status=status, detail=detail)
    return JSONResponse(document.model_dump(), status, headers, media_type=MEDIA_TYPE)


def documented(*statuses: HTTPStatus) -> dict[int | str, dict[str, Any]]:
    """What OpenAPI says of these answers."""
    schema = {"$ref": "#/components/schemas/Problem"}
    return {
        int(status): {
            "description": status.phrase,
            "content": {MEDIA_TYPE: {"schema": schema}},
        }
        for status in statuses
    }


async def _overloaded(request: Request, error: Exception) -> Response:
    assert isinstance(error, Overloaded)
    headers = {"Retry-After": str(error.retry_after_s)}
    return problem(HTTPStatus.SERVICE_UNAVAILABLE, str(error), headers)


async def _no_model(request: Request, error: Exception) -> Response:
    return problem(HTTPStatus.NOT_FOUND, str(error))


async def _no_storage(request: Request, error: Exception) -> Response:
    return problem(HTTPStatus.SERVICE_UNAVAILABLE, str(error), {"Retry-After": "5"})


async def _not_taken(request: Request, error: Exception) -> Response:
    unknown = isinstance(error, ConfigError) and error.key == "class"
    status = HTTPStatus.NOT_FOUND if unknown else HTTPStatus.UNPROCESSABLE_ENTITY
    return problem(status, str(error))


async def _bad_request(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError | ValidationError)
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"] if part not in ("query", "path", "body"))
    got = repr(first["input"])
    got = got if len(got) <= SHOWN else f"{got[:SHOWN]}..."
    wrong = "there is no such field" if first["type"] == "extra_forbidden" else first["msg"]
    detail = f"{where or 'body'}: {wrong} (got {got})"
    return problem(HTTPStatus.UNPROCESSABLE_ENTITY, detail)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return problem(error.status_code, error.detail, dict(error.headers or {}))


async def _bug(request: Request, error: Exception) -> Response:
    # Starlette raises it again once this is sent, and Serve logs it.
    return problem(HTTPStatus.INTERNAL_SERVER_ERROR, "an error of this server; its log has it")


HANDLERS: dict[Any, Any] = {
    Overloaded: _overloaded,
    ModelNotFound: _no_model,
    StorageError: _no_storage,
    ConfigError: _not_taken,
    RequestValidationError: _bad_request,
    ValidationError: _bad_request,
    HTTPException: _http_error,
    Exception: _bug,
}
