"""Errors as `application/problem+json`, and the one table from error code to HTTP status.

The body has the members of RFC 9457, `type`, `title`, `status` and `detail`, and the stable `code`.
`service.app` registers the exception handlers. `middleware` and `server.connection` call `problem`
themselves, for requests that never reach a route or are cancelled during a shutdown.
"""

import json
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ExceptionHandler

from service.errors import (
    ClientGone,
    HistoryError,
    LimitReached,
    RangeNotSatisfiable,
)

STATUS = {
    "missing_header": 400,
    "malformed_header": 400,
    "malformed_form": 400,
    "malformed_request": 400,
    "empty_bundle": 400,
    "invalid_hmac": 401,
    "unauthorized": 401,
    "not_found": 404,
    "method_not_allowed": 405,
    "upload_timeout": 408,
    "precondition_failed": 412,
    "bundle_too_large": 413,
    "uri_too_long": 414,
    "range_not_satisfiable": 416,
    "digest_mismatch": 422,
    "hmac_mismatch": 422,
    "too_many_attempts": 429,
    "too_many_uploads": 429,
    "headers_too_large": 431,
    "internal_error": 500,
    "draining": 503,
    "overloaded": 503,
    "storage_unavailable": 503,
}

_HEADERS = {
    "invalid_hmac": {"WWW-Authenticate": "XMTP-HMAC-SHA256"},
    "unauthorized": {"WWW-Authenticate": "Bearer"},
    "draining": {"Retry-After": "5"},
    "overloaded": {"Retry-After": "5"},
    "storage_unavailable": {"Retry-After": "5"},
}

_TITLES = {
    # The phrases of RFC 9110. Python's own phrases depend on its version.
    413: "Content Too Large",
    414: "URI Too Long",
    416: "Range Not Satisfiable",
    422: "Unprocessable Content",
}

_ROUTING_ERRORS = {
    404: (
        "not_found",
        "This path does not exist on this server: see /openapi.json for the paths that do.",
    ),
    405: (
        "method_not_allowed",
        "This path does not allow the request method: use one of the methods in the Allow header.",
    ),
}

CLIENT_GONE = 499
"""The status in the access log if the client disconnected. It is never sent."""


def problem(code: str, detail: str, headers: Mapping[str, str] | None = None) -> Response:
    """Create an error response; `detail` is one sentence that tells the caller what to do."""
    status = STATUS[code]
    body = {
        "type": "about:blank",
        "title": _TITLES.get(status) or HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
        "code": code,
    }
    return Response(
        json.dumps(body),
        status,
        {**_HEADERS.get(code, {}), **(headers or {})},
        media_type="application/problem+json",
    )


async def _history_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HistoryError)
    headers = {}
    if isinstance(error, RangeNotSatisfiable):
        headers["Content-Range"] = f"bytes */{error.size}"
    if isinstance(error, LimitReached):
        headers["Retry-After"] = str(error.retry_after)
    return problem(error.code, error.detail, headers)


async def _routing_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    headers = {
        name: ", ".join(sorted(value.split(", "))) for name, value in (error.headers or {}).items()
    }
    return problem(*_ROUTING_ERRORS[error.status_code], headers=headers)


async def _client_gone(_: Request, __: Exception) -> Response:
    return Response(status_code=CLIENT_GONE)


async def _internal_error(_: Request, __: Exception) -> Response:
    """Answer after a bug: uvicorn logs the traceback, the client does not see it."""
    return problem(
        "internal_error",
        "The server failed because of an internal error: try again, and report the error if it "
        "happens again.",
    )


EXCEPTION_HANDLERS: Mapping[Any, ExceptionHandler] = {
    HistoryError: _history_error,
    HTTPException: _routing_error,
    ClientGone: _client_gone,
    Exception: _internal_error,
}
