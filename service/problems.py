"""Every answer that is an error: one table from code to status, one `application/problem+json`.

The body is RFC 9457's: `type`, `title`, `status`, `detail`, and the stable `code`.
"""

import json
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ExceptionHandler

from service.errors import ClientGone, HistoryError, RangeNotSatisfiable

STATUS = {
    "missing_header": 400,
    "malformed_header": 400,
    "malformed_form": 400,
    "malformed_request": 400,
    "empty_bundle": 400,
    "invalid_hmac": 401,
    "not_found": 404,
    "method_not_allowed": 405,
    "upload_timeout": 408,
    "precondition_failed": 412,
    "bundle_too_large": 413,
    "uri_too_long": 414,
    "range_not_satisfiable": 416,
    "digest_mismatch": 422,
    "hmac_mismatch": 422,
    "headers_too_large": 431,
    "internal_error": 500,
    "draining": 503,
    "overloaded": 503,
    "storage_unavailable": 503,
}

_HEADERS = {
    "invalid_hmac": {"WWW-Authenticate": "XMTP-HMAC-SHA256"},
    "draining": {"Retry-After": "5"},
    "overloaded": {"Retry-After": "5"},
    "storage_unavailable": {"Retry-After": "5"},
}

_TITLES = {
    # As RFC 9110 has them: Python's own change with its version.
    413: "Content Too Large",
    414: "URI Too Long",
    416: "Range Not Satisfiable",
    422: "Unprocessable Content",
}

_ROUTING = {
    404: ("not_found", "There is nothing at this path: see / for what this server offers."),
    405: ("method_not_allowed", "Use one of the methods in Allow."),
}

CLIENT_GONE = 499
"""What the log says of a request whose client went away; nobody is there to read it."""


def problem(code: str, detail: str, headers: Mapping[str, str] | None = None) -> Response:
    """Answer with the problem `code`; `detail` is one sentence that tells the caller what to do."""
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
    return problem(error.code, error.detail, headers)


async def _routing_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    headers = {
        name: ", ".join(sorted(value.split(", "))) for name, value in (error.headers or {}).items()
    }
    return problem(*_ROUTING[error.status_code], headers=headers)


async def _client_gone(_: Request, __: Exception) -> Response:
    return Response(status_code=CLIENT_GONE)


async def _internal_error(_: Request, __: Exception) -> Response:
    """A bug: the server logs it whole, the caller is told nothing of it."""
    return problem("internal_error", "This is a fault of the server: report it, and try again.")


HANDLERS: Mapping[Any, ExceptionHandler] = {
    HistoryError: _history_error,
    HTTPException: _routing_error,
    ClientGone: _client_gone,
    Exception: _internal_error,
}
