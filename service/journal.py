"""What is kept of every request: one line in the log, one observation in the metrics."""

import logging
import re
import time
from collections.abc import Sequence
from http import HTTPStatus
from uuid import UUID, uuid4

from starlette.datastructures import Headers, MutableHeaders
from starlette.routing import BaseRoute, Match, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service import trace
from service.metrics import Metrics
from service.trace import Trace

METHODS = ("GET", "HEAD", "POST", "DELETE", "OPTIONS")
"""Those that the contract knows; others are counted as one."""

_ID = re.compile("([0-9A-Fa-f-]{8})[0-9A-Fa-f-]{24,}")
"""A bundle's id, or what may hold one. It matches in linear time."""

_FILES = "/files/"

_log = logging.getLogger(__name__)


class Journal:
    """One line and one observation a request, whose id is taken from its client or made.

    Bundle ids are shortened: where no HMAC guards it, the id opens the bundle.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, routes: Sequence[BaseRoute]) -> None:
        self._app = app
        self._metrics = metrics
        self._routes = routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        passed = _Passed(scope, receive, send, trace.begin(_request_id(scope)))
        try:
            await self._app(scope, passed.receive, passed.send)
        finally:
            self._note(scope, passed)

    def _note(self, scope: Scope, passed: "_Passed") -> None:
        method = scope["method"] if scope["method"] in METHODS else "other"
        route, seconds = self._route(scope), time.monotonic() - passed.began
        self._metrics.requests.labels(method, route, passed.status).observe(seconds)
        self._metrics.received.inc(passed.received)
        self._metrics.sent.inc(passed.sent)
        if not passed.complete:
            self._metrics.cut.labels(route).inc()
        fields = {
            "request_id": passed.trace.request_id,
            "method": method,
            "route": route,
            "bundle": passed.bundle,
            "status": passed.status,
            "complete": passed.complete,
            "bytes_received": passed.received,
            "bytes_sent": passed.sent,
            "seconds": round(seconds, 4),
            "seconds_client": round(passed.trace.client, 4),
            "seconds_budget": round(passed.trace.budget, 4),
            "seconds_s3": round(passed.trace.s3, 4),
        }
        _log.info(
            "%s %s %d%s %.3fs",
            *(method, _shortened(scope["path"]), passed.status),
            *("" if passed.complete else " cut", seconds),
            extra={"fields": fields},
        )

    def _route(self, scope: Scope) -> str:
        """The template that the path matches: labels and logs are not the client's to fill."""
        for route in self._routes:
            if isinstance(route, Route) and route.matches(scope)[0] is not Match.NONE:
                return route.path
        return "other"


class _Passed:
    """One exchange as it passes by: how much, how far, and with what status."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, trace: Trace) -> None:
        self.trace = trace
        self.began = time.monotonic()
        self.status = HTTPStatus.INTERNAL_SERVER_ERROR.value
        self.bundle = _bundle(scope["path"])
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
            headers["X-Request-Id"] = self.trace.request_id
            self.status = message["status"]
            self.bundle = self.bundle or _bundle(headers.get("Location", ""))
        else:
            self.complete = not message.get("more_body", False)
            self.sent += len(message.get("body", b"")) * self._has_body
        await self._send(message)


def _request_id(scope: Scope) -> str:
    """The request's id as the client or a proxy gave it, if it is fit for a log; else a new one."""
    given = Headers(scope=scope).get("X-Request-Id", "")
    return given if re.fullmatch(r"[A-Za-z0-9._:;=+/@-]{1,128}", given) else uuid4().hex


def _bundle(path: str) -> str | None:
    """Return the first 8 digits of the id in `/files/{id}`, in whatever spelling `UUID` accepts."""
    if not path.startswith(_FILES):
        return None
    try:
        return UUID(path.removeprefix(_FILES)).hex[:8]
    except ValueError:
        return None


def _shortened(path: str) -> str:
    """Return a path fit for a log: no control characters, at most 8 digits of an id."""
    if bundle := _bundle(path):
        return f"{_FILES}{bundle}…"
    printable = path.encode("unicode_escape").decode()
    return _ID.sub(r"\1…", printable)[:80]
