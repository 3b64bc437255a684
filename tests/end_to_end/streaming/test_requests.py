"""Which requests to S3 a transfer needs, and which of them are sent at the same time."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from uuid import uuid4

import httpx
import pytest

from tests.support.clients.signing import random_bytes, sign
from tests.support.polling import wait_until
from tests.support.proxy import Fault, Hold, Proxy
from tests.support.services.thread import SMALL_PART, Service, StartService
from tests.support.stores import Store

KEY = "a signing key"
MIB = 1 << 20
PART = SMALL_PART


@pytest.fixture
def proxy(store: Store) -> Iterator[Proxy]:
    with Proxy(store.endpoint_url) as running:
        yield running


@pytest.fixture
def service(proxy: Proxy, start_service: StartService) -> Service:
    running = start_service(endpoint_url=proxy.url, part_size=PART)
    proxy.requests.clear()
    return running


def requests(proxy: Proxy) -> list[str]:
    """Return the operations of all requests so far, and forget them."""
    operations = [request.operation for request in proxy.requests]
    proxy.requests.clear()
    return operations


def send_while_s3_waits(
    proxy: Proxy, operations: list[str], send: Callable[[], httpx.Response]
) -> httpx.Response:
    """Send a request of which S3 has to receive all these operations before it answers one."""
    hold = Hold()
    proxy.faults += [Fault(operation, hold) for operation in operations]
    with ThreadPoolExecutor(1) as thread:
        response = thread.submit(send)
        try:
            wait_until(lambda: sorted(r.operation for r in proxy.requests) == operations)
        finally:
            hold.release.set()
        return response.result(timeout=30)


@pytest.mark.parametrize("size", [1, 1000, PART - 1, PART, PART + 1, 30 * MIB])
def test_upload_with_a_length_is_one_request(service: Service, proxy: Proxy, size: int) -> None:
    bundle = random_bytes(size, size)
    service.upload(bundle, sign(KEY, bundle)["X-HMAC"])
    assert requests(proxy) == ["PutObject"]


@pytest.mark.parametrize("size", [1, 1000, PART - 1, PART])
def test_chunked_upload_up_to_one_part_is_one_request(
    service: Service, proxy: Proxy, size: int
) -> None:
    service.upload(bytes(size), chunked=True)
    assert requests(proxy) == ["PutObject"]


@pytest.mark.parametrize(("size", "parts"), [(PART + 1, 2), (2 * PART, 2), (11 * MIB, 3)])
def test_longer_chunked_upload_is_a_multipart_upload(
    service: Service, proxy: Proxy, size: int, parts: int
) -> None:
    service.upload(bytes(size), chunked=True)
    assert requests(proxy) == [
        "CreateMultipartUpload",
        *["UploadPart"] * parts,
        "CompleteMultipartUpload",
        "PutObjectTagging",
    ]


@pytest.mark.parametrize("size", [1000, 11 * MIB])
def test_first_download_is_two_requests_at_once_and_one_in_the_background(
    service: Service, proxy: Proxy, size: int
) -> None:
    bundle = random_bytes(size, size)
    bundle_id = service.upload(bundle, sign(KEY, bundle)["X-HMAC"])
    requests(proxy)
    receipt = Hold()
    proxy.faults.append(Fault("PutObjectTagging", receipt))
    operations = ["GetObject", "GetObjectTagging"]
    try:
        response = send_while_s3_waits(
            proxy, operations, lambda: service.fetch(bundle_id, sign(KEY, bundle))
        )
        assert response.content == bundle
        wait_until(lambda: len(proxy.requests) == 3)
        assert "receipt" not in service.record(bundle_id)
    finally:
        receipt.release.set()
    wait_until(lambda: "receipt" in service.record(bundle_id))
    assert requests(proxy)[2:] == ["PutObjectTagging"]


@pytest.mark.parametrize("size", [1000, 11 * MIB])
def test_later_download_is_two_requests_at_once(service: Service, proxy: Proxy, size: int) -> None:
    bundle = random_bytes(size, size)
    proof = sign(KEY, bundle)
    bundle_id = service.http.post("/upload", content=bundle, headers=proof).text
    requests(proxy)
    operations = ["GetObject", "GetObjectTagging"]
    response = send_while_s3_waits(proxy, operations, lambda: service.fetch(bundle_id, proof))
    assert response.content == bundle
    assert requests(proxy)[2:] == []


@pytest.mark.parametrize(
    ("method", "headers", "then"),
    [
        ("HEAD", {}, []),
        ("GET", {"Range": "bytes=10-19"}, ["GetObject"]),
        ("GET", {"If-Match": "*"}, ["GetObject"]),
    ],
    ids=["HEAD", "range", "condition"],
)
def test_head_range_and_condition_read_the_tags_and_the_metadata_at_once(
    service: Service, proxy: Proxy, method: str, headers: dict[str, str], then: list[str]
) -> None:
    bundle = random_bytes(1, 1000)
    proof = sign(KEY, bundle)
    bundle_id = service.http.post("/upload", content=bundle, headers=proof).text
    requests(proxy)

    def send() -> httpx.Response:
        return service.http.request(method, f"/files/{bundle_id}", headers={**proof, **headers})

    assert send_while_s3_waits(proxy, ["GetObjectTagging", "HeadObject"], send).is_success
    assert requests(proxy)[2:] == then


def test_bundle_that_does_not_exist_is_two_requests_at_most(service: Service, proxy: Proxy) -> None:
    """GetObject is cancelled, but it may be on its way already."""
    assert service.fetch(str(uuid4()), sign(KEY, b"bundle")).status_code == 404
    assert set(requests(proxy)) <= {"GetObject", "GetObjectTagging"}


def test_wrong_key_is_two_requests_at_once(service: Service, proxy: Proxy) -> None:
    bundle = random_bytes(1, 1000)
    proof = sign(KEY, bundle)
    for headers in ({"X-HMAC": proof["X-HMAC"]}, proof):
        bundle_id = service.http.post("/upload", content=bundle, headers=headers).text
        requests(proxy)
        wrong = {**proof, "X-SIGNING-KEY": "another key"}
        assert service.fetch(bundle_id, wrong).status_code == 401
        assert sorted(requests(proxy)) == ["GetObject", "GetObjectTagging"]


def test_first_download_reads_a_bundle_twice_if_it_does_not_fit_in_the_free_memory(
    proxy: Proxy, start_service: StartService
) -> None:
    bundle = random_bytes(1, 8 * MIB)
    proof = sign(KEY, bundle)
    service = start_service(endpoint_url=proxy.url, memory_budget=16 * MIB)
    bundle_id = service.upload(bundle, proof["X-HMAC"])
    proxy.requests.clear()
    assert service.fetch(bundle_id, proof).content == bundle
    wait_until(lambda: "receipt" in service.record(bundle_id))
    reads = [request for request in proxy.requests if request.operation == "GetObject"]
    assert ["if-match" in request.headers for request in reads] == [False, True]
    assert sorted(requests(proxy)) == [
        *("GetObject", "GetObject", "GetObjectTagging", "PutObjectTagging")
    ]


def test_range_reads_only_its_bytes(service: Service, proxy: Proxy) -> None:
    bundle = random_bytes(1, 11 * MIB)
    proof = sign(KEY, bundle)
    bundle_id = service.http.post("/upload", content=bundle, headers=proof).text
    response = service.fetch(bundle_id, {**proof, "Range": "bytes=5-9"})
    assert response.content == bundle[5:10]
    sent = [request.sent for request in proxy.requests if request.operation == "GetObject"]
    assert sent == [5]


def test_delete_reads_no_body_and_looks_twice(service: Service, proxy: Proxy) -> None:
    bundle = random_bytes(1, 1000)
    proof = sign(KEY, bundle)
    bundle_id = service.http.post("/upload", content=bundle, headers=proof).text
    requests(proxy)
    assert service.http.delete(f"/files/{bundle_id}", headers=proof).status_code == 204
    assert sorted(requests(proxy)) == [
        *("DeleteObject", "GetObjectTagging", "HeadObject", "HeadObject")
    ]


@pytest.mark.parametrize("size", [1000, PART + 1])
def test_form_needs_the_same_requests_as_a_chunked_body(
    service: Service, proxy: Proxy, size: int
) -> None:
    service.upload(bytes(size), chunked=True)
    chunked = requests(proxy)
    service.http.post("/upload", files={"file": bytes(size)}).raise_for_status()
    assert requests(proxy) == chunked


def test_uploads_are_not_signed_and_do_not_wait_for_a_100_response(
    service: Service, proxy: Proxy
) -> None:
    for chunked in (False, True):
        service.upload(bytes(PART + 1), chunked=chunked)
    assert not any("expect" in request.headers for request in proxy.requests)
    digests = [
        request.headers["x-amz-content-sha256"]
        for request in proxy.requests
        if request.operation in {"PutObject", "UploadPart"}
    ]
    assert digests == ["UNSIGNED-PAYLOAD"] * 3


@pytest.mark.parametrize(
    ("size", "operations"), [(1000, []), (8 * MIB, ["DeleteObject", "PutObject"])]
)
def test_refused_upload_of_one_chunk_sends_nothing_to_s3(
    service: Service, proxy: Proxy, size: int, operations: list[str]
) -> None:
    bundle = random_bytes(size, size)
    wrong = {**sign(KEY, bundle), "X-HMAC": "0" * 64}
    assert service.http.post("/upload", content=bundle, headers=wrong).status_code == 422
    wait_until(lambda: len(proxy.requests) >= len(operations))
    assert sorted(requests(proxy)) == operations
