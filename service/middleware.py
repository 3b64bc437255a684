"""What wraps the whole application, in pure ASGI: paths, request log, CORS, early answers."""

import asyncio
import re
from collections.abc import Sequence
from urllib.parse import unquote_to_bytes

from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import Draining
from service.journal import METHODS, Journal
from service.metrics import Metrics
from service.pace import LINGER
from service.problems import problem
from service.readiness import Drain

REQUEST_HEADERS = (
    *("Content-Type", "X-HMAC", "X-SIGNING-KEY", "X-TTL", "Content-Digest", "Repr-Digest"),
    *("Range", "If-Match", "If-Range", "X-Request-Id"),
)
RESPONSE_HEADERS = (
    *("Location", "Sunset", "ETag", "Last-Modified", "Repr-Digest", "Accept-Ranges"),
    *("Content-Range", "Content-Length", "Content-Disposition", "Retry-After", "Allow"),
    *("WWW-Authenticate", "X-Request-Id"),
)

MAX_TARGET = 8 * 1024
"""Bytes of a request target: path and query, and scheme and host where the client sends them."""

AMBIGUOUS = "Send Content-Length or Transfer-Encoding, but not both (RFC 9112, section 6.1)."
TOO_LONG = f"Send a request target of at most {MAX_TARGET} bytes."
NOT_PRINTABLE = "Send a path that has only printable ASCII characters when it is decoded."

_ORIGIN = re.compile(rb"https?://[^/]*", re.IGNORECASE)
_SLASHES = re.compile("/{2,}")


def wrap(app: Starlette, metrics: Metrics, drain: Drain, *, cors_origins: Sequence[str]) -> ASGIApp:
    """Put everything around `app`; CORS is outside of what makes errors, so covers them too.

    It answers preflights itself, which may have a body as well.
    """
    cors = Cors(
        RejectMalformedRequestMiddleware(app),
        allow_origins=cors_origins,
        allow_methods=METHODS,
        allow_headers=REQUEST_HEADERS,
        expose_headers=RESPONSE_HEADERS,
        max_age=3600,
    )
    return NormalizePathMiddleware(Journal(Farewell(Linger(cors), drain), metrics, app.routes))


class Cors(CORSMiddleware):
    """Answer every preflight with 200: what it does not grant, the browser refuses by itself."""

    def preflight_response(self, request_headers: Headers) -> Response:
        response = super().preflight_response(request_headers)
        response.status_code = 200
        return response


class NormalizePathMiddleware:
    """Accept `//upload`, `/upload/`, `//files/ID/` and the absolute form of a URL.

    It does not redirect: a client that streams its body would follow a 307 with an empty one.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope = {**scope, "path": _normalized(scope["raw_path"], scope["path"])}
        await self._app(scope, receive, send)


def _normalized(raw_path: bytes, decoded: str) -> str:
    """Return the decoded path with single slashes and none at its end.

    `decoded` is the whole of `raw_path` as the server decoded it: doing that again takes a quarter
    of the CPU time of a request whose path has 2,700 escapes.

    The origin goes before decoding (RFC 9112, section 3.2.2): `http://h%2fmetrics%2f/` names the
    path `/`, for this service as for every proxy in front of it. Bytes that are no ASCII become
    other characters that are none.
    """
    origin = _ORIGIN.match(raw_path)
    path = unquote_to_bytes(raw_path[origin.end() :]).decode("latin-1") if origin else decoded
    return _SLASHES.sub("/", path).rstrip("/") or "/"


class Linger:
    """Deliver an answer that is given before the request's body has been read to its end.

    Closing a socket with unread data makes the kernel reset it, and the client may lose the answer.
    So the answer says `Connection: close` and is sent whole; then the rest of the body is read and
    dropped for at most `LINGER` seconds before the response, and with it the connection, ends
    (RFC 9112, section 9.6).
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

        async def send_answer(message: Message) -> None:
            nonlocal early
            if message["type"] == "http.response.start" and unread:
                early = True
                MutableHeaders(scope=message)["Connection"] = "close"
            if not early or message["type"] == "http.response.start" or message.get("more_body"):
                await send(message)
                return
            await send({**message, "more_body": True})
            try:
                async with asyncio.timeout(LINGER):
                    while unread:
                        await receive_body()
            except TimeoutError:
                pass
            await send({"type": "http.response.body", "body": b"", "more_body": False})

        await self._app(scope, receive_body, send_answer)


class RejectMalformedRequestMiddleware:
    """Refuse requests that a proxy may read differently, before anything routes them.

    Two ways to tell a body's length, a target longer than `MAX_TARGET` bytes, or a path with
    control characters or bytes above ASCII.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = _refusal(scope) if scope["type"] == "http" else None
        await (refusal or self._app)(scope, receive, send)


def _refusal(scope: Scope) -> Response | None:
    headers = Headers(scope=scope)
    query = scope["query_string"]
    if len(scope["raw_path"]) + len(query) + bool(query) > MAX_TARGET:
        return problem("uri_too_long", TOO_LONG)
    if not (scope["path"].isascii() and scope["path"].isprintable()):
        return problem("malformed_request", NOT_PRINTABLE)
    if "content-length" in headers and "transfer-encoding" in headers:
        return problem("malformed_header", AMBIGUOUS)
    return None


def _has_body(scope: Scope) -> bool:
    headers = Headers(scope=scope)
    return headers.get("content-length", "0") != "0" or "transfer-encoding" in headers


class Farewell:
    """While the process drains, end connections with their answers, and say so to who is cut off.

    The server cancels what runs longer than it may.
    """

    def __init__(self, app: ASGIApp, drain: Drain) -> None:
        self._app = app
        self._drain = drain

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answered = False

        async def send_last(message: Message) -> None:
            nonlocal answered
            answered = True
            if message["type"] == "http.response.start" and self._drain.begun:
                MutableHeaders(scope=message)["Connection"] = "close"
            await send(message)

        try:
            await self._app(scope, receive, send_last)
        except asyncio.CancelledError:
            if not self._drain.begun:
                raise
            if not answered:
                await problem(Draining.code, Draining.sentence)(scope, receive, send_last)
