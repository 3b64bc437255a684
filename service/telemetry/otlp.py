"""Exports spans with OTLP. The only module that needs the extra `otel`; `tracing` imports it.

The SDK collects spans that have ended, and sends them from a thread of its own. If the collector is
too slow, the SDK drops spans.
"""

import logging
import threading
from collections.abc import Sequence
from typing import Literal
from uuid import uuid4

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExportResult
from opentelemetry.trace import (
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    StatusCode,
    TraceFlags,
    Tracer,
    format_trace_id,
    set_span_in_context,
)

from service import __version__
from service.telemetry.tracing import Attributes, RemoteParent

FLUSH_TIMEOUT = 3.0
"""Seconds that the last export may take at the end of a shutdown."""

_SERVICE = "message-history-server"

_INVALID_HEADERS = "OTEL_EXPORTER_OTLP_HEADERS: should be name=value pairs, separated by commas"

_log = logging.getLogger(__name__)


class OtlpTracer:
    """Implements `tracing.Tracer`. Raises `ValueError` if the SDK does not accept a variable."""

    def __init__(self) -> None:
        logging.getLogger("opentelemetry.util.re").addFilter(_hide_headers)
        logging.getLogger(OTLPSpanExporter.__module__).addFilter(_CAUSE)
        defaults = {
            "service.name": _SERVICE,
            "service.version": __version__,
            "service.instance.id": str(uuid4()),
        }
        self._exporter = _Exporter()
        self._provider = TracerProvider(
            resource=Resource.create(defaults).merge(OTELResourceDetector().detect()),
            shutdown_on_exit=False,
        )
        self._provider.add_span_processor(BatchSpanProcessor(self._exporter))
        self._tracer = self._provider.get_tracer(_SERVICE, __version__)

    def start(self, name: str, parent: RemoteParent | None, attributes: Attributes) -> "_OtlpSpan":
        context = Context()
        if parent is not None:
            span_context = SpanContext(
                int(parent.trace_id, 16),
                int(parent.span_id, 16),
                is_remote=True,
                trace_flags=TraceFlags(parent.sampled),
            )
            context = set_span_in_context(NonRecordingSpan(span_context), context)
        span = self._tracer.start_span(name, context, SpanKind.SERVER, _present(attributes))
        return _OtlpSpan(self._tracer, span)

    def close(self) -> None:
        closing = threading.Thread(target=self._provider.shutdown, daemon=True)
        closing.start()
        closing.join(FLUSH_TIMEOUT)
        if closing.is_alive():
            _log.warning("shutdown: the last traces were not exported in time")
            self._exporter.shutdown()  # type: ignore[no-untyped-call]


class _OtlpSpan:
    """Implements `tracing.Span`. The text of exceptions is not recorded: it may hold secrets."""

    def __init__(self, tracer: Tracer, span: Span) -> None:
        self._tracer = tracer
        self._span = span

    @property
    def trace_id(self) -> str:
        return format_trace_id(self._span.get_span_context().trace_id)

    def child(
        self, kind: Literal["client", "internal"], name: str, attributes: Attributes
    ) -> "_OtlpSpan":
        context = set_span_in_context(self._span, Context())
        span = self._tracer.start_span(name, context, SpanKind[kind.upper()], _present(attributes))
        return _OtlpSpan(self._tracer, span)

    def end(self, attributes: Attributes, error: str | None = None) -> None:
        self._span.set_attributes(_present({**attributes, "error.type": error}))
        if error is not None:
            self._span.set_status(StatusCode.ERROR)
        self._span.end()


class _FirstMessage(logging.Filter):
    """Drops the log of the SDK's exporter, which has a line for each attempt, but keeps a cause."""

    message = ""

    def filter(self, record: logging.LogRecord) -> bool:
        self.message = self.message or record.getMessage()
        return False


_CAUSE = _FirstMessage()


class _Exporter(OTLPSpanExporter):
    """Logs a failure once, until an export succeeds again."""

    _failing = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        _CAUSE.message = ""
        result = super().export(spans)
        failing = result is not SpanExportResult.SUCCESS
        if failing and not self._failing:
            _log.warning(
                "traces cannot be exported; check OTEL_EXPORTER_OTLP_ENDPOINT, "
                "OTEL_EXPORTER_OTLP_HEADERS and the collector; the SDK says: %s",
                _CAUSE.message,
            )
        elif self._failing and not failing:
            _log.info("traces are exported again")
        self._failing = failing
        return result


def _hide_headers(record: logging.LogRecord) -> bool:
    """Replace the SDK's warning about a header: it quotes the header, which may be a secret."""
    record.msg, record.args = _INVALID_HEADERS, ()
    return True


def _present(attributes: Attributes) -> dict[str, str | int | float]:
    return {name: value for name, value in attributes.items() if value is not None}
