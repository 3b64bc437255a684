"""docs/tracing.md shows the traces that a collector receives."""

import re

import pytest

from service.telemetry.otlp import FLUSH_TIMEOUT
from tests.support.clients.signing import sign
from tests.support.repository import ROOT
from tests.support.services.thread import Service
from tests.telemetry.collector import Collector, ReceivedSpan, trace_id_of

PAGE = (ROOT / "docs" / "tracing.md").read_text()

pytestmark = pytest.mark.usefixtures("_info_logged")


def table(spans: list[ReceivedSpan]) -> str:
    """Return the table of a trace, with times in milliseconds from the start of the request."""
    rows = ["| Span | Kind | Starts at | Takes |", "|---|---|---|---|"]
    parents = {span.span_id: span.parent_id for span in spans}
    for span in spans:
        depth, parent = 0, span.parent_id
        while parent in parents:
            depth, parent = depth + 1, parents[parent]
        start, seconds = span.start - spans[0].start, span.end - span.start
        times = f"{start / 1e6:.1f} ms | {seconds / 1e6:.1f} ms"
        rows.append(f"| {'→ ' * depth}`{span.name}` | {span.kind.lower()} | {times} |")
    return "\n".join(rows)


def without_times(tables: str) -> str:
    return re.sub(r"[0-9.]+ ms", "", tables)


def test_page_shows_the_traces_of_an_upload_and_of_a_first_download(
    traced: Service, collector: Collector, caplog: pytest.LogCaptureFixture
) -> None:
    """After a change, run this test with `-s` and copy the tables that it prints."""
    bundle = bytes(1 << 20)
    proof = sign("the key of an example", bundle)
    headers = {"X-HMAC": proof["X-HMAC"]}
    uploaded = traced.http.post("/upload", content=bundle, headers=headers)
    upload = collector.trace(trace_id_of(caplog, uploaded), 2)
    downloaded = traced.fetch(uploaded.text, proof)
    download = collector.trace(trace_id_of(caplog, downloaded), 5)
    tables = f"{table(upload)}\n\n{table(download)}\n"
    print(tables)
    assert without_times(tables) in without_times(PAGE)

    names = {name for span in (*upload, *download) for name in span.attributes}
    cells = re.findall(r"^\| (`[a-z].*?) \|", PAGE, re.MULTILINE)
    documented = set(re.findall("`([a-z][a-z0-9_.]+)`", " ".join(cells)))
    assert documented == names | {"error.type"}


def test_page_names_the_time_for_the_last_export() -> None:
    assert f"may take {FLUSH_TIMEOUT:.0f} s" in PAGE
