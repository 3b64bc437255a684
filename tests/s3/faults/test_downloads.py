"""Downloads while S3 fails: no wrong status, and no wrong bytes."""

import httpx
import pytest

from service.s3 import retries
from service.s3.bodies import MAX_RESUMES
from tests.s3.faults.failures import DENIED, LARGE, SMALL, UNAVAILABLE, operations
from tests.support.clients.signing import sign
from tests.support.polling import wait_until
from tests.support.proxy import AddRange, DropHeader, Fault, Hold, Proxy, Reset, Respond, Truncate
from tests.support.services.thread import Service

pytestmark = pytest.mark.both_records

KEY = "a signing key"


def test_body_is_not_read_if_the_stored_hmac_differs(proxied: Service, proxy: Proxy) -> None:
    large = LARGE * 3
    bundle_id = proxied.upload(large, sign(KEY, large)["X-HMAC"])
    proxy.requests.clear()
    wrong_proofs = {"wrong HMAC": sign(KEY, b"another"), "wrong key": sign("another key", large)}
    for proof in wrong_proofs.values():
        assert proxied.fetch(bundle_id, proof).status_code == 401
    for incomplete in (
        {},
        {"X-HMAC": "0" * 64},
        {"X-SIGNING-KEY": KEY},
        {**proof, "X-SIGNING-KEY": ""},
    ):
        assert proxied.fetch(bundle_id, incomplete).status_code == 400
    wait_until(lambda: proxy.open_connections <= 1)
    tags = ["GetObjectTagging"] * 2 if proxied.records == "tags" else []
    assert sorted(operations(proxy)) == ["GetObject"] * 2 + tags
    for request in proxy.requests:
        assert request.sent < len(large) // 2


@pytest.mark.parametrize("operation", ["GetObjectTagging", "GetObject"])
@pytest.mark.parametrize(
    "error",
    [DENIED, UNAVAILABLE, Respond(404, "NoSuchBucket")],
    ids=["denied", "unavailable", "no bucket"],
)
def test_failure_of_s3_is_never_a_404(
    proxied: Service, proxy: Proxy, operation: str, error: Respond
) -> None:
    bundle_id = proxied.upload(SMALL)
    proxy.faults.append(Fault(operation, error, times=None))
    response = proxied.fetch(bundle_id, sign(KEY, SMALL))
    assert (response.status_code, response.json()["code"]) == (503, "storage_unavailable")


@pytest.mark.parametrize(("method", "operation"), [("GET", "GetObject"), ("HEAD", "HeadObject")])
def test_response_that_does_not_come_from_s3_is_a_503(
    proxied: Service, proxy: Proxy, method: str, operation: str
) -> None:
    """Its head has no ETag, as that of a gateway between the service and S3."""
    bundle_id = proxied.upload(SMALL, sign(KEY, SMALL)["X-HMAC"])
    proxy.faults.append(Fault(operation, Respond(200, ""), times=None))
    response = proxied.http.request(method, f"/files/{bundle_id}", headers=sign(KEY, SMALL))
    assert response.status_code == 503


def test_service_survives_an_unreachable_s3(proxied: Service, proxy: Proxy) -> None:
    bundle_id = proxied.upload(SMALL)
    proxy.disable()
    for response in (
        proxied.fetch(bundle_id, sign(KEY, SMALL)),
        proxied.http.post("/upload", content=SMALL),
    ):
        assert (response.status_code, response.json()["code"]) == (503, "storage_unavailable")
    assert proxied.http.get("/healthz").status_code == 200
    proxy.enable()
    assert proxied.fetch(bundle_id, sign(KEY, SMALL)).content == SMALL


@pytest.mark.parametrize("action", [Truncate(6 << 20), Reset(6 << 20)], ids=["truncated", "reset"])
def test_body_that_breaks_after_the_status_line_cuts_the_connection(
    proxied: Service, proxy: Proxy, action: Truncate | Reset
) -> None:
    bundle_id = proxied.upload(LARGE)
    proxy.faults.append(Fault("GetObject", action, after=1))
    proxy.faults.append(Fault("GetObject", Truncate(0), times=None, after=1))
    proxy.requests.clear()
    with proxied.http.stream("GET", f"/files/{bundle_id}", headers=sign(KEY, LARGE)) as response:
        assert response.status_code == 200
        with pytest.raises(httpx.RemoteProtocolError, match="peer closed connection"):
            response.read()
    assert operations(proxy).count("GetObject") == 2 + MAX_RESUMES
    wait_until(lambda: proxy.open_connections <= 1)


@pytest.mark.parametrize("bundle", [SMALL, LARGE], ids=["small", "large"])
def test_body_that_breaks_before_the_status_line_is_a_503(
    proxied: Service, proxy: Proxy, bundle: bytes
) -> None:
    bundle_id = proxied.upload(bundle)
    proxy.faults.append(Fault("GetObject", Truncate(500)))
    proxy.faults.append(Fault("GetObject", Truncate(0), times=None))
    response = proxied.fetch(bundle_id, sign(KEY, bundle))
    assert (response.status_code, response.json()["code"]) == (503, "storage_unavailable")


