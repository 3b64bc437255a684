"""Which requests to S3 a transfer needs, and which of them are sent at the same time."""

import time
from collections.abc import Iterator
from uuid import uuid4

import pytest

from tests.support.clients.signing import random_bytes, sign
from tests.support.polling import wait_until
from tests.support.proxy import Delay, Fault, Proxy
from tests.support.services.thread import SMALL_PART, Service, StartService
from tests.support.stores import Store

KEY = "a signing key"
MIB = 1 << 20
PART = SMALL_PART
DELAY = 0.5
"""Seconds that S3 takes for a delayed request."""


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
    for operation in ("GetObject", "GetObjectTagging", "PutObjectTagging"):
        proxy.faults.append(Fault(operation, Delay(DELAY)))
    started = time.monotonic()
    assert service.fetch(bundle_id, sign(KEY, bundle)).content == bundle
    assert DELAY < time.monotonic() - started < 2 * DELAY
    wait_until(lambda: "receipt" in service.record(bundle_id))
    operations = requests(proxy)
    assert sorted(operations[:2]) == ["GetObject", "GetObjectTagging"]
    assert operations[2:] == ["PutObjectTagging"]


@pytest.mark.parametrize("size", [1000, 11 * MIB])
def test_later_download_is_two_requests_at_once(service: Service, proxy: Proxy, size: int) -> None:
    bundle = random_bytes(size, size)
    proof = sign(KEY, bundle)
    bundle_id = service.http.post("/upload", content=bundle, headers=proof).text
    requests(proxy)
    for operation in ("GetObject", "GetObjectTagging"):
        proxy.faults.append(Fault(operation, Delay(DELAY)))
    started = time.monotonic()
    assert service.fetch(bundle_id, proof).content == bundle
    assert DELAY < time.monotonic() - started < 2 * DELAY
    assert sorted(requests(proxy)) == ["GetObject", "GetObjectTagging"]


def test_head_range_and_condition_read_the_tags_and_the_metadata_at_once(
    service: Service, proxy: Proxy
) -> None:
    bundle = random_bytes(1, 1000)
    proof = sign(KEY, bundle)
    bundle_id = service.http.post("/upload", content=bundle, headers=proof).text
    for method, headers, operations in (
        ("HEAD", {}, []),
        ("GET", {"Range": "bytes=10-19"}, ["GetObject"]),
        ("GET", {"If-Match": "*"}, ["GetObject"]),
    ):
        requests(proxy)
        for operation in ("HeadObject", "GetObjectTagging"):
            proxy.faults.append(Fault(operation, Delay(DELAY)))
        started = time.monotonic()
        response = service.http.request(method, f"/files/{bundle_id}", headers={**proof, **headers})
        assert response.is_success
        assert DELAY < time.monotonic() - started < 2 * DELAY
        sent = requests(proxy)
        assert sorted(sent[:2]) == ["GetObjectTagging", "HeadObject"]
        assert sent[2:] == operations


def test_bundle_that_does_not_exist_is_two_requests_at_most(service: Service, proxy: Proxy) -> None:
    assert service.fetch(str(uuid4()), sign(KEY, b"bundle")).status_code == 404
    assert set(requests(proxy)) <= {"GetObject", "GetObjectTagging"}
