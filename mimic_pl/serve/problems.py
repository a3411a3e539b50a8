"""Answers to requests that are refused: one form, whatever refused them, and without their content."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from pydantic_core import ErrorDetails
from starlette.exceptions import HTTPException
from starlette.routing import Match

from mimic_pl.errors import ConfigError, DataError, StoreError
from mimic_pl.serve.batching import BusyError

RETRY_AFTER = {"Retry-After": "1"}

BUSY = "The server is busy. Try again."

METHODS = ("DELETE", "GET", "POST", "PUT")

_NAMED = 3
"""Faults of a request that an answer names."""


class Problem(BaseModel):
    """Why a request was refused."""

    detail: str


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Descriptions of status codes for the OpenAPI schema."""
    descriptions = {
        400: "The body cannot be parsed.",
        401: "The token is missing or wrong.",
        404: "There is no such entity, or no image of it.",
        408: "The request did not arrive in time.",
        413: "The request is too large.",
        422: "The request cannot be used; the message says why.",
        503: "The server is busy. Try again after `Retry-After` seconds.",
    }
    return {status: {"model": Problem, "description": descriptions[status]} for status in statuses}


def named(errors: Sequence[ErrorDetails], inside: str = "") -> str:
    """The first faults that validation found, and where.

    Args:
        errors: The faults.
        inside: What they were found in, instead of the first part of each place.
    """
    texts = []
    for error in errors[:_NAMED]:
        place = ".".join(map(str, error["loc"] if inside else error["loc"][1:]))
        where = f"{inside} ({place})" if inside and place else inside or place
        message = error["msg"].removeprefix("Value error, ")
        texts.append(f"{where}: {message}" if where else message)
    more = f" (and {len(errors) - _NAMED} more)" if len(errors) > _NAMED else ""
    return f"{'; '.join(texts)}{more}."


def add_problems(app: FastAPI) -> None:
    """Answer errors of requests with a :class:`Problem`."""
    for kind, status in ((DataError, 422), (ConfigError, 422), (StoreError, 503)):
        app.add_exception_handler(kind, partial(_refused, status))
    app.add_exception_handler(BusyError, lambda request, error: _answer(503, BUSY))
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)


def _answer(status: int, detail: str, headers: dict[str, str] | None = None) -> Response:
    # A message that quotes half of a character of the request cannot be encoded.
    detail = detail.encode("utf-8", "replace").decode()
    return JSONResponse({"detail": detail}, status, headers or (RETRY_AFTER if status == 503 else None))


def _refused(status: int, request: Request, error: Exception) -> Response:
    return _answer(status, str(error))


def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return _answer(422, named(error.errors()))


def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    headers = dict(error.headers or {})
    if error.status_code == 405:  # of all routes with this path, where the error names the methods of one
        allowed = (
            method
            for method in METHODS
            if any(route.matches({**request.scope, "method": method})[0] is Match.FULL for route in request.app.routes)
        )
        headers["Allow"] = ", ".join(allowed)
    return _answer(error.status_code, str(error.detail), headers)
