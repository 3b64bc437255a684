"""What is kept of a request: its line, its id, what it waited for, and the metrics of all."""

import re
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from service.http import access_log
from service.s3 import retries
from tests.support.clients.signing import sign
from tests.support.clients.sockets import dial, raw_request, read_answer
from tests.support.polling import until
from tests.support.proxy import Delay, Fault, Proxy, Respond, Truncate
from tests.support.services.thread import SMALL_PART, Service, running_service
from tests.support.stores import Store

KEY = "a signing key"


@pytest.fixture(autouse=True)
def _heard(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger=access_log.__name__)


@pytest.fixture(scope="module")
def proxy(store: Store) -> Iterator[Proxy]:
    with Proxy(store.endpoint_url) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def measured(store: Store, s3: Any, proxy: Proxy) -> Iterator[Service]:
    """A service of this module's own, as its metrics are counted."""
    with (
        pytest.MonkeyPatch.context() as patch,
        running_service(
            store, s3, endpoint_url=proxy.url, part_size=SMALL_PART, memory_budget=2 * SMALL_PART
        ) as service,
    ):
        patch.setattr(retries, "MAX_BACKOFF", 0.1)
        yield service


def line(caplog: pytest.LogCaptureFixture, request_id: str) -> dict[str, Any]:
    """What a request's line says; it is written when its answer has been sent."""

    def found() -> list[Any]:
        return [
            record
            for record in caplog.records
            if record.name == access_log.__name__
            and vars(record)["fields"]["request_id"] == request_id
        ]

    until(lambda: bool(found()))
    [record] = found()
    fields: dict[str, Any] = record.fields
    return fields


def line_of(caplog: pytest.LogCaptureFixture, answer: httpx.Response) -> dict[str, Any]:
    return line(caplog, answer.headers["X-Request-Id"])


def change(service: Service, before: dict[str, float]) -> dict[str, float]:
    """What has been counted since, without the seconds."""
    return {
        name: value - before.get(name, 0)
        for name, value in service.metrics().items()
        if value != before.get(name, 0) and not re.search("_sum|_bucket", name)
    }


def test_a_line_says_what_was_asked_and_what_came_of_it(
    measured: Service, caplog: pytest.LogCaptureFixture
) -> None:
    bundle = bytes(1000)
    answer = measured.http.post("/upload", content=bundle)
    bundle_id, uploaded = answer.text, line_of(caplog, answer)
    assert uploaded["bundle"] == bundle_id[:8]
    assert (uploaded["method"], uploaded["route"], uploaded["status"]) == ("POST", "/upload", 200)
    assert (uploaded["bytes_received"], uploaded["bytes_sent"]) == (1000, 36)
    fetched = line_of(caplog, measured.fetch(bundle_id.upper(), sign(KEY, bundle)))
    assert (fetched["route"], fetched["bundle"]) == ("/files/{bundle_id}", bundle_id[:8])
    assert (fetched["bytes_received"], fetched["bytes_sent"]) == (0, 1000)
    assert fetched["complete"]
    assert 0 < fetched["seconds_s3"] <= fetched["seconds"]
    assert line_of(caplog, measured.head(bundle_id, sign(KEY, bundle)))["bytes_sent"] == 0


def test_a_line_says_for_whom_a_request_waited(
    measured: Service, proxy: Proxy, caplog: pytest.LogCaptureFixture
) -> None:
    def slowly() -> Iterator[bytes]:
        yield bytes(1000)
        time.sleep(0.4)
        yield bytes(1000)

    waited_for = {"client": line_of(caplog, measured.http.post("/upload", content=slowly()))}
    proxy.faults.append(Fault("PutObject", Delay(0.4)))
    waited_for["s3"] = line_of(caplog, measured.http.post("/upload", content=bytes(1000)))
    head = b"POST /upload HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n" % SMALL_PART
    with dial(measured.url) as waiting:
        with dial(measured.url) as one, dial(measured.url) as other:
            for holder in (one, other):
                holder.sendall(head + b"\r\n")
            used = 'history_memory_used_bytes{pool="parts"}'
            until(lambda: measured.metrics()[used] == 2 * SMALL_PART)
            waiting.sendall(head + b"X-Request-Id: waiting\r\n\r\n")
            until(lambda: measured.metrics()['history_memory_waiters{pool="parts"}'] == 1)
            time.sleep(0.4)
        waiting.sendall(bytes(SMALL_PART))
        assert read_answer(waiting).startswith(b"HTTP/1.1 200")
    waited_for["budget"] = line(caplog, "waiting")
    for what, fields in waited_for.items():
        waits = {name: fields[f"seconds_{name}"] for name in waited_for}
        assert max(waits, key=waits.__getitem__) == what
        assert 0.35 < waits[what] <= fields["seconds"]


