"""What wraps the whole application, in pure ASGI: paths, request log, CORS, early answers."""

import asyncio
import re
from collections.abc import Sequence

from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import Draining
from service.journal import METHODS, Journal
from service.metrics import Metrics
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

AMBIGUOUS = "Send Content-Length or Transfer-Encoding, but not both (RFC 9112, section 6.1)."

LINGER = 2.0
"""Seconds for which a body is read and dropped after an answer that came before its end."""


def wrap(app: Starlette, metrics: Metrics, drain: Drain, *, cors_origins: Sequence[str]) -> ASGIApp:
    """Put everything around `app`; CORS is outside of what makes errors, so covers them too.

    It answers preflights itself, which may have a body as well.
    """
    cors = Cors(
        Unambiguous(app),
        allow_origins=cors_origins,
        allow_methods=METHODS,
        allow_headers=REQUEST_HEADERS,
        expose_headers=RESPONSE_HEADERS,
        max_age=3600,
    )
    return Paths(Journal(Farewell(Linger(cors), drain), metrics, app.routes))


class Cors(CORSMiddleware):
    """Answer every preflight with 200: what it does not grant, the browser refuses by itself."""

    def preflight_response(self, request_headers: Headers) -> Response:
        response = super().preflight_response(request_headers)
        response.status_code = 200
        return response


class Paths:
    """Take `//upload`, `/upload/`, `//files/ID/` and a whole URL for what they mean.

    Without a redirect: a client that streams its body would follow a 307 with an empty one.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            path = re.sub("^https?://[^/]*", "", scope["path"])  # RFC 9112, section 3.2.2
            path = re.sub("/{2,}", "/", path).rstrip("/") or "/"
            scope = {**scope, "path": path}
        await self._app(scope, receive, send)


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


class Unambiguous:
    """Refuse a request that a proxy may have seen end elsewhere than this server does."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        ambiguous = scope["type"] == "http" and _ambiguous(scope)
        app = problem("malformed_header", AMBIGUOUS) if ambiguous else self._app
        await app(scope, receive, send)


def _ambiguous(scope: Scope) -> bool:
    headers = Headers(scope=scope)
    return "content-length" in headers and "transfer-encoding" in headers


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
