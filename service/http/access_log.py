"""The access log: middleware that logs, counts and times each request to the application.

It also chooses the request's id, and returns it as `X-Request-Id`. `middleware.wrap` installs it.
Requests whose head cannot be parsed never get here: `server.connection` logs those itself.
"""

import logging
import re
import time
from collections.abc import Sequence
from http import HTTPStatus
from uuid import UUID, uuid4

from starlette.datastructures import Headers, MutableHeaders
from starlette.routing import BaseRoute, Match, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.telemetry import timing
from service.telemetry.metrics import Metrics
from service.telemetry.timing import RequestTiming

METHODS = ("GET", "HEAD", "POST", "DELETE", "OPTIONS")
"""The methods of the API. All others are logged and counted as `other`."""

_ID = re.compile("([0-9A-Fa-f-]{8})[0-9A-Fa-f-]{24,}")
"""A bundle's id, or text that may contain one. Matches in linear time."""

_FILES = "/files/"

_log = logging.getLogger(__name__)


class AccessLogMiddleware:
    """Logs and counts each request. The request id comes from the client, or is created here.

    Bundle ids are shortened: with HISTORY_REQUIRE_HMAC=false, the id alone can open a bundle.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, routes: Sequence[BaseRoute]) -> None:
        self._app = app
        self._metrics = metrics
        self._routes = routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = _Exchange(scope, receive, send, timing.start(_request_id(scope)))
        try:
            await self._app(scope, exchange.receive, exchange.send)
        finally:
            self._record(scope, exchange)

    def _record(self, scope: Scope, exchange: "_Exchange") -> None:
        method = scope["method"] if scope["method"] in METHODS else "other"
        route, seconds = self._route(scope), time.monotonic() - exchange.started_at
        self._metrics.requests.labels(method, route, exchange.status).observe(seconds)
        self._metrics.received.inc(exchange.received)
        self._metrics.sent.inc(exchange.sent)
        if not exchange.complete:
            self._metrics.cut.labels(route).inc()
        fields = {
            "request_id": exchange.timing.request_id,
            "method": method,
            "route": route,
            "bundle": exchange.bundle,
            "status": exchange.status,
            "complete": exchange.complete,
            "bytes_received": exchange.received,
            "bytes_sent": exchange.sent,
            "seconds": round(seconds, 4),
            "seconds_client": round(exchange.timing.client, 4),
            "seconds_budget": round(exchange.timing.budget, 4),
            "seconds_s3": round(exchange.timing.s3, 4),
        }
        _log.info(
            "%s %s %d%s %.3fs",
            *(method, _shorten_path(scope["path"]), exchange.status),
            *("" if exchange.complete else " cut", seconds),
            extra={"fields": fields},
        )

    def _route(self, scope: Scope) -> str:
        """Return the route's path template: clients must not choose labels and log fields."""
        for route in self._routes:
            if isinstance(route, Route) and route.matches(scope)[0] is not Match.NONE:
                return route.path
        return "other"


class _Exchange:
    """One request and its response: bytes both ways, the status, and whether it is complete."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, timing: RequestTiming) -> None:
        self.timing = timing
        self.started_at = time.monotonic()
        self.status = HTTPStatus.INTERNAL_SERVER_ERROR.value
        self.bundle = _short_id(scope["path"])
        self.received = self.sent = 0
        self.complete = False
        self._has_body = scope["method"] != "HEAD"
        self._receive = receive
        self._send = send

    async def receive(self) -> Message:
        message = await self._receive()
        self.received += len(message.get("body", b""))
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            headers["X-Request-Id"] = self.timing.request_id
            self.status = message["status"]
            self.bundle = self.bundle or _short_id(headers.get("Location", ""))
        else:
            self.complete = not message.get("more_body", False)
            self.sent += len(message.get("body", b"")) * self._has_body
        await self._send(message)


def _request_id(scope: Scope) -> str:
    """Return `X-Request-Id` of the client or a proxy if it is safe to log, or else a new id."""
    given = Headers(scope=scope).get("X-Request-Id", "")
    return given if re.fullmatch(r"[A-Za-z0-9._:;=+/@-]{1,128}", given) else uuid4().hex


def _short_id(path: str) -> str | None:
    """Return the first 8 digits of the id in `/files/{id}`, in any spelling that `UUID` accepts."""
    if not path.startswith(_FILES):
        return None
    try:
        return UUID(path.removeprefix(_FILES)).hex[:8]
    except ValueError:
        return None


def _shorten_path(path: str) -> str:
    """Return a path that is safe to log: no control characters, at most 8 digits of an id."""
    if short_id := _short_id(path):
        return f"{_FILES}{short_id}…"
    printable = path.encode("unicode_escape").decode()
    return _ID.sub(r"\1…", printable)[:80]
