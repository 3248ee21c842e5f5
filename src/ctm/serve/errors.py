"""Errors of the service in the shape of OpenAI's API: {"error": {message, type, param, code}}."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from ctm.foreign.text import plain
from ctm.safety.admission import Refused
from ctm.serve.tickets import Expired, QueueFull, Stopped

__all__ = ["ApiError", "add_handlers", "as_api_error", "bad_request"]

LOG = logging.getLogger("ctm.serve")
_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
_CODES = {404: "not_found", 405: "method_not_allowed"}


class ApiError(Exception):
    """An answer that is an error. message: a sentence for the user; code: for programs; param: the field that is wrong;
    retry_after: seconds; facts: further fields of the error."""

    def __init__(
        self,
        status: int,
        message: str,
        code: str,
        *,
        param: str | None = None,
        retry_after: float | None = None,
        headers: dict[str, str] | None = None,
        facts: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.param, self.facts = status, code, param, facts or {}
        self.headers = dict(headers or {})
        if retry_after is not None:
            self.headers["Retry-After"] = str(max(1, math.ceil(retry_after)))

    @property
    def content(self) -> dict[str, Any]:
        """The body of the answer."""
        kind = _TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code, **self.facts}}

    @property
    def response(self) -> JSONResponse:
        return JSONResponse(self.content, self.status, self.headers)


@contextmanager
def bad_request(param: str | None = None, code: str = "invalid_value") -> Iterator[None]:
    """Inside the block, a ValueError is a mistake in the request: 400, its sentence the message."""
    try:
        yield
    except Refused:
        raise
    except ValueError as error:
        raise ApiError(400, plain(str(error), 1000), code, param=param) from error


def as_api_error(error: BaseException) -> ApiError:
    """What an error is to the user. What is no mistake of the user is logged, without anything of the request."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, Refused):
        return ApiError(403, str(error), error.code)
    if isinstance(error, QueueFull):
        return ApiError(429, str(error), "queue_full", retry_after=error.retry_after)
    if isinstance(error, Expired):
        return ApiError(504, str(error), "deadline_passed")
    if isinstance(error, Stopped):
        return ApiError(503, str(error), "stopping", retry_after=5)
    if isinstance(error, OSError):
        LOG.error("the state cannot be read or written: %s", error)
        return ApiError(
            503, "the service's state cannot be written now, so nothing may leave: ask again later", "state"
        )
    if isinstance(error, HTTPException):
        words = str(error.detail) if error.detail else "the request cannot be answered"
        return ApiError(
            error.status_code, words, _CODES.get(error.status_code, "error"), headers=dict(error.headers or {})
        )
    LOG.error("a request failed: %s", type(error).__name__, exc_info=error)
    return ApiError(500, "the service failed at this request; its log says where", "internal_error")


def add_handlers(app: FastAPI) -> None:
    """Answer every error in this shape."""

    async def answer(_: Request, error: Exception) -> JSONResponse:
        return as_api_error(error).response

    for kind in (ApiError, Refused, QueueFull, Expired, Stopped, OSError, HTTPException, Exception):
        app.add_exception_handler(kind, answer)
