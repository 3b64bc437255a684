"""Receipts, ranges, conditions, DELETE and X-TTL, on every store."""

import subprocess
import time
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from pathlib import Path
from uuid import UUID, uuid4

import httpx
import pytest

from service.bundles.proof import Proof, compute_receipt
from service.s3.bodies import MAX_RESUMES
from tests.support.clients.signing import digest, random_bytes, sign
from tests.support.polling import wait_until
from tests.support.proxy import Fault, Proxy, Respond, Truncate
from tests.support.services.thread import SMALL_PART, Service, StartService, running_service
from tests.support.stores import Store

KEY = "a signing key"
PART = SMALL_PART
SIZES = [1000, PART + 1000]


def content(size: int) -> bytes:
    return random_bytes(size, size)


def problem(response: httpx.Response) -> tuple[int, str]:
    return response.status_code, response.json()["code"]


def post(service: Service, bundle: bytes, **headers: str) -> httpx.Response:
    """Upload with headers whose names are written with `_` instead of `-`."""
    renamed = {name.replace("_", "-"): value for name, value in headers.items()}
    return service.http.post("/upload", content=bundle, headers=renamed)


def wait_for_receipt(service: Service, bundle_id: str) -> dict[str, str]:
    """Return the tags of a bundle once they have a receipt, which is stored in the background."""
    wait_until(lambda: "receipt" in service.record(bundle_id))
    return service.record(bundle_id)


@pytest.mark.every_store
@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_first_download_stores_a_receipt(service: Service, size: int, *, chunked: bool) -> None:
    bundle = content(size)
    proof = sign(KEY, bundle)
    bundle_id = service.upload(bundle, proof["X-HMAC"], chunked=chunked)
    original_tags = service.record(bundle_id)
    assert "receipt" not in original_tags
    assert service.fetch(bundle_id, {**proof, "X-SIGNING-KEY": "another"}).status_code == 401
    assert service.record(bundle_id) == original_tags
    assert service.fetch(bundle_id, proof).content == bundle
    expected = dict(original_tags)
    if service.records == "tags":  # Metadata cannot be changed without writing the object again.
        receipt = compute_receipt(Proof(proof["X-HMAC"], KEY.encode()), UUID(bundle_id))
        expected |= {"receipt": receipt}
        wait_for_receipt(service, bundle_id)
    assert service.record(bundle_id) == expected
    assert service.fetch(bundle_id, proof).content == bundle
    assert service.fetch(bundle_id, {**proof, "X-SIGNING-KEY": "another"}).status_code == 401
    assert service.record(bundle_id) == expected


def test_head_stores_a_receipt(service: Service) -> None:
    bundle = content(1000)
    bundle_id = service.upload(bundle, sign(KEY, bundle)["X-HMAC"])
    assert service.head(bundle_id, sign(KEY, bundle)).status_code == 200
    assert wait_for_receipt(service, bundle_id)


def test_bundle_without_an_hmac_gets_no_receipt(start_service: StartService) -> None:
    service = start_service(require_hmac=False)
    bundle = content(1000)
    bundle_id = service.upload(bundle)
    assert service.fetch(bundle_id, sign(KEY, bundle)).content == bundle
    tags = service.record(bundle_id)
    assert tags.keys() == {"size", "expires-at"}
    service.put_record(bundle_id, {**tags, "receipt": "0" * 64})
    assert service.fetch(bundle_id).status_code == 404


@pytest.fixture
def proxy(store: Store) -> Iterator[Proxy]:
    with Proxy(store.endpoint_url) as running:
        yield running


def test_download_succeeds_if_the_receipt_cannot_be_stored(
    store: Store, proxy: Proxy, start_service: StartService
) -> None:
    service = start_service(endpoint_url=proxy.url, part_size=PART)
    for size in SIZES:
        bundle = content(size)
        bundle_id = service.upload(bundle, sign(KEY, bundle)["X-HMAC"])
        proxy.faults = [Fault("PutObjectTagging", Respond(403, "AccessDenied"))]
        assert service.fetch(bundle_id, sign(KEY, bundle)).content == bundle
        wait_until(lambda: proxy.faults[0].injected == 1)
        assert "receipt" not in service.record(bundle_id)


