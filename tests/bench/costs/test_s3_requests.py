"""Every request of a client makes only the S3 requests that it needs."""

from collections.abc import Iterator
from uuid import uuid4

import pytest

from tests.support.clients.signing import random_bytes, sign
from tests.support.polling import wait_until
from tests.support.proxy import Proxy
from tests.support.services.thread import Service, StartService
from tests.support.stores import Store

KEY = "a signing key"
PART_SIZE = 8 << 20
ONE_PART, TWO_PARTS = (random_bytes(size, size) for size in (PART_SIZE, 12 << 20))
"""With the default part size, and if their length is unknown."""


@pytest.fixture
def proxy(store: Store) -> Iterator[Proxy]:
    with Proxy(store.endpoint_url) as proxy:
        yield proxy


@pytest.fixture
def proxied(proxy: Proxy, start_service: StartService) -> Service:
    """A service with the default part size, which reaches S3 through the proxy."""
    service = start_service(endpoint_url=proxy.url)
    proxy.requests.clear()
    return service


def take_operations(proxy: Proxy, *, after: str | None = None) -> list[str]:
    """Return the S3 operations since the last call, and forget them; first wait for one of them.

    They are sorted, because several can be on their way at the same time.
    """
    wait_until(lambda: after in {None, *(request.operation for request in proxy.requests)})
    operations = sorted(request.operation for request in proxy.requests)
    proxy.requests.clear()
    return operations


MULTIPART = [
    *("CompleteMultipartUpload", "CreateMultipartUpload", "PutObjectTagging"),
    *["UploadPart"] * 2,
]


@pytest.mark.parametrize(
    ("bundle", "in_parts"),
    [(ONE_PART, ["PutObject"]), (TWO_PARTS, MULTIPART)],
    ids=["8 MiB", "12 MiB"],
)
def test_each_request_makes_only_the_necessary_s3_requests(
    proxied: Service, proxy: Proxy, bundle: bytes, in_parts: list[str]
) -> None:
    proof = sign(KEY, bundle)
    bundle_id = proxied.upload(bundle, proof["X-HMAC"])
    assert take_operations(proxy) == ["PutObject"]
    assert proxied.http.post("/upload", content=iter([bundle])).status_code == 200
    uploads = [
        request for request in proxy.requests if request.operation in {"PutObject", "UploadPart"}
    ]
    assert not any("expect" in request.headers for request in proxy.requests)
    digests = {request.headers["x-amz-content-sha256"] for request in uploads}
    assert digests == {"UNSIGNED-PAYLOAD"}
    assert take_operations(proxy) == in_parts
    assert proxied.http.post("/upload", files={"file": bundle}).status_code == 200
    assert take_operations(proxy) == in_parts

    assert proxied.fetch(bundle_id, proof).content == bundle
    assert take_operations(proxy, after="PutObjectTagging") == [
        *("GetObject", "GetObjectTagging", "PutObjectTagging")
    ]
    assert proxied.fetch(bundle_id, proof).content == bundle
    assert take_operations(proxy) == ["GetObject", "GetObjectTagging"]
    assert proxied.fetch(bundle_id, {**proof, "X-SIGNING-KEY": "another key"}).status_code == 401
    assert take_operations(proxy) == ["GetObject", "GetObjectTagging"]
    assert proxied.fetch(bundle_id, {**proof, "Range": "bytes=5-9"}).content == bundle[5:10]
    assert [request.sent for request in proxy.requests if request.operation == "GetObject"] == [5]
    assert take_operations(proxy) == ["GetObject", "GetObjectTagging", "HeadObject"]
    assert proxied.head(bundle_id, proof).status_code == 200
    assert take_operations(proxy) == ["GetObjectTagging", "HeadObject"]
    assert proxied.http.delete(f"/files/{bundle_id}", headers=proof).status_code == 204
    assert take_operations(proxy) == [
        *("DeleteObject", "GetObjectTagging", "HeadObject", "HeadObject")
    ]
    assert proxied.fetch(str(uuid4()), proof).status_code == 404
    # GetObject is cancelled, but it may be on its way already.
    assert set(take_operations(proxy)) | {"GetObject"} == {"GetObject", "GetObjectTagging"}


def test_first_download_reads_a_bundle_twice_if_it_does_not_fit_in_the_free_memory(
    proxy: Proxy, start_service: StartService
) -> None:
    service = start_service(endpoint_url=proxy.url, memory_budget=2 * PART_SIZE)
    proof = sign(KEY, ONE_PART)
    bundle_id = service.upload(ONE_PART, proof["X-HMAC"])
    proxy.requests.clear()
    assert service.fetch(bundle_id, proof).content == ONE_PART
    gets = [request for request in proxy.requests if request.operation == "GetObject"]
    assert ["if-match" in get.headers for get in gets] == [False, True]
    assert take_operations(proxy, after="PutObjectTagging") == [
        *("GetObject", "GetObject", "GetObjectTagging", "PutObjectTagging")
    ]


def test_upload_with_a_key_makes_the_first_download_as_cheap_as_later_ones(
    proxied: Service, proxy: Proxy
) -> None:
    """The service can then create the receipt before the upload."""
    proof = sign(KEY, ONE_PART)
    response = proxied.http.post("/upload", content=ONE_PART, headers=proof)
    assert take_operations(proxy) == ["PutObject"]
    assert proxied.fetch(response.text, proof).content == ONE_PART
    assert take_operations(proxy) == ["GetObject", "GetObjectTagging"]


def test_refused_upload_of_one_chunk_sends_nothing_to_s3(proxied: Service, proxy: Proxy) -> None:
    wrong_proof = {**sign(KEY, ONE_PART), "X-HMAC": "0" * 64}
    response = proxied.http.post("/upload", content=ONE_PART[:1000], headers=wrong_proof)
    assert response.status_code == 422
    assert take_operations(proxy) == []
    response = proxied.http.post("/upload", content=ONE_PART, headers=wrong_proof)
    assert response.status_code == 422
    assert take_operations(proxy, after="DeleteObject") == ["DeleteObject", "PutObject"]


def test_bundle_one_byte_larger_than_a_part_is_uploaded_in_two_parts(
    proxied: Service, proxy: Proxy
) -> None:
    proxied.http.post("/upload", content=iter([ONE_PART, b"1"]))
    assert take_operations(proxy) == MULTIPART
