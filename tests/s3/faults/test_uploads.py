"""Uploads while S3 fails: no wrong status, no wrong object, and nothing left in the bucket."""

import socket
import struct
from concurrent.futures import ThreadPoolExecutor

import pytest

from service.bundles import background, stream
from service.http.server.connection import Connection
from service.s3 import retries
from tests.s3.faults.failures import (
    DENIED,
    LARGE,
    NO_SUCH_UPLOAD,
    SMALL,
    UNAVAILABLE,
    WRITES,
    check_failed_upload,
    is_bucket_empty,
    operations,
    upload,
)
from tests.support.clients.signing import sign
from tests.support.clients.sockets import (
    begin_chunked_upload,
    begin_upload,
    problem_code,
    read_until_closed,
)
from tests.support.polling import wait_until
from tests.support.proxy import Delay, DropResponse, Fault, Hold, Proxy, Respond
from tests.support.services.thread import SMALL_PART, Service, StartService
from tests.support.stores import Store

pytestmark = pytest.mark.both_records

KEY = "a signing key"
PART = SMALL_PART


@pytest.mark.parametrize("operation", WRITES)
def test_upload_that_s3_refuses_leaves_nothing(
    proxied: Service, proxy: Proxy, operation: str
) -> None:
    fault = Fault(operation, DENIED, times=None)
    check_failed_upload(proxied, proxy, fault, WRITES[operation])


@pytest.mark.parametrize("operation", ["PutObject", "CompleteMultipartUpload"])
def test_upload_whose_responses_are_all_lost_leaves_nothing(
    proxied: Service, proxy: Proxy, operation: str
) -> None:
    fault = Fault(operation, DropResponse(), times=None)
    check_failed_upload(proxied, proxy, fault, WRITES[operation])


@pytest.mark.parametrize("chunked", [False, True])
def test_bundle_whose_client_disconnects_before_the_response_is_removed(
    proxied: Service, proxy: Proxy, *, chunked: bool
) -> None:
    """Nobody knows its id. A client that only closes its own side still gets the response."""
    hold = Hold()
    proxy.faults.append(Fault("PutObject", hold))
    with (
        begin_chunked_upload(proxied.url, SMALL)
        if chunked
        else begin_upload(proxied.url, SMALL, len(SMALL))
    ) as client:
        if chunked:
            client.sendall(b"0\r\n\r\n")
        wait_until(lambda: "PutObject" in operations(proxy))
        address = client.getsockname()
        assert address in connected_clients(proxied)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    wait_until(lambda: address not in connected_clients(proxied))
    hold.release.set()
    [put] = [request for request in proxy.requests if request.operation == "PutObject"]
    # Uploads of other tests may be removed once more at the same time.
    wait_until(lambda: ("DELETE", put.target) in [(r.method, r.target) for r in proxy.requests])
    assert put.status == 200
    wait_until(lambda: is_bucket_empty(proxied))


def connected_clients(service: Service) -> list[object]:
    connections = list(service.server.server_state.connections)
    return [connection.client for connection in connections if isinstance(connection, Connection)]


@pytest.mark.parametrize("operation", WRITES)
@pytest.mark.parametrize(
    "action", [UNAVAILABLE, DropResponse()], ids=["unavailable", "lost response"]
)
def test_clients_do_not_notice_a_temporary_fault(
    proxied: Service, proxy: Proxy, operation: str, action: Respond | DropResponse
) -> None:
    """If only the response is lost, S3 has already carried out the call that is retried."""
    bundle = WRITES[operation]
    proxy.faults.append(Fault(operation, action, times=1))
    response = upload(proxied, bundle, hmac=sign(KEY, bundle)["X-HMAC"])
    assert proxied.fetch(response.text, sign(KEY, bundle)).content == bundle
    assert proxy.faults[0].injected == 1


@pytest.mark.only_tags
@pytest.mark.parametrize(
    ("operation", "after_bytes"), [("PutObject", 2_990_000), ("UploadPart", 1)]
)
def test_silent_client_learns_of_a_failure_of_s3_at_once(
    proxied: Service,
    proxy: Proxy,
    monkeypatch: pytest.MonkeyPatch,
    operation: str,
    after_bytes: int,
) -> None:
    """It does not get 408 after the read timeout.

    The last bytes before the failure of PutObject are sent because the client is silent.
    """
    monkeypatch.setattr(stream, "SILENCE", 0.01)
    denied = Respond(403, "AccessDenied", after_bytes)
    proxy.faults.append(Fault(operation, denied, times=None))
    if operation == "PutObject":
        connection = begin_upload(proxied.url, bytes(3_000_000), 4_000_000)
    else:
        connection = begin_chunked_upload(proxied.url, LARGE[: PART + 1000])
    with connection:
        response = read_until_closed(connection)
    assert response.startswith(b"HTTP/1.1 503 ")
    assert problem_code(response) == b"storage_unavailable"
    wait_until(lambda: is_bucket_empty(proxied))


