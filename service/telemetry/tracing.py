"""Distributed traces: which trace a request belongs to, and the spans of its work.

`http.access_log` reads `traceparent` and starts the span of each request. Inside it, `s3.calls`
starts one for each call to S3, and `bundles.access` one for each bundle that is read to check a
proof. `service.app` opens the tracer. Without a tracer there are no spans, and nothing of
OpenTelemetry is imported: only `otlp` uses it.
"""

import os
import re
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Literal, Protocol

from service.errors import HistoryError, SettingsError

Attributes = Mapping[str, str | int | float | None]
"""Attributes of a span, with the names of OpenTelemetry's conventions. `None` is left out."""

_TRACEPARENT = re.compile("([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")


_NOT_INSTALLED = (
    "OTEL_EXPORTER_OTLP_ENDPOINT: needs the OpenTelemetry SDK: run pip install "
    "'message-history-server[otel]', or set OTEL_SDK_DISABLED=true"
)


class Span(Protocol):
    """One operation, from its creation until `end`. `error` is a code that says what failed."""

    @property
    def trace_id(self) -> str: ...
    def child(
        self, kind: Literal["client", "internal"], name: str, attributes: Attributes
    ) -> "Span": ...
    def end(self, attributes: Attributes, error: str | None = None) -> None: ...


@dataclass(frozen=True, slots=True)
class RemoteParent:
    """The span of the client, or of a proxy, that sent the request."""

    trace_id: str
    span_id: str
    sampled: bool


class Tracer(Protocol):
    """Starts the span of each request, and sends all spans that have ended to a collector."""

    def start(self, name: str, parent: RemoteParent | None, attributes: Attributes) -> Span: ...
    def close(self) -> None:
        """Send what is left. Blocks, but only for a short time."""


def parse_traceparent(values: Sequence[str]) -> RemoteParent | None:
    """Parse the `traceparent` headers of a request (W3C Trace Context, section 3.2).

    Returns `None` unless there is exactly one, and it is valid. Versions after 00 may have more
    fields at the end, which are ignored.
    """
    match = _TRACEPARENT.fullmatch(values[0]) if len(values) == 1 else None
    if match is None or match[1] == "ff" or (match[1] == "00" and match[5] is not None):
        return None
    if not match[2].strip("0") or not match[3].strip("0"):
        return None
    return RemoteParent(match[2], match[3], sampled=bool(int(match[4], 16) & 1))


_current: ContextVar[Span | None] = ContextVar("span", default=None)


def enter(span: Span | None) -> None:
    """Make this the parent of the spans of the current task, and of the tasks that it creates.

    With `None`, they have no spans.
    """
    _current.set(span)


def start_child(
    kind: Literal["client", "internal"], name: str, attributes: Attributes
) -> Span | None:
    """Start a span inside the current one, if there is one. The caller ends it."""
    span = _current.get()
    return None if span is None else span.child(kind, name, attributes)


class inside:  # noqa: N801 - a context manager that is used like a function
    """A span for the work in this context, and the parent of the spans that start in it."""

    __slots__ = ("_name", "_parent", "_span")

    def __init__(self, name: str) -> None:
        self._name = name

    def __enter__(self) -> None:
        self._parent = _current.get()
        self._span = start_child("internal", self._name, {})
        _current.set(self._span)

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        _current.set(self._parent)
        if self._span is not None:
            code = error.code if isinstance(error, HistoryError) else type(error).__name__
            self._span.end({}, None if error is None else code)


def open_tracer() -> Tracer | None:
    """Open the tracer if OpenTelemetry's variables ask for one, or return `None`.

    The SDK reads all of these variables itself. Raises `SettingsError` if it is not installed, or
    if it could not export anything with these variables.
    """
    name, endpoint = _variable("ENDPOINT")
    if (
        not endpoint
        or os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
        or os.environ.get("OTEL_TRACES_EXPORTER") == "none"
    ):
        return None
    if not endpoint.startswith(("http://", "https://")):
        raise SettingsError([f"{name}: should be a URL such as http://collector:4318"])
    name, protocol = _variable("PROTOCOL")
    if protocol not in {"", "http/protobuf"}:
        raise SettingsError([f"{name}: should be http/protobuf; it is {protocol!r}"])
    try:
        from service.telemetry.otlp import OtlpTracer  # noqa: PLC0415 - an extra, for traces only
    except ImportError as error:
        raise SettingsError([_NOT_INSTALLED]) from error
    try:
        return OtlpTracer()
    except ValueError as error:
        raise SettingsError([f"OpenTelemetry's settings: {error}"]) from error


def _variable(name: str) -> tuple[str, str]:
    """Return the name and the value of a variable, of which there is one for traces only."""
    names = f"OTEL_EXPORTER_OTLP_TRACES_{name}", f"OTEL_EXPORTER_OTLP_{name}"
    used = names[0] if os.environ.get(names[0]) else names[1]
    return used, os.environ.get(used, "")