@pytest.mark.every_store
@pytest.mark.parametrize("with_receipt", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_one_range_returns_part_of_a_bundle(
    service: Service, size: int, *, with_receipt: bool
) -> None:
    bundle = content(size)
    proof = sign(KEY, bundle)
    headers = proof if with_receipt else {"X-HMAC": proof["X-HMAC"]}
    headers["Repr-Digest"] = digest(bundle)
    ranges = [
        ("bytes=0-0", 0, 1),
        ("bytes=1-", 1, size),
        ("bytes=-7", size - 7, size),
        (f"bytes=400-{size + 5}", 400, size),
    ]
    for header, start, stop in ranges:
        bundle_id = service.http.post("/upload", content=bundle, headers=headers).text
        response = service.fetch(bundle_id, {**proof, "Range": header})
        assert response.status_code == 206
        assert response.content == bundle[start:stop]
        assert response.headers["Content-Length"] == str(stop - start)
        assert response.headers["Content-Range"] == f"bytes {start}-{stop - 1}/{size}"
        assert response.headers["Repr-Digest"] == digest(bundle)
    multiple_ranges = service.fetch(bundle_id, {**proof, "Range": "bytes=0-1,5-6"})
    assert (multiple_ranges.status_code, multiple_ranges.content) == (200, bundle)
    past_the_end = service.fetch(bundle_id, {**proof, "Range": f"bytes={size}-"})
    assert problem(past_the_end) == (416, "range_not_satisfiable")
    assert past_the_end.headers["Content-Range"] == f"bytes */{size}"
    head = service.head(bundle_id, {**proof, "Range": "bytes=0-0"})
    assert (head.status_code, head.headers["Content-Length"]) == (200, str(size))


@pytest.mark.every_store
@pytest.mark.parametrize("size", SIZES)
def test_conditions_are_checked_after_the_proof(service: Service, size: int) -> None:
    bundle = content(size)
    proof = sign(KEY, bundle)
    bundle_id = post(service, bundle, Content_Digest=digest(bundle), **proof).text
    head = service.head(bundle_id, proof)
    etag, modified = head.headers["ETag"], head.headers["Last-Modified"]
    assert head.headers["Accept-Ranges"] == "bytes"
    assert head.headers["Repr-Digest"] == digest(bundle)
    for condition in (etag, "*", f'"other", {etag}'):
        assert service.fetch(bundle_id, {**proof, "If-Match": condition}).content == bundle
    for method in ("GET", "HEAD", "DELETE"):
        response = service.http.request(
            method, f"/files/{bundle_id}", headers={**proof, "If-Match": '"other"'}
        )
        assert response.status_code == 412
        wrong = {**sign("another key", bundle), "If-Match": '"other"', "Range": "bytes=99999999-"}
        assert service.http.request(method, f"/files/{bundle_id}", headers=wrong).status_code == 401
    failing_both = {**proof, "If-Match": '"other"', "Range": "bytes=99999999-"}
    assert problem(service.fetch(bundle_id, failing_both)) == (412, "precondition_failed")
    for validator, status in ((etag, 206), (modified, 206), ('"other"', 200)):
        partial = {**proof, "Range": "bytes=0-4", "If-Range": validator}
        assert service.fetch(bundle_id, partial).status_code == status


@pytest.mark.every_store
@pytest.mark.parametrize("with_receipt", [False, True])
def test_delete_with_proof_removes_the_bundle(service: Service, *, with_receipt: bool) -> None:
    bundle = content(1000)
    proof = sign(KEY, bundle)
    headers = proof if with_receipt else {"X-HMAC": proof["X-HMAC"]}
    bundle_id = service.http.post("/upload", content=bundle, headers=headers).text

    def delete(headers: dict[str, str]) -> httpx.Response:
        return service.http.delete(f"/files/{bundle_id}", headers=headers)

    assert problem(delete({})) == (400, "missing_header")
    assert problem(delete({"X-HMAC": proof["X-HMAC"]})) == (400, "missing_header")
    assert problem(delete({**proof, "X-SIGNING-KEY": "another"})) == (401, "invalid_hmac")
    assert service.fetch(bundle_id, proof).content == bundle
    response = delete(proof)
    assert (response.status_code, response.content) == (204, b"")
    assert "Content-Length" not in response.headers
    assert problem(delete(proof)) == (404, "not_found")
    assert problem(service.fetch(bundle_id, proof)) == (404, "not_found")
    assert not [key for key in service.objects() if bundle_id in key]


def test_delete_always_needs_both_headers(start_service: StartService) -> None:
    service = start_service(require_hmac=False)
    bundle_id = service.upload(b"bundle")
    assert problem(service.http.delete(f"/files/{bundle_id}")) == (400, "missing_header")
    assert service.fetch(bundle_id).status_code == 200
    response = service.http.delete(f"/files/{bundle_id}", headers=sign(KEY, b"bundle"))
    assert response.status_code == 204
    assert service.fetch(bundle_id).status_code == 404


def test_delete_is_repeated_until_the_object_is_removed(
    proxy: Proxy, start_service: StartService
) -> None:
    """On Ceph, tags that are written during a delete can bring the object back."""
    service = start_service(endpoint_url=proxy.url)
    proof = sign(KEY, b"bundle")
    bundle_id = service.http.post("/upload", content=b"bundle", headers=proof).text
    ineffective = Fault("DeleteObject", Respond(204, "NothingDeleted"), times=2)
    proxy.faults.append(ineffective)
    assert service.http.delete(f"/files/{bundle_id}", headers=proof).status_code == 204
    assert ineffective.injected == 2
    assert not service.objects()


@pytest.mark.every_store
def test_bundle_is_not_found_after_its_ttl_for_any_method(service: Service) -> None:
    bundle = content(1000)
    proof = sign(KEY, bundle)
    started = time.time()
    response = post(service, bundle, X_TTL="2", X_HMAC=proof["X-HMAC"])
    sunset = parsedate_to_datetime(response.headers["Sunset"]).timestamp()
    assert started + 2 <= sunset <= time.time() + 3
    path = f"/files/{response.text}"
    assert service.fetch(response.text, proof).headers["Sunset"] == response.headers["Sunset"]
    while (download := service.fetch(response.text, proof)).status_code == 200:
        assert time.time() < sunset + 1
        time.sleep(0.02)
    assert time.time() >= sunset
    assert problem(download) == (404, "not_found")
    for method in ("GET", "HEAD", "DELETE"):
        assert service.http.request(method, path, headers=proof).status_code == 404
    assert any(response.text in key for key in service.objects())


def test_ttl_must_be_between_one_second_and_the_retention(start_service: StartService) -> None:
    service = start_service(retention="1h")
    for valid in ("1", "3600", "03600"):
        assert post(service, b"bundle", X_TTL=valid).status_code == 200
    for invalid in ("0", "3601", "-1", "1.5", "1h", "", "+1", "1e3", "9" * 30, "٣"):
        response = service.http.post(
            "/upload", content=b"bundle", headers={b"X-TTL": invalid.encode()}
        )
        assert problem(response) == (400, "malformed_header"), invalid


@pytest.mark.every_store
def test_curl_resumes_an_interrupted_download(
    store: Store, s3: object, proxy: Proxy, tmp_path: Path
) -> None:
    bundle = content(2 * PART)
    proof = sign(KEY, bundle)
    headers = [argument for name in proof for argument in ("-H", f"{name}: {proof[name]}")]
    with running_service(store, s3, endpoint_url=proxy.url) as service:
        bundle_id = service.http.post("/upload", content=bundle, headers=proof).text
        curl = ["curl", "-sS", "--fail", *headers, "-o", str(tmp_path / "bundle")]
        url = f"{service.url}/files/{bundle_id}"
        proxy.faults.append(Fault("GetObject", Truncate(len(bundle) * 2 // 5)))
        proxy.faults.append(Fault("GetObject", Truncate(0), times=MAX_RESUMES))
        assert subprocess.run([*curl, url], check=False, capture_output=True).returncode == 18
        assert 0 < (tmp_path / "bundle").stat().st_size < len(bundle)
        subprocess.run([*curl, "-C", "-", url], check=True)
    assert (tmp_path / "bundle").read_bytes() == bundle


def test_unknown_bundle_is_not_found_for_any_method(service: Service) -> None:
    for method in ("GET", "DELETE"):
        response = service.http.request(method, f"/files/{uuid4()}", headers=sign(KEY, b""))
        assert problem(response) == (404, "not_found")
