"""The access log: middleware that logs, counts, times and traces each request to the application.

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

from service.http.auth.token_path import hide_token
from service.telemetry import timing, tracing
from service.telemetry.metrics import Metrics
from service.telemetry.timing import RequestTiming
from service.telemetry.tracing import RemoteParent, Span, Tracer

METHODS = ("GET", "HEAD", "POST", "DELETE", "OPTIONS")
"""The methods of the API. All others are logged and counted as `other`."""

_ID = re.compile("([0-9A-Fa-f-]{8})[0-9A-Fa-f-]{24,}")
"""A bundle's id, or text that may contain one. Matches in linear time."""

_HOST = re.compile(r"([A-Za-z0-9.-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(?::([0-9]{1,5}))?")
"""The `Host` of a request: a name or an address, and perhaps a port."""

_FILES = "/files/"

UNTRACED = ("/healthz", "/readyz", "/metrics")
"""Routes without spans: machines request them every few seconds."""

CALLER = "caller"
"""Where `routes` puts who uploads in the ASGI scope, shortened for the log."""

_log = logging.getLogger(__name__)


class AccessLogMiddleware:
    """Logs and counts each request. The request id comes from the client, or is created here.

    Bundle ids are shortened: with HISTORY_REQUIRE_HMAC=false, the id alone can open a bundle.
    """

    def __init__(
        self, app: ASGIApp, metrics: Metrics, tracer: Tracer | None, routes: Sequence[BaseRoute]
    ) -> None:
        self._app = app
        self._metrics = metrics
        self._tracer = tracer
        self._routes = routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        exchange = _Exchange(scope, receive, send, timing.start(_request_id(headers)))
        method = scope["method"] if scope["method"] in METHODS else "other"
        route = self._route(scope)
        parent = tracing.parse_traceparent(headers.getlist("traceparent"))
        span = None
        if self._tracer is not None and route not in UNTRACED:
            span = _start_span(self._tracer, parent, scope, method, route)
            tracing.enter(span)
        try:
            await self._app(scope, exchange.receive, exchange.send)
        finally:
            self._record(scope, exchange, method, route, span or parent)
            if span is not None:
                exchange.end_span(span)

    def _record(
        self,
        scope: Scope,
        exchange: "_Exchange",
        method: str,
        route: str,
        trace: Span | RemoteParent | None,
    ) -> None:
        seconds = time.monotonic() - exchange.started_at
        self._metrics.requests.labels(method, route, exchange.status).observe(seconds)
        self._metrics.received.inc(exchange.received)
        self._metrics.sent.inc(exchange.sent)
        if not exchange.complete:
            self._metrics.cut.labels(route).inc()
        fields = {
            "request_id": exchange.timing.request_id,
            "trace_id": None if trace is None else trace.trace_id,
            "method": method,
            "route": route,
            "bundle": exchange.bundle,
            "caller": scope.get(CALLER),
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

    def end_span(self, span: Span) -> None:
        error = str(self.status) if self.status >= HTTPStatus.INTERNAL_SERVER_ERROR else None
        if error is None and not self.complete:
            error = "incomplete_response"
        attributes = {
            "http.response.status_code": self.status,
            "http.request.body.size": self.received,
            "http.response.body.size": self.sent,
            "history.bundle": self.bundle,
            "history.seconds_client": round(self.timing.client, 4),
            "history.seconds_budget": round(self.timing.budget, 4),
            "history.seconds_s3": round(self.timing.s3, 4),
        }
        span.end(attributes, error)


def _start_span(
    tracer: Tracer, parent: RemoteParent | None, scope: Scope, method: str, route: str
) -> Span:
    """Start the span of a request, with the attributes of OpenTelemetry's HTTP conventions.

    It has neither the path, which may contain a bundle's id or a token, nor the query.
    """
    headers = Headers(scope=scope)
    host = _HOST.fullmatch(headers.get("Host", ""))
    https = headers.get("X-Forwarded-Proto") == "https"
    known_method, known_route = method != "other", route != "other"
    attributes = {
        "http.request.method": method if known_method else "_OTHER",
        "http.route": route if known_route else None,
        "url.scheme": "https" if https else scope["scheme"],
        "server.address": host and host[1].strip("[]"),
        "server.port": int(host[2]) if host and host[2] else None,
        "network.protocol.version": scope["http_version"],
    }
    name = method if known_method else "HTTP"
    return tracer.start(f"{name} {route}" if known_route else name, parent, attributes)


def _request_id(headers: Headers) -> str:
    """Return `X-Request-Id` of the client or a proxy if it is safe to log, or else a new id."""
    given = headers.get("X-Request-Id", "")
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
    return _ID.sub(r"\1…", hide_token(printable))[:80]