def test_a_cut_answer_is_no_complete_one(
    measured: Service, proxy: Proxy, caplog: pytest.LogCaptureFixture
) -> None:
    bundle = bytes(SMALL_PART + 1000)
    bundle_id = measured.upload(bundle)
    before = measured.metrics()
    proxy.faults.append(Fault("GetObject", Truncate(SMALL_PART), after=1))
    proxy.faults.append(Fault("GetObject", Truncate(0), times=3, after=1))
    with pytest.raises(httpx.RemoteProtocolError):
        measured.fetch(bundle_id, {**sign(KEY, bundle), "X-Request-Id": "cut"})
    fields = line(caplog, "cut")
    assert (fields["status"], fields["complete"]) == (200, False)
    assert 0 < fields["bytes_sent"] <= SMALL_PART
    assert any("… 200 cut " in message for message in caplog.messages)
    counted = change(measured, before)
    assert counted['history_responses_cut_total{route="/files/{bundle_id}"}'] == 1
    assert counted["history_s3_downloads_resumed_total"] == 3


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        ("a-1.b_2:c;d=e+f/g@h", True),
        ("1-67891233-abcdef012345678912345678", True),
        ("x" * 128, True),
        ("x" * 129, False),
        ("a b", False),
        ('"quoted"', False),
        ("", False),
    ],
)
def test_a_request_id_is_taken_where_it_is_fit_for_a_log_else_made(
    measured: Service, caplog: pytest.LogCaptureFixture, given: str, *, taken: bool
) -> None:
    answer = measured.http.get("/elsewhere", headers={"X-Request-Id": given})
    assert (answer.headers["X-Request-Id"] == given) is taken
    assert re.fullmatch(r"\S{1,128}", answer.headers["X-Request-Id"])
    assert line_of(caplog, answer)["status"] == 404


def test_no_label_is_for_clients_to_fill(measured: Service) -> None:
    before = measured.metrics()
    raw_request(measured.url, b"BREW /pot HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    raw_request(measured.url, b"PUT /files/x HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    counted = change(measured, before)
    name = 'history_request_seconds_count{method="other",route="%s",status="%d"}'
    assert counted[name % ("other", 404)] == 1
    assert counted[name % ("/files/{bundle_id}", 405)] == 1


def test_requests_and_bytes_are_counted(measured: Service) -> None:
    before = measured.metrics()
    measured.upload(bytes(1000))
    counted = change(measured, before)
    name = 'history_request_seconds_count{method="POST",route="/upload",status="200"}'
    assert counted[name] == 1
    assert counted["history_received_bytes_total"] == 1000
    assert counted["history_sent_bytes_total"] > 36  # the metrics were sent, too
    assert counted['history_s3_request_seconds_count{operation="PutObject",outcome="ok"}'] == 1


def test_proofs_are_counted_by_their_way(measured: Service) -> None:
    small, large = bytes(1000), bytes(SMALL_PART + 1)
    before = measured.metrics()
    proofs = {bundle: sign(KEY, bundle) for bundle in (small, large)}
    ids = {bundle: measured.upload(bundle, proofs[bundle]["X-HMAC"]) for bundle in proofs}
    for bundle, proof in proofs.items():
        measured.http.head(f"/files/{ids[bundle]}", headers={**proof, "X-SIGNING-KEY": "another"})
        for _ in range(2):
            assert measured.fetch(ids[bundle], proof).content == bundle
    measured.fetch(ids[small], sign(KEY, large))
    counted = change(measured, before)
    assert {
        tuple(re.findall('"(.*?)"', name)): count
        for name, count in counted.items()
        if name.startswith("history_verifications_total")
    } == {
        ("refused", "one_read"): 2,
        ("held", "memory"): 1,
        ("held", "two_reads"): 1,
        ("held", "receipt"): 2,
        ("refused", "tag"): 1,
    }


def test_what_s3_did_is_counted(measured: Service, proxy: Proxy) -> None:
    before = measured.metrics()
    bundle_id = measured.upload(b"bundle")
    proxy.faults.append(Fault("GetObjectTagging", Respond(503, "SlowDown")))
    proxy.faults.append(Fault("GetObjectTagging", Respond(403, "AccessDenied")))
    assert measured.fetch(bundle_id, sign(KEY, b"bundle")).status_code == 503
    assert measured.fetch("0" * 32, sign(KEY, b"bundle")).status_code == 404
    counted = change(measured, before)
    calls = 'history_s3_request_seconds_count{operation="GetObjectTagging",outcome="%s"}'
    assert counted[calls % "refused"] == counted[calls % "absent"] == 1
    assert counted['history_s3_retries_total{operation="GetObjectTagging"}'] == 1


def test_aborted_uploads_are_counted_by_their_reason(measured: Service) -> None:
    before = measured.metrics()
    measured.http.post("/upload", content=b"")
    with dial(measured.url) as connection:
        connection.sendall(b"POST /upload HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nbun")
    name = 'history_uploads_aborted_total{reason="%s"}'
    until(lambda: change(measured, before).get(name % "client_gone") == 1)
    assert change(measured, before)[name % "empty_bundle"] == 1


def test_nothing_is_held_in_the_end(measured: Service) -> None:
    """By all the tests above."""
    found = measured.metrics()
    for pool in ("parts", "slots"):
        assert found[f'history_memory_used_bytes{{pool="{pool}"}}'] == 0
        assert found[f'history_memory_waiters{{pool="{pool}"}}'] == 0
        assert found[f'history_memory_budget_bytes{{pool="{pool}"}}'] > 0
