"""The access log: the log line of each request, request ids, and the metrics."""

import re
import time
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any

import httpx
import pytest

from service.bundles.memory import WINDOW_SIZE
from service.http import access_log
from service.s3 import retries
from service.s3.bodies import MAX_RESUMES
from tests.support.access_log import logged_fields
from tests.support.clients.signing import sign
from tests.support.clients.sockets import begin_upload, connect_to, raw_request, read_response
from tests.support.polling import wait_until
from tests.support.proxy import Delay, Fault, Proxy, Respond, Truncate
from tests.support.repository import ROOT
from tests.support.services.thread import SMALL_PART, Service, running_service
from tests.support.stores import Store

KEY = "a signing key"


@pytest.fixture(autouse=True)
def _log_level(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger=access_log.__name__)


@pytest.fixture(scope="module")
def proxy(store: Store) -> Iterator[Proxy]:
    with Proxy(store.endpoint_url) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def service(store: Store, s3: Any, proxy: Proxy) -> Iterator[Service]:
    """A service that only this module uses, so that no other test changes its metrics."""
    with (
        pytest.MonkeyPatch.context() as patch,
        running_service(
            store, s3, endpoint_url=proxy.url, part_size=SMALL_PART, memory_budget=2 * SMALL_PART
        ) as running,
    ):
        patch.setattr(retries, "MAX_BACKOFF", 0.1)
        yield running


def fields_of(caplog: pytest.LogCaptureFixture, response: httpx.Response) -> dict[str, Any]:
    return logged_fields(caplog, response.headers["X-Request-Id"])


def metric_increases(service: Service, before: dict[str, float]) -> dict[str, float]:
    """Return how much each metric has increased since `before`, without sums and buckets."""
    return {
        name: value - before.get(name, 0)
        for name, value in service.metrics().items()
        if value != before.get(name, 0) and not re.search("_sum|_bucket", name)
    }


