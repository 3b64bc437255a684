"""Checks of an upload: its length, digests, HMAC and expiry.

The last bytes are held back until all checks have succeeded, so S3 does not create the object.
"""

import socket
import time
from collections.abc import Iterator
from uuid import UUID

import httpx
import pytest

from service.bundles.proof import Proof, compute_receipt
from tests.support.clients.signing import digest, random_bytes, sign
from tests.support.clients.sockets import begin_upload, raw_request, read_until_closed
from tests.support.polling import wait_until
from tests.support.proxy import Proxy
from tests.support.services.thread import SMALL_PART, Service, StartService
from tests.support.stores import Store

KEY = "a signing key"
MIB = 1 << 20
SIZES = [1000, SMALL_PART + 1000]


def content(size: int) -> bytes:
    return random_bytes(size, size)


def problem(response: httpx.Response) -> tuple[int, str]:
    return response.status_code, response.json()["code"]


def post(
    service: Service, bundle: bytes, headers: dict[str, str], *, chunked: bool = False
) -> httpx.Response:
    body = iter([bundle]) if chunked else bundle
    return service.http.post("/upload", content=body, headers=headers)


def is_empty(service: Service) -> bool:
    return not service.objects() and not service.multipart_uploads()


@pytest.fixture
def proxy(store: Store) -> Iterator[Proxy]:
    with Proxy(store.endpoint_url) as running:
        yield running


def check_no_object_was_put(service: Service, proxy: Proxy, size: int) -> None:
    """Check that no PutObject got its last byte, and that the bucket is empty."""
    puts = [request for request in proxy.requests if request.operation == "PutObject"]
    assert all(request.received < size and request.status is None for request in puts)
    wait_until(lambda: is_empty(service))


@pytest.mark.parametrize("size", [1, 1000, 300_000, 12 * MIB])
@pytest.mark.parametrize("mistake", ["digest", "HMAC"])
def test_put_object_never_gets_its_last_byte_if_a_check_fails(
    proxy: Proxy, start_service: StartService, size: int, mistake: str
) -> None:
    """The last byte of the bundle is wrong."""
    service, bundle = start_service(endpoint_url=proxy.url), content(size)
    headers = {"Repr-Digest": digest(bundle)} if mistake == "digest" else sign(KEY, bundle)
    response = post(service, bundle[:-1] + bytes([bundle[-1] ^ 1]), headers)
    assert problem(response) == (422, f"{mistake.lower()}_mismatch")
    check_no_object_was_put(service, proxy, size)


@pytest.mark.parametrize("size", [1, 1000, 300_000, 12 * MIB])
def test_put_object_never_gets_its_last_byte_if_the_client_sends_one_too_few(
    proxy: Proxy, start_service: StartService, size: int
) -> None:
    service = start_service(endpoint_url=proxy.url)
    with begin_upload(service.url, content(size)[:-1], size) as connection:
        connection.shutdown(socket.SHUT_WR)
        assert b" 200 " not in read_until_closed(connection).split(b"\r\n")[0]
    aborted = 'history_uploads_aborted_total{reason="client_gone"}'
    wait_until(lambda: service.metrics().get(aborted) == 1)
    check_no_object_was_put(service, proxy, size)


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_upload_that_ends_after_its_expiry_times_out(
    proxy: Proxy, start_service: StartService, size: int, *, chunked: bool
) -> None:
    now = time.time()
    service = start_service(endpoint_url=proxy.url, clock=lambda: now, part_size=SMALL_PART)
    bundle = content(size)

    def body() -> Iterator[bytes]:
        nonlocal now
        yield bundle[:-100]
        wait_until(lambda: service.metrics()['history_memory_used_bytes{pool="windows"}'] > 0)
        now += 3
        yield bundle[-100:]

    headers = {"X-TTL": "2"} | ({} if chunked else {"Content-Length": str(size)})
    response = service.http.post("/upload", content=body(), headers=headers)
    assert problem(response) == (408, "upload_timeout")
    check_no_object_was_put(service, proxy, size)


@pytest.mark.every_store
@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_upload_with_a_signing_key_is_verified_at_once(
    service: Service, size: int, *, chunked: bool
) -> None:
    bundle = content(size)
    proof = sign(KEY, bundle)
    service.delete_objects()
    wrong = [{**proof, "X-SIGNING-KEY": "another"}, {**proof, "X-HMAC": "0" * 64}]
    for headers in wrong:
        response = post(service, bundle, headers, chunked=chunked)
        assert problem(response) == (422, "hmac_mismatch")
    wait_until(lambda: is_empty(service))
    bundle_id = post(service, bundle, proof, chunked=chunked).text
    expected = compute_receipt(Proof(proof["X-HMAC"], KEY.encode()), UUID(bundle_id))
    assert service.record(bundle_id)["receipt"] == expected
    assert service.fetch(bundle_id, proof).content == bundle


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ["Content-Digest", "Repr-Digest"])
def test_digest_is_checked_during_the_upload(
    service: Service, size: int, name: str, *, chunked: bool
) -> None:
    """Downloads have the digest only if the upload had one that is supported."""
    bundle, supported = content(size), digest(content(size))
    service.delete_objects()
    for wrong in (digest(b"other"), f"sha-512=:AAAA:, {digest(b'other')}"):
        response = post(service, bundle, {name: wrong}, chunked=chunked)
        assert problem(response) == (422, "digest_mismatch")
    wait_until(lambda: is_empty(service))
    for right in (supported, f"sha-512=:AAAA:, {supported}", "sha-512=:AAAA:"):
        response = post(service, bundle, {name: right}, chunked=chunked)
        assert response.status_code == 200
        download = service.fetch(response.text, sign(KEY, bundle))
        expected = supported if supported in right else None
        assert download.headers.get("Repr-Digest") == expected


def test_malformed_digest_or_digest_of_a_form_is_refused(service: Service) -> None:
    for invalid in ("sha-256=abc", "sha-256=:AAAA:", "", "what"):
        assert problem(post(service, b"bundle", {"Repr-Digest": invalid})) == (
            400,
            "malformed_header",
        )
    for name in ("Content-Digest", "Repr-Digest"):
        form = service.http.post(
            "/upload", files={"file": b"bundle"}, headers={name: digest(b"bundle")}
        )
        assert problem(form) == (400, "malformed_header")
    repeated_header = raw_request(
        service.url,
        b"POST /upload HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 6\r\n"
        b"Repr-Digest: sha-512=:AAAA:\r\nRepr-Digest: %b\r\n\r\nbundle" % digest(b"other").encode(),
    )
    assert b"digest_mismatch" in repeated_header


def test_digest_mismatch_is_reported_before_hmac_mismatch(service: Service) -> None:
    headers = {**sign("another key", b"other"), "Repr-Digest": digest(b"other")}
    response = service.http.post("/upload", content=b"bundle", headers=headers)
    assert problem(response) == (422, "digest_mismatch")


def test_headers_are_checked_before_the_length(start_service: StartService) -> None:
    service = start_service(max_bundle_size=10)
    for headers in ({"X-TTL": "0"}, {"Repr-Digest": "x"}, {"X-HMAC": "x"}, {"X-SIGNING-KEY": "x"}):
        assert service.http.post("/upload", content=bytes(11), headers=headers).status_code == 400
    assert problem(post(service, bytes(11), {"X-TTL": "1"})) == (413, "bundle_too_large")
