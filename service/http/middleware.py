"""Pure ASGI middleware around the application: paths, CORS, early responses, draining.

`service.app` wraps the application with `wrap`.
"""

import asyncio
import re
from collections.abc import Sequence
from urllib.parse import unquote_to_bytes

from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.drain import Drain
from service.errors import Draining
from service.http.access_log import METHODS, AccessLogMiddleware
from service.http.auth.token_path import SCOPE_KEY, split_path
from service.http.problems import problem
from service.http.slow_clients import DISCARD_TIMEOUT
from service.telemetry.metrics import Metrics
from service.telemetry.tracing import Tracer

REQUEST_HEADERS = (
    *(
        "Authorization",
        "Content-Type",
        "X-HMAC",
        "X-SIGNING-KEY",
        "X-TTL",
        "Content-Digest",
        "Repr-Digest",
    ),
    *("Range", "If-Match", "If-Range", "X-Request-Id", "traceparent"),
)
"""Request headers that pages of other origins may send."""

RESPONSE_HEADERS = (
    *("Location", "Sunset", "ETag", "Last-Modified", "Repr-Digest", "Accept-Ranges"),
    *("Content-Range", "Content-Length", "Content-Disposition", "Retry-After", "Allow"),
    *("WWW-Authenticate", "X-Request-Id"),
)
"""Response headers that pages of other origins may read."""

MAX_TARGET_SIZE = 8 * 1024
"""Bytes of a request target: path and query, and scheme and host if the client sends them."""

_AMBIGUOUS = (
    "The request has both Content-Length and Transfer-Encoding: send only one of them (RFC 9112, "
    "section 6.1)."
)
_TOO_LONG = f"The request target is longer than {MAX_TARGET_SIZE} bytes: send a shorter one."
_NOT_PRINTABLE = (
    "The decoded path has characters that are not printable ASCII: send a path without them."
)

_ORIGIN = re.compile(rb"https?://[^/]*", re.IGNORECASE)
_SLASHES = re.compile("/{2,}")


def wrap(
    app: Starlette,
    metrics: Metrics,
    tracer: Tracer | None,
    drain: Drain,
    *,
    cors_origins: Sequence[str],
) -> ASGIApp:
    """Wrap `app` in all middleware.

    CORS wraps everything that creates errors, so that pages can read errors too. CORS answers
    preflight requests itself. These may have a body, so EarlyResponseMiddleware wraps CORS. It also
    wraps DrainMiddleware, which answers requests whose body has not arrived completely.
    """
    cors = PreflightMiddleware(
        RejectMalformedRequestMiddleware(app),
        allow_origins=cors_origins,
        allow_methods=METHODS,
        allow_headers=REQUEST_HEADERS,
        expose_headers=RESPONSE_HEADERS,
        max_age=3600,
    )
    responding = EarlyResponseMiddleware(DrainMiddleware(cors, drain))
    return NormalizePathMiddleware(AccessLogMiddleware(responding, metrics, tracer, app.routes))


class PreflightMiddleware(CORSMiddleware):
    """CORS with status 200 for every preflight: browsers block what its headers do not allow."""

    def preflight_response(self, request_headers: Headers) -> Response:
        response = super().preflight_response(request_headers)
        response.status_code = 200
        return response