def test_log_line_describes_the_request_and_the_response(
    service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    bundle = bytes(1000)
    response = service.http.post("/upload", content=bundle)
    bundle_id, uploaded = response.text, fields_of(caplog, response)
    assert uploaded["bundle"] == bundle_id[:8]
    assert (uploaded["method"], uploaded["route"], uploaded["status"]) == ("POST", "/upload", 200)
    assert (uploaded["bytes_received"], uploaded["bytes_sent"]) == (1000, 36)
    downloaded = fields_of(caplog, service.fetch(bundle_id.upper(), sign(KEY, bundle)))
    assert (downloaded["route"], downloaded["bundle"]) == ("/files/{bundle_id}", bundle_id[:8])
    assert (downloaded["bytes_received"], downloaded["bytes_sent"]) == (0, 1000)
    assert downloaded["complete"]
    assert 0 < downloaded["seconds_s3"] <= downloaded["seconds"]
    assert fields_of(caplog, service.head(bundle_id, sign(KEY, bundle)))["bytes_sent"] == 0


def test_every_field_of_the_log_line_is_documented(
    service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    fields = fields_of(caplog, service.http.get("/"))
    page = (ROOT / "infra" / "README.md").read_text()
    section = page.partition("\n## Access log\n")[2].partition("\n## ")[0]
    cells = re.findall(r"^\| (`.*?) \|", section, re.MULTILINE)
    documented = [name for cell in cells for name in re.findall(r"`(\w+)`", cell)]
    assert sorted(documented) == sorted(["time", "level", "logger", "message", *fields])


def test_log_line_shows_whether_a_request_waited_for_the_client_s3_or_memory(
    service: Service, proxy: Proxy, caplog: pytest.LogCaptureFixture
) -> None:
    def slow_body() -> Iterator[bytes]:
        yield bytes(1000)
        time.sleep(0.4)
        yield bytes(1000)

    fields_by_wait = {
        "client": fields_of(caplog, service.http.post("/upload", content=slow_body()))
    }
    proxy.faults.append(Fault("PutObject", Delay(0.4)))
    fields_by_wait["s3"] = fields_of(caplog, service.http.post("/upload", content=bytes(1000)))
    with connect_to(service.url) as waiting:
        with ExitStack() as uploading:
            for _ in range(SMALL_PART // WINDOW_SIZE):
                uploading.enter_context(begin_upload(service.url, b"some", SMALL_PART))
            memory_in_use = 'history_memory_used_bytes{pool="windows"}'
            wait_until(lambda: service.metrics()[memory_in_use] == SMALL_PART)
            head = b"POST /upload HTTP/1.1\r\nHost: x\r\nContent-Length: 6\r\n"
            waiting.sendall(head + b"X-Request-Id: waiting\r\n\r\n")
            wait_until(lambda: service.metrics()['history_memory_waiters{pool="windows"}'] == 1)
            time.sleep(0.4)
        waiting.sendall(b"bundle")
        assert read_response(waiting).startswith(b"HTTP/1.1 200")
    fields_by_wait["budget"] = logged_fields(caplog, "waiting")
    for longest_wait, fields in fields_by_wait.items():
        seconds = {name: fields[f"seconds_{name}"] for name in fields_by_wait}
        assert max(seconds, key=seconds.__getitem__) == longest_wait
        assert 0.35 < seconds[longest_wait] <= fields["seconds"]


def test_interrupted_download_is_logged_as_incomplete(
    service: Service, proxy: Proxy, caplog: pytest.LogCaptureFixture
) -> None:
    bundle = bytes(SMALL_PART + 1000)
    bundle_id = service.upload(bundle)
    before = service.metrics()
    proxy.faults.append(Fault("GetObject", Truncate(SMALL_PART), after=1))
    proxy.faults.append(Fault("GetObject", Truncate(0), times=MAX_RESUMES, after=1))
    with pytest.raises(httpx.RemoteProtocolError):
        service.fetch(bundle_id, {**sign(KEY, bundle), "X-Request-Id": "cut"})
    fields = logged_fields(caplog, "cut")
    assert (fields["status"], fields["complete"]) == (200, False)
    assert 0 < fields["bytes_sent"] <= SMALL_PART
    assert any("… 200 cut " in message for message in caplog.messages)
    increases = metric_increases(service, before)
    assert increases['history_responses_cut_total{route="/files/{bundle_id}"}'] == 1
    assert increases["history_s3_downloads_resumed_total"] == MAX_RESUMES


@pytest.mark.parametrize(
    ("request_id", "accepted"),
    [
        ("a-1.b_2:c;d=e+f/g@h", True),
        ("1-67891233-abcdef012345678912345678", True),
        pytest.param("x" * 128, True, id="128 characters"),
        pytest.param("x" * 129, False, id="129 characters"),
        ("a b", False),
        ('"quoted"', False),
        ("", False),
    ],
)
def test_request_id_of_the_client_is_used_only_if_it_is_safe_to_log(
    service: Service, caplog: pytest.LogCaptureFixture, request_id: str, *, accepted: bool
) -> None:
    response = service.http.get("/elsewhere", headers={"X-Request-Id": request_id})
    assert (response.headers["X-Request-Id"] == request_id) is accepted
    assert re.fullmatch(r"\S{1,128}", response.headers["X-Request-Id"])
    assert fields_of(caplog, response)["status"] == 404


def test_clients_cannot_choose_metric_labels(service: Service) -> None:
    before = service.metrics()
    raw_request(service.url, b"BREW /pot HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    raw_request(service.url, b"PUT /files/x HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    increases = metric_increases(service, before)
    name = 'history_request_seconds_count{method="other",route="%s",status="%d"}'
    assert increases[name % ("other", 404)] == 1
    assert increases[name % ("/files/{bundle_id}", 405)] == 1


def test_requests_and_bytes_are_counted(service: Service) -> None:
    before = service.metrics()
    service.upload(bytes(1000))
    increases = metric_increases(service, before)
    name = 'history_request_seconds_count{method="POST",route="/upload",status="200"}'
    assert increases[name] == 1
    assert increases["history_received_bytes_total"] == 1000
    assert increases["history_sent_bytes_total"] > 36  # The response to /metrics counts too.
    assert increases['history_s3_request_seconds_count{operation="PutObject",outcome="ok"}'] == 1


def has_receipt(service: Service, bundle_id: str) -> bool:
    return "receipt" in service.record(bundle_id)


def test_proofs_are_counted_by_way_and_outcome(service: Service) -> None:
    small, large = bytes(1000), bytes(SMALL_PART + 1)
    before = service.metrics()
    proofs = {bundle: sign(KEY, bundle) for bundle in (small, large)}
    ids = {bundle: service.upload(bundle, proofs[bundle]["X-HMAC"]) for bundle in proofs}
    for bundle, proof in proofs.items():
        service.http.head(f"/files/{ids[bundle]}", headers={**proof, "X-SIGNING-KEY": "another"})
        assert service.fetch(ids[bundle], proof).content == bundle
        wait_until(partial(has_receipt, service, ids[bundle]))
        assert service.fetch(ids[bundle], proof).content == bundle
    service.fetch(ids[small], sign(KEY, large))
    increases = metric_increases(service, before)
    assert {
        tuple(re.findall('"(.*?)"', name)): count
        for name, count in increases.items()
        if name.startswith("history_verifications_total")
    } == {
        ("refused", "one_read"): 2,
        ("held", "memory"): 1,
        ("held", "two_reads"): 1,
        ("held", "receipt"): 2,
        ("refused", "tag"): 1,
    }


def test_s3_calls_and_retries_are_counted(service: Service, proxy: Proxy) -> None:
    before = service.metrics()
    bundle_id = service.upload(b"bundle")
    proxy.faults.append(Fault("GetObjectTagging", Respond(503, "SlowDown")))
    proxy.faults.append(Fault("GetObjectTagging", Respond(403, "AccessDenied")))
    assert service.fetch(bundle_id, sign(KEY, b"bundle")).status_code == 503
    assert service.fetch("0" * 32, sign(KEY, b"bundle")).status_code == 404
    increases = metric_increases(service, before)
    calls = 'history_s3_request_seconds_count{operation="GetObjectTagging",outcome="%s"}'
    assert increases[calls % "refused"] == increases[calls % "absent"] == 1
    assert increases['history_s3_retries_total{operation="GetObjectTagging"}'] == 1


def test_aborted_uploads_are_counted_by_reason(service: Service) -> None:
    before = service.metrics()
    service.http.post("/upload", content=b"")
    with connect_to(service.url) as connection:
        connection.sendall(b"POST /upload HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nbun")
    name = 'history_uploads_aborted_total{reason="%s"}'
    wait_until(lambda: metric_increases(service, before).get(name % "client_gone") == 1)
    assert metric_increases(service, before)[name % "empty_bundle"] == 1


def test_all_memory_is_released_in_the_end(service: Service) -> None:
    """After all the tests above."""
    metrics = service.metrics()
    for pool in ("windows", "buffers"):
        assert metrics[f'history_memory_used_bytes{{pool="{pool}"}}'] == 0
        assert metrics[f'history_memory_waiters{{pool="{pool}"}}'] == 0
        assert metrics[f'history_memory_budget_bytes{{pool="{pool}"}}'] > 0