def test_complete_whose_first_response_is_lost_succeeds(proxied: Service, proxy: Proxy) -> None:
    """S3 answers the retry with NoSuchUpload. HeadObject shows that the object exists."""
    proxy.faults.append(Fault("CompleteMultipartUpload", DropResponse()))
    proxy.faults.append(Fault("CompleteMultipartUpload", NO_SUCH_UPLOAD))
    response = upload(proxied, LARGE)
    assert "HeadObject" in operations(proxy)
    assert proxied.fetch(response.text, sign(KEY, LARGE)).content == LARGE


def test_no_such_upload_without_an_object_is_a_503(proxied: Service, proxy: Proxy) -> None:
    fault = Fault("CompleteMultipartUpload", NO_SUCH_UPLOAD)
    check_failed_upload(proxied, proxy, fault, LARGE)


@pytest.mark.parametrize("operation", WRITES)
def test_not_found_during_an_upload_is_a_503(
    proxied: Service, proxy: Proxy, operation: str
) -> None:
    fault = Fault(operation, Respond(404, "NoSuchKey"))
    check_failed_upload(proxied, proxy, fault, WRITES[operation])


@pytest.mark.only_tags
def test_object_is_deleted_even_if_uploads_cannot_be_listed(proxied: Service, proxy: Proxy) -> None:
    proxy.faults.append(Fault("ListMultipartUploads", DENIED))
    check_failed_upload(proxied, proxy, Fault("PutObjectTagging", DENIED), LARGE)


@pytest.mark.only_tags
def test_failure_is_logged_once_with_its_remedy_and_without_the_bundle_id(
    store: Store,
    start_service: StartService,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(retries, "MAX_BACKOFF", 0.1)
    with Proxy(store.endpoint_url) as proxy:
        service = start_service(endpoint_url=proxy.url)
        bundle_id = service.upload(SMALL)
        for action in (DENIED, DropResponse()):
            proxy.faults.append(Fault("GetObjectTagging", action, times=None))
            proxy.faults.append(Fault("HeadBucket", action, times=None))
            for _ in range(2):
                assert service.fetch(bundle_id, sign(KEY, SMALL)).status_code == 503
                wait_until(lambda: service.http.get("/readyz").status_code == 503)
            proxy.faults.clear()
        assert service.fetch(bundle_id, sign(KEY, SMALL)).status_code == 200
    [denied, unreachable] = [
        record.getMessage() for record in caplog.records if record.name == "service.s3.calls"
    ]
    assert denied.startswith("S3 refuses GetObjectTagging: AccessDenied; check the credentials")
    assert unreachable.startswith("S3 cannot be reached for GetObjectTagging: ")
    assert "AWS_ENDPOINT_URL_S3" in unreachable
    assert bundle_id not in denied + unreachable


def test_upload_that_no_longer_exists_counts_as_aborted(proxied: Service, proxy: Proxy) -> None:
    proxy.faults.append(Fault("AbortMultipartUpload", NO_SUCH_UPLOAD))
    check_failed_upload(proxied, proxy, Fault("UploadPart", DENIED), LARGE)


@pytest.mark.only_tags
def test_failed_cleanup_is_retried_until_it_succeeds(
    start_service: StartService,
    proxy: Proxy,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The retries are logged once, not at every attempt.

    The test needs a new service, whose cleanup queue is empty and has logged nothing yet.
    """
    service = start_service(endpoint_url=proxy.url, part_size=PART)
    monkeypatch.setattr(background, "MAX_BACKOFF", background.MIN_BACKOFF)
    list_fault = Fault("ListMultipartUploads", DENIED, times=None)
    proxy.faults += [list_fault, Fault("DeleteObject", DENIED, times=None)]
    proxy.faults.append(Fault("PutObjectTagging", DENIED, times=2))
    for _ in range(2):
        assert upload(service, LARGE).status_code == 503
    wait_until(lambda: list_fault.injected >= 5)
    assert len(service.objects()) == 2
    proxy.faults.clear()
    wait_until(lambda: is_bucket_empty(service))
    assert caplog.text.count("retrying until it does") == 1


def test_upload_that_an_outage_interrupts_is_removed_afterwards(
    proxied: Service, proxy: Proxy
) -> None:
    proxy.faults.append(Fault("UploadPart", Delay(60), after=1))
    with ThreadPoolExecutor() as client:
        response = client.submit(upload, proxied, LARGE)
        wait_until(lambda: operations(proxy).count("UploadPart") == 2)
        proxy.disable()
        assert response.result().status_code == 503
    assert proxied.multipart_uploads()
    proxy.enable()
    wait_until(lambda: is_bucket_empty(proxied))
