"""Traces: `traceparent` in the log, and the spans that a collector receives."""

import re

import pytest

from service.http import access_log
from service.telemetry.tracing import RemoteParent, parse_traceparent
from tests.support.access_log import logged_fields
from tests.support.clients.signing import sign
from tests.support.clients.sockets import begin_upload, raw_request
from tests.support.polling import wait_until
from tests.support.proxy import Fault, Proxy, Respond
from tests.support.services.thread import SMALL_PART, Service
from tests.telemetry.collector import Collector, trace_id_of, tree

KEY = "the key of a traced bundle"
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SAMPLED = f"00-{TRACE}-{PARENT}-01"


pytestmark = pytest.mark.usefixtures("_info_logged")

TRACEPARENTS = [
    ([SAMPLED], True),
    ([f"00-{TRACE}-{PARENT}-00"], False),
    ([f"00-{TRACE}-{PARENT}-03"], True),
    ([f"01-{TRACE}-{PARENT}-01-what-later-versions-add"], True),
    ([f"00-{TRACE}-{PARENT}-01-extra"], None),
    ([f"ff-{TRACE}-{PARENT}-01"], None),
    ([f"00-{'0' * 32}-{PARENT}-01"], None),
    ([f"00-{TRACE}-{'0' * 16}-01"], None),
    ([f"00-{TRACE.upper()}-{PARENT}-01"], None),
    ([f"00-{TRACE[1:]}-{PARENT}-01"], None),
    ([f"00-{TRACE}-{PARENT}-1"], None),
    ([f"00-{TRACE}-{PARENT}"], None),
    ([f"00-{TRACE}-{PARENT}-01\n"], None),
    ([f"01-{TRACE}-{PARENT}-01extra"], None),
    ([f" 00-{TRACE}-{PARENT}-01"], None),
    ([f"0٠-{TRACE}-{PARENT}-01"], None),
    ([SAMPLED, SAMPLED], None),
    ([""], None),
    ([], None),
]


@pytest.mark.parametrize(("values", "sampled"), TRACEPARENTS)
def test_traceparent_is_parsed_strictly(values: list[str], *, sampled: bool | None) -> None:
    expected = None if sampled is None else RemoteParent(TRACE, PARENT, sampled=sampled)
    assert parse_traceparent(values) == expected