class NormalizePathMiddleware:
    """Accepts `//upload`, `/upload/`, `//files/ID/`, the absolute form of a URL, and `/t/TOKEN/`.

    It does not redirect: a client that streams its body would follow a 307 with an empty body. An
    upload token is taken out of the path, so that it does not get into a log.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            path, token = split_path(_normalize(scope["raw_path"], scope["path"]))
            scope = {**scope, "path": path, SCOPE_KEY: token}
        await self._app(scope, receive, send)


def _normalize(raw_path: bytes, decoded: str) -> str:
    """Return the decoded path with single slashes and without a slash at its end.

    `decoded` is the whole of `raw_path` as the server decoded it. Decoding it again would take a
    quarter of the CPU time of a request whose path has 2,700 escapes.

    The origin is removed before decoding (RFC 9112, section 3.2.2): `http://h%2fmetrics%2f/` names
    the path `/`, for this service as for every proxy in front of it. Bytes above ASCII become
    other characters above ASCII.
    """
    origin = _ORIGIN.match(raw_path)
    path = unquote_to_bytes(raw_path[origin.end() :]).decode("latin-1") if origin else decoded
    return _SLASHES.sub("/", path).rstrip("/") or "/"


class DrainMiddleware:
    """Closes connections after their response while the process drains.

    The server cancels requests that run longer than the drain timeout. If such a request has no
    response yet, it is answered with `draining`. This response does not pass through CORS, and
    contains no secret, so every origin may read it.
    """

    def __init__(self, app: ASGIApp, drain: Drain) -> None:
        self._app = app
        self._drain = drain

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        responded = False

        async def send_and_close(message: Message) -> None:
            nonlocal responded
            responded = True
            if message["type"] == "http.response.start" and self._drain.begun:
                MutableHeaders(scope=message)["Connection"] = "close"
            await send(message)

        try:
            await self._app(scope, receive, send_and_close)
        except asyncio.CancelledError:
            if not self._drain.begun:
                raise
            if not responded:
                headers = {"Access-Control-Allow-Origin": "*"}
                response = problem(Draining.code, Draining.default_detail, headers)
                await response(scope, receive, send_and_close)


class EarlyResponseMiddleware:
    """Delivers a response that is sent before the request's body has been read completely.

    If a socket is closed while it has unread data, the kernel resets the connection, and the client
    may lose the response. So the response says `Connection: close` and is sent completely. Then the
    rest of the body is read and dropped, for at most `DISCARD_TIMEOUT` seconds, before the response
    and the connection end (RFC 9112, section 9.6).
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not _has_body(scope):
            await self._app(scope, receive, send)
            return
        unread = True
        early = False

        async def receive_body() -> Message:
            nonlocal unread
            message = await receive()
            unread = message["type"] == "http.request" and message.get("more_body", False)
            return message

        async def send_response(message: Message) -> None:
            nonlocal early
            if message["type"] == "http.response.start" and unread:
                early = True
                MutableHeaders(scope=message)["Connection"] = "close"
            if not early or message["type"] == "http.response.start" or message.get("more_body"):
                await send(message)
                return
            await send({**message, "more_body": True})
            try:
                async with asyncio.timeout(DISCARD_TIMEOUT):
                    while unread:
                        await receive_body()
            except TimeoutError:
                pass
            await send({"type": "http.response.body", "body": b"", "more_body": False})

        await self._app(scope, receive_body, send_response)


class RejectMalformedRequestMiddleware:
    """Rejects requests that a proxy may interpret differently, before they are routed.

    These are requests with two body lengths, with a target longer than `MAX_TARGET_SIZE`, or with
    a path that contains control characters or bytes above ASCII.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        rejection = _rejection(scope) if scope["type"] == "http" else None
        await (rejection or self._app)(scope, receive, send)


def _rejection(scope: Scope) -> Response | None:
    headers = Headers(scope=scope)
    query = scope["query_string"]
    if len(scope["raw_path"]) + len(query) + bool(query) > MAX_TARGET_SIZE:
        return problem("uri_too_long", _TOO_LONG)
    path = scope["path"] + (scope[SCOPE_KEY] or "")
    if not (path.isascii() and path.isprintable()):
        return problem("malformed_request", _NOT_PRINTABLE)
    if "content-length" in headers and "transfer-encoding" in headers:
        return problem("malformed_header", _AMBIGUOUS)
    return None


def _has_body(scope: Scope) -> bool:
    headers = Headers(scope=scope)
    return headers.get("content-length", "0") != "0" or "transfer-encoding" in headers
