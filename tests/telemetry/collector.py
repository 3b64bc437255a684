"""A collector: an HTTP server that accepts spans with OTLP, and keeps them.

Its traces are found by the `trace_id` in the access log.
"""

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1 import trace_pb2

from tests.support.access_log import logged_fields
from tests.support.key_leaks import LEAK_DETECTOR
from tests.support.polling import wait_until


@dataclass(frozen=True)
class ReceivedSpan:
    """A span as it was exported. Ids are hex; `parent_id` is empty if there is no parent."""

    name: str
    kind: str
    trace_id: str
    span_id: str
    parent_id: str
    start: int
    end: int
    is_error: bool
    attributes: Mapping[str, Any]


@dataclass
class Collector:
    """What was received, and what the next export gets."""

    url: str = ""
    status: int = 200
    hang: threading.Event = field(default_factory=threading.Event)  # until set, if `hanging`
    hanging: bool = False
    exports: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)
    resource: Mapping[str, Any] = field(default_factory=dict)
    text: str = ""
    spans: list[ReceivedSpan] = field(default_factory=list)

    def trace(self, trace_id: str, count: int) -> list[ReceivedSpan]:
        """Wait until a trace has this number of spans, and return them in the order of starting."""
        wait_until(lambda: len(self._of(trace_id)) >= count)
        time.sleep(0.1)  # For spans that should not be there.
        spans = self._of(trace_id)
        assert len(spans) == count, [span.name for span in spans]
        return sorted(spans, key=lambda span: span.start)

    def _of(self, trace_id: str) -> list[ReceivedSpan]:
        return [span for span in self.spans if span.trace_id == trace_id]

    def receive(self, body: bytes, headers: Mapping[str, str]) -> None:
        request = ExportTraceServiceRequest.FromString(body)
        self.text += str(request)
        LEAK_DETECTOR.search("spans", str(request))
        self.headers = headers
        for resource_spans in request.resource_spans:
            self.resource = _values(resource_spans.resource.attributes)
            for scope_spans in resource_spans.scope_spans:
                self.spans += map(_received, scope_spans.spans)


def _received(span: trace_pb2.Span) -> ReceivedSpan:
    return ReceivedSpan(
        name=span.name,
        kind=trace_pb2.Span.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_"),
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex(),
        start=span.start_time_unix_nano,
        end=span.end_time_unix_nano,
        is_error=span.status.code == trace_pb2.Status.STATUS_CODE_ERROR,
        attributes=_values(span.attributes),
    )


def _values(attributes: Any) -> dict[str, Any]:
    """Return attributes with their values, which have one of several types."""
    return {
        attribute.key: getattr(attribute.value, attribute.value.WhichOneof("value"))
        for attribute in attributes
    }


@contextmanager
def running() -> Iterator[Collector]:
    """Run a collector on a free port."""
    collector = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            collector.exports += 1
            if collector.hanging:
                collector.hang.wait(60)
            if self.path != "/v1/traces":
                self.send_error(404)
                return
            if collector.status == 200:
                collector.receive(body, dict(self.headers))
            self.send_response(collector.status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Log nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        collector.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield collector
        finally:
            collector.hang.set()
            server.shutdown()
            thread.join(10)


def trace_id_of(caplog: pytest.LogCaptureFixture, response: httpx.Response) -> str:
    trace_id: str = logged_fields(caplog, response.headers["X-Request-Id"])["trace_id"]
    return trace_id


def tree(spans: list[ReceivedSpan], parent_id: str = "") -> list[Any]:
    """Return the names of spans in the order of starting, each with the tree of its children."""
    return [
        (span.name, children) if (children := tree(spans, span.span_id)) else span.name
        for span in spans
        if span.parent_id == parent_id
    ]