def test_trace_id_of_the_client_is_logged_without_any_tracing(
    service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    response = service.http.get("/", headers={"traceparent": SAMPLED})
    assert trace_id_of(caplog, response) == TRACE
    assert trace_id_of(caplog, service.http.get("/")) is None


@pytest.mark.parametrize(
    "headers",
    [
        f"traceparent: 00-{TRACE}-{PARENT}-01 \x1b[31m",
        f'traceparent: 00-{TRACE}-{PARENT}-01", "status": "0',
        f"traceparent: {SAMPLED}\r\ntraceparent: 00-{TRACE[::-1]}-{PARENT}-01",
        "traceparent: \xff",
    ],
)
def test_invalid_traceparent_is_ignored_and_not_logged(
    service: Service, caplog: pytest.LogCaptureFixture, headers: str
) -> None:
    head = f"GET / HTTP/1.1\r\nHost: x\r\nX-Request-Id: invalid\r\nConnection: close\r\n{headers}"
    caplog.clear()
    raw_request(service.url, f"{head}\r\n\r\n".encode("latin-1"))
    fields = logged_fields(caplog, "invalid")
    assert (fields["status"], fields["trace_id"]) == (200, None)
    assert TRACE not in caplog.text


def test_upload_and_first_download_are_traced_with_their_calls_to_s3(
    traced: Service, collector: Collector, caplog: pytest.LogCaptureFixture
) -> None:
    bundle = bytes(1000)
    proof = sign(KEY, bundle)
    headers = {"X-HMAC": proof["X-HMAC"], "X-Forwarded-Proto": "https"}
    uploaded = traced.http.post("/upload", content=bundle, headers=headers)
    spans = collector.trace(trace_id_of(caplog, uploaded), 2)
    assert tree(spans) == [("POST /upload", ["S3/PutObject"])]
    request, call = spans
    assert (request.kind, call.kind) == ("SERVER", "CLIENT")
    times = ("history.seconds_client", "history.seconds_budget", "history.seconds_s3")
    seconds = [request.attributes[name] for name in times]
    assert 0 < sum(seconds) <= (request.end - request.start) / 1e9
    assert {name: value for name, value in request.attributes.items() if name not in times} == {
        "http.request.method": "POST",
        "http.route": "/upload",
        "http.response.status_code": 200,
        "http.request.body.size": 1000,
        "http.response.body.size": 36,
        "url.scheme": "https",
        "server.address": "127.0.0.1",
        "server.port": int(traced.url.rpartition(":")[2]),
        "network.protocol.version": "1.1",
        "history.bundle": uploaded.text[:8],
    }
    assert call.attributes == {
        "rpc.system": "aws-api",
        "rpc.service": "S3",
        "rpc.method": "PutObject",
        "aws.s3.bucket": traced.bucket,
        "history.outcome": "ok",
    }

    downloaded = traced.fetch(uploaded.text, proof)
    spans = collector.trace(trace_id_of(caplog, downloaded), 5)
    [(root, children)] = tree(spans)
    assert root == "GET /files/{bundle_id}"
    assert sorted(children) == [
        "S3/GetObject",
        "S3/GetObjectTagging",
        "S3/PutObjectTagging",
        "verify bundle",
    ]
    assert not any(span.is_error for span in spans)
    [verification] = (span for span in spans if span.name == "verify bundle")
    assert (verification.kind, verification.attributes) == ("INTERNAL", {})

    spans = collector.trace(trace_id_of(caplog, traced.head(uploaded.text, proof)), 3)
    assert tree(spans)[0][0] == "HEAD /files/{bundle_id}"


def test_call_to_s3_inside_a_verification_is_its_child(
    traced: Service, collector: Collector, caplog: pytest.LogCaptureFixture
) -> None:
    bundle_id = traced.upload(b"bundle")
    response = traced.head(bundle_id, sign(KEY, b"bundle"))
    assert response.status_code == 200
    [(_, children)] = tree(collector.trace(trace_id_of(caplog, response), 5))
    assert ("verify bundle", ["S3/GetObject"]) in children


@pytest.mark.parametrize("sampled", [True, False])
def test_trace_of_the_client_is_continued_as_its_sampling_flag_says(
    traced: Service, collector: Collector, caplog: pytest.LogCaptureFixture, *, sampled: bool
) -> None:
    trace_id = f"{sampled:032x}".replace("0", "c")
    headers = {"traceparent": f"00-{trace_id}-{PARENT}-{sampled:02x}"}
    response = traced.http.post("/upload", content=b"bundle", headers=headers)
    assert trace_id_of(caplog, response) == trace_id
    spans = collector.trace(trace_id, 2 if sampled else 0)
    if sampled:
        assert tree(spans, PARENT) == [("POST /upload", ["S3/PutObject"])]


def test_requests_of_monitoring_are_not_traced(
    traced: Service, collector: Collector, caplog: pytest.LogCaptureFixture
) -> None:
    for path in access_log.UNTRACED:
        assert trace_id_of(caplog, traced.http.get(path)) is None
    page = traced.http.get("/", headers={"Host": "history.example"})
    [span] = collector.trace(trace_id_of(caplog, page), 1)
    assert (span.name, span.attributes["server.address"]) == ("GET /", "history.example")
    assert "server.port" not in span.attributes
    names = {span.name for span in collector.spans}
    assert not names & {"S3/HeadBucket", *(f"GET {path}" for path in access_log.UNTRACED)}


def test_clients_cannot_choose_names_or_attributes_of_spans(
    traced: Service, collector: Collector, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.clear()
    head = "BREW /pot?a-query HTTP/1.1\r\nHost: a b\r\nX-Request-Id: brew\r\nConnection: close"
    raw_request(traced.url, f"{head}\r\n\r\n".encode())
    [span] = collector.trace(logged_fields(caplog, "brew")["trace_id"], 1)
    assert (span.name, span.attributes["http.request.method"]) == ("HTTP", "_OTHER")
    assert not {"http.route", "server.address", "url.path", "url.query"} & span.attributes.keys()


def test_failures_of_s3_are_errors_but_those_of_the_client_are_not(
    traced: Service, proxy: Proxy, collector: Collector, caplog: pytest.LogCaptureFixture
) -> None:
    proof = sign(KEY, b"bundle")
    bundle_id = traced.upload(b"bundle", proof["X-HMAC"])
    proxy.faults.append(Fault("GetObjectTagging", Respond(403, "AccessDenied")))
    response = traced.fetch(bundle_id, proof)
    assert response.status_code == 503
    spans = collector.trace(trace_id_of(caplog, response), 3)
    errors = {span.name: span.attributes["error.type"] for span in spans if span.is_error}
    assert errors == {"GET /files/{bundle_id}": "503", "S3/GetObjectTagging": "refused"}

    wrong = traced.fetch(bundle_id, {**proof, "X-SIGNING-KEY": "another key"})
    assert wrong.status_code == 401
    spans = collector.trace(trace_id_of(caplog, wrong), 4)
    errors = {span.name: span.attributes["error.type"] for span in spans if span.is_error}
    assert errors == {"verify bundle": "invalid_hmac"}

    absent = traced.fetch("0" * 32, proof)
    spans = collector.trace(trace_id_of(caplog, absent), 3)
    assert not any(span.is_error for span in spans)
    outcomes = {span.attributes.get("history.outcome") for span in spans[1:]}
    assert outcomes <= {"absent", "cancelled"}


def test_upload_whose_client_disconnects_is_traced_with_its_cleanup(
    traced: Service, collector: Collector, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.clear()
    size = SMALL_PART
    headers = b"X-Request-Id: gone\r\ntraceparent: %b\r\n" % SAMPLED.encode()
    with begin_upload(traced.url, bytes(size - 1), size, headers):
        wait_until(lambda: traced.metrics()["history_memory_replay_bytes"] > 0)
    assert logged_fields(caplog, "gone")["status"] == 499
    spans = collector.trace(TRACE, 4)  # DeleteObject is sent twice.
    [(root, children)] = tree(spans, PARENT)
    assert root == "POST /upload"
    assert children == ["S3/PutObject", "S3/DeleteObject", "S3/DeleteObject"]
    assert [span.attributes.get("history.outcome") for span in spans[:2]] == [None, "cancelled"]
    assert spans[0].attributes["http.response.status_code"] == 499
    assert not any(span.is_error for span in spans)


def test_no_secret_and_no_whole_id_is_exported(
    traced: Service, collector: Collector, caplog: pytest.LogCaptureFixture
) -> None:
    """The collector searches all exported spans for keys and tokens."""
    proof = sign(KEY, b"bundle")
    bundle_id = traced.upload(b"bundle", proof["X-HMAC"])
    token = "an-upload-token-0123456789"
    paths = [
        f"/files/{bundle_id}?query={proof['X-HMAC']}",
        f"/t/{token}/files/{bundle_id.replace('-', '').upper()}",
        f"/t/{token}/elsewhere/{bundle_id}",
        f"/{bundle_id}/elsewhere",
    ]
    for path in paths:
        headers = {**proof, "Authorization": f"Bearer {token}", "tracestate": f"a={token}"}
        trace_id_of(caplog, traced.http.get(path, headers=headers))
    last = traced.http.delete(f"/files/{bundle_id}", headers=proof)
    collector.trace(trace_id_of(caplog, last), 5)
    assert bundle_id[:8] in collector.text
    for secret in (bundle_id, bundle_id.replace("-", ""), proof["X-HMAC"], token, KEY, "elsewhere"):
        assert secret.lower() not in collector.text.lower()


def test_resource_names_the_service_and_headers_are_sent(
    traced: Service, collector: Collector, caplog: pytest.LogCaptureFixture
) -> None:
    collector.trace(trace_id_of(caplog, traced.http.get("/")), 1)
    assert collector.resource["service.name"] == "message-history-server"
    assert re.fullmatch(r"\d+\.\d+\.\d+", collector.resource["service.version"])
    assert {name.lower(): value for name, value in collector.headers.items()}[
        "api-key"
    ] == "of the collector"


def test_pages_of_other_origins_may_send_a_traceparent(service: Service) -> None:
    headers = {
        "Origin": "https://app.example",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "traceparent",
    }
    response = service.http.options("/upload", headers=headers)
    assert "traceparent" in response.headers["Access-Control-Allow-Headers"]