@pytest.mark.parametrize("action", [Truncate(3 << 20), Reset(2 << 20)], ids=["truncated", "reset"])
def test_broken_body_is_resumed_where_it_broke(
    proxied: Service, proxy: Proxy, action: Truncate | Reset
) -> None:
    """While the bundle is verified, while it is sent, and within a requested range."""
    bundle_id = proxied.upload(LARGE, sign(KEY, LARGE)["X-HMAC"])
    proxy.faults.append(Fault("GetObject", action, times=6))
    assert proxied.fetch(bundle_id, sign(KEY, LARGE)).content == LARGE
    assert proxy.faults.pop().injected == 6
    proxy.requests.clear()
    # Without a receipt, the bundle is verified again before its range is read.
    verifications = 0 if proxied.records == "tags" else 1
    proxy.faults.append(Fault("GetObject", action, times=1, after=verifications))
    byte_range = {"Range": f"bytes=1000-{7 << 20}"}
    response = proxied.fetch(bundle_id, {**sign(KEY, LARGE), **byte_range})
    assert (response.status_code, response.content) == (206, LARGE[1000 : (7 << 20) + 1])
    reads = [request for request in proxy.requests if request.operation == "GetObject"]
    [first, resumed] = reads[verifications:]
    assert first.headers["if-match"] == resumed.headers["if-match"]
    assert resumed.headers["range"].endswith(f"-{7 << 20}")
    # After a reset, the service may also lose bytes that it had received but not read.
    assert isinstance(action, Reset) or resumed.headers["range"] != first.headers["range"]


def test_body_is_not_resumed_with_bytes_from_another_offset(proxied: Service, proxy: Proxy) -> None:
    """A store that ignores Range sends the whole object."""
    bundle_id = proxied.upload(LARGE)
    proxy.faults.append(Fault("GetObject", Truncate(3 << 20)))
    proxy.faults.append(Fault("GetObject", DropHeader("Range")))
    response = proxied.fetch(bundle_id, sign(KEY, LARGE))
    assert (response.status_code, response.json()["code"]) == (503, "storage_unavailable")


@pytest.mark.parametrize("bundle", [SMALL, LARGE], ids=["small", "large"])
def test_partial_body_is_not_accepted_as_the_whole_bundle(
    proxied: Service, proxy: Proxy, bundle: bytes
) -> None:
    """A proof may match the partial body. The rest of the buffer could hold older bytes."""
    bundle_id = proxied.upload(bundle)
    proxy.faults.append(Fault("GetObject", AddRange("bytes=0-499"), times=None))
    response = proxied.fetch(bundle_id, sign(KEY, bundle[:500]))
    assert (response.status_code, response.json()["code"]) == (503, "storage_unavailable")


@pytest.mark.parametrize(
    "error", [Respond(404, "NoSuchKey"), Respond(412, "PreconditionFailed")], ids=["404", "412"]
)
def test_bundle_deleted_before_its_body_is_resumed_is_a_503(
    proxied: Service, proxy: Proxy, error: Respond
) -> None:
    bundle_id = proxied.upload(SMALL)
    proxy.faults.append(Fault("GetObject", Truncate(500)))
    proxy.faults.append(Fault("GetObject", error))
    response = proxied.fetch(bundle_id, sign(KEY, SMALL))
    assert (response.status_code, response.json()["code"]) == (503, "storage_unavailable")


def test_clients_do_not_notice_seven_refusals_in_a_row(proxied: Service, proxy: Proxy) -> None:
    proxy.faults.append(
        Fault("PutObject", Respond(503, "SlowDown"), times=retries.MAX_ATTEMPTS - 1)
    )
    assert proxied.fetch(proxied.upload(SMALL), sign(KEY, SMALL)).content == SMALL
    assert operations(proxy).count("PutObject") == retries.MAX_ATTEMPTS


def test_bundle_deleted_between_the_two_reads_is_a_404(proxied: Service, proxy: Proxy) -> None:
    bundle_id = proxied.upload(LARGE)
    proxy.faults.append(Fault("GetObject", Respond(404, "NoSuchKey"), after=1))
    response = proxied.fetch(bundle_id, sign(KEY, LARGE))
    assert (response.status_code, response.json()["code"]) == (404, "not_found")


def test_reading_from_s3_stops_when_the_client_disconnects(proxied: Service, proxy: Proxy) -> None:
    bundle = LARGE * 3
    proof = sign(KEY, bundle)
    bundle_id = proxied.http.post("/upload", content=bundle, headers=proof).text
    proxy.requests.clear()
    with proxied.http.stream("GET", f"/files/{bundle_id}", headers=proof) as response:
        next(response.iter_raw())
    wait_until(lambda: proxy.open_connections <= 1)
    [*_, download] = proxy.requests
    assert download.operation == "GetObject"
    assert download.sent < len(bundle) // 2


@pytest.mark.only_tags
def test_object_without_tags_is_no_bundle_and_no_failure_of_s3(
    proxied: Service, proxy: Proxy, caplog: pytest.LogCaptureFixture
) -> None:
    """Some stores have an error code for it."""
    bundle_id = proxied.upload(SMALL)
    proxy.faults.append(Fault("GetObjectTagging", Respond(404, "NoSuchTagSet"), times=None))
    for headers in ({}, {"Range": "bytes=0-9"}):
        response = proxied.fetch(bundle_id, {**sign(KEY, SMALL), **headers})
        assert (response.status_code, response.json()["code"]) == (404, "not_found")
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == []


@pytest.mark.only_tags
def test_receipt_of_a_deleted_bundle_is_no_failure_of_s3(
    proxied: Service, proxy: Proxy, caplog: pytest.LogCaptureFixture
) -> None:
    """A DELETE arrives before the receipt of the first download."""
    proof, hold = sign(KEY, SMALL), Hold()
    bundle_id = proxied.upload(SMALL, proof["X-HMAC"])
    proxy.faults.append(Fault("PutObjectTagging", hold))
    assert proxied.fetch(bundle_id, proof).content == SMALL
    assert proxied.http.delete(f"/files/{bundle_id}", headers=proof).status_code == 204
    absent = 'history_s3_request_seconds_count{operation="PutObjectTagging",outcome="absent"}'
    before = proxied.metrics().get(absent, 0)
    hold.release.set()
    wait_until(lambda: proxied.metrics().get(absent, 0) > before)
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == []
