"""Uploads and downloads through a real service, on every store."""

import hashlib
import hmac
import subprocess
import time
from email.utils import parsedate_to_datetime
from pathlib import Path
from uuid import UUID, uuid4

import minio
import pytest

from tests.support.clients.signing import digest, random_bytes, sign
from tests.support.clients.sockets import begin_chunked_upload, begin_upload, raw_request
from tests.support.polling import wait_until
from tests.support.services.thread import SMALL_PART, Service, StartService
from tests.support.stores import Store

pytestmark = pytest.mark.every_store

KEY = "a signing key"
MIB = 1 << 20
PART = SMALL_PART


def content(size: int) -> bytes:
    return random_bytes(size, size)


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("size", [1, 100_000, PART - 1, PART, PART + 1, 2 * PART, 11 * MIB])
def test_download_returns_the_uploaded_bundle(
    service: Service, size: int, *, chunked: bool
) -> None:
    bundle = content(size)
    bundle_id = service.upload(bundle, sign(KEY, bundle)["X-HMAC"], chunked=chunked)
    response = service.fetch(bundle_id, sign(KEY, bundle))
    assert response.status_code == 200
    assert response.content == bundle


def test_chunked_upload_without_headers_is_accepted(service: Service) -> None:
    bundle = content(3 * MIB)
    pieces = (bundle[start : start + 8192] for start in range(0, len(bundle), 8192))
    response = service.http.post("/upload", content=pieces)
    assert response.status_code == 200
    assert service.fetch(response.text, sign(KEY, bundle)).content == bundle


@pytest.mark.parametrize("size", [10, PART + 10])
def test_form_upload_stores_the_file_part(service: Service, size: int) -> None:
    bundle = content(size)
    response = service.http.post(
        "/upload",
        data={"note": "beside the file"},
        files={"file": ("bundle.aes", bundle, "application/octet-stream")},
        headers={"X-HMAC": sign(KEY, bundle)["X-HMAC"]},
    )
    assert response.status_code == 200
    assert service.fetch(response.text, sign(KEY, bundle)).content == bundle


@pytest.mark.parametrize("digest_claimed", [False, True])
@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("size", [1000, PART + 1000])
def test_object_has_the_documented_tags_and_content(
    service: Service, size: int, *, chunked: bool, digest_claimed: bool
) -> None:
    bundle, started, week = content(size), time.time(), 7 * 86_400
    headers = {"X-HMAC": sign(KEY, bundle)["X-HMAC"].upper()}
    if digest_claimed:
        headers["Repr-Digest"] = digest(bundle)
    body = iter([bundle]) if chunked else bundle
    bundle_id = service.http.post("/upload", content=body, headers=headers).text
    tags = service.record(bundle_id)
    assert started + week <= int(tags.pop("expires-at")) <= time.time() + week + 1
    expected = {"hmac-sha256": headers["X-HMAC"].lower()}
    expected |= {"sha256": hashlib.sha256(bundle).hexdigest()} if digest_claimed else {}
    expected |= {} if chunked and size > PART else {"size": str(size)}
    assert tags == expected
    stored = service.s3.get_object(Bucket=service.bucket, Key=f"bundles/{bundle_id}")
    assert stored["Body"].read() == bundle


def test_record_is_readable_by_another_s3_client(service: Service, store: Store) -> None:
    """minio-py reads the record, so it does not depend on how botocore writes or reads it."""
    bundle = content(PART + 5)
    bundle_id = service.upload(bundle, sign(KEY, bundle)["X-HMAC"])
    client = minio.Minio(
        store.endpoint_url.removeprefix("http://"),
        access_key=store.access_key,
        secret_key=store.secret_key,
        secure=False,
        region=store.region,
    )
    key = f"{service.prefix}{bundle_id}"
    if service.records == "metadata":
        metadata = client.stat_object(bucket_name=service.bucket, object_name=key).metadata
        record = {name.lower(): value for name, value in (metadata or {}).items()}
        stored = record["x-amz-meta-history-hmac-sha256"]
    else:
        tags = client.get_object_tags(bucket_name=service.bucket, object_name=key)
        assert tags is not None
        stored = tags["hmac-sha256"]
    assert stored == sign(KEY, bundle)["X-HMAC"]


def test_upload_response_has_id_location_and_sunset(service: Service) -> None:
    response = service.http.post("/upload", content=b"bundle")
    assert response.headers["Content-Type"] == "text/plain; charset=utf-8"
    assert str(UUID(response.text, version=4)) == response.text
    assert response.headers["Location"] == f"/files/{response.text}"
    expires_at = int(service.record(response.text)["expires-at"])
    assert parsedate_to_datetime(response.headers["Sunset"]).timestamp() == expires_at


@pytest.mark.parametrize("size", [1000, PART + 1000])
def test_download_has_the_documented_headers(service: Service, size: int) -> None:
    bundle = content(size)
    bundle_id = service.upload(bundle, sign(KEY, bundle)["X-HMAC"])
    download = service.fetch(bundle_id, sign(KEY, bundle))
    head = service.head(bundle_id, sign(KEY, bundle))
    assert head.status_code == 200
    assert not head.content
    for response in (download, head):
        headers = response.headers
        assert headers["Content-Type"] == "application/octet-stream"
        assert headers["Content-Length"] == str(size)
        assert "Content-Encoding" not in headers
        assert headers["ETag"].startswith('"')
        assert abs(parsedate_to_datetime(headers["Last-Modified"]).timestamp() - time.time()) < 60
        assert parsedate_to_datetime(headers["Sunset"]).timestamp() > time.time()
        assert headers["Cache-Control"] == "private, no-store"
        assert headers["Content-Disposition"] == f'attachment; filename="{bundle_id}"'
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert "Repr-Digest" not in headers


@pytest.mark.parametrize("size", [1000, PART + 1000])
@pytest.mark.parametrize("with_hmac", [True, False])
def test_download_needs_the_right_proof(service: Service, size: int, *, with_hmac: bool) -> None:
    bundle, other_bundle = content(size), b"another bundle"
    proof = sign(KEY, bundle)
    bundle_id = service.upload(bundle, proof["X-HMAC"] if with_hmac else None)
    attempts: list[tuple[dict[str, str], int, str]] = [
        ({}, 400, "missing_header"),
        ({"X-HMAC": proof["X-HMAC"]}, 400, "missing_header"),
        ({"X-SIGNING-KEY": KEY}, 400, "missing_header"),
        ({**proof, "X-SIGNING-KEY": ""}, 400, "missing_header"),
        ({**proof, "X-HMAC": ""}, 400, "missing_header"),
        ({**proof, "X-HMAC": proof["X-HMAC"][:-1]}, 400, "malformed_header"),
        ({**proof, "X-HMAC": proof["X-HMAC"][:-1] + "g"}, 400, "malformed_header"),
        ({**proof, "X-SIGNING-KEY": "another key"}, 401, "invalid_hmac"),
        (sign(KEY, other_bundle), 401, "invalid_hmac"),
        (sign("another key", bundle), 200 if not with_hmac else 401, "invalid_hmac"),
    ]
    for headers, status, code in attempts:
        response = service.fetch(bundle_id, headers)
        assert response.status_code == service.head(bundle_id, headers).status_code == status, (
            headers
        )
        assert status == 200 or response.json()["code"] == code
        assert status != 401 or response.headers["WWW-Authenticate"] == "XMTP-HMAC-SHA256"
    assert service.fetch(bundle_id, {**proof, "X-HMAC": proof["X-HMAC"].upper()}).content == bundle
    padded_key = raw_request(
        service.url,
        f"GET /files/{bundle_id} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
        f"X-HMAC: {proof['X-HMAC']}\r\nX-SIGNING-KEY:   {KEY}\t \r\n\r\n".encode(),
    )
    assert padded_key.endswith(b"\r\n\r\n" + bundle)


def test_signing_key_may_contain_any_bytes(service: Service) -> None:
    bundle = content(1000)
    key = "schlüssel-🔑".encode() + bytes(range(0x80, 0x100))
    digest = hmac.new(key, bundle, "sha256").hexdigest()
    bundle_id = service.upload(bundle, digest)
    response = service.http.get(
        f"/files/{bundle_id}", headers={b"X-HMAC": digest.encode(), b"X-SIGNING-KEY": key}
    )
    assert response.content == bundle


def test_without_require_hmac_only_bundles_with_an_hmac_need_proof(
    start_service: StartService,
) -> None:
    service = start_service(require_hmac=False, part_size=PART)
    bundle = content(PART + 1)
    open_id = service.upload(bundle)
    guarded_id = service.upload(bundle, sign(KEY, bundle)["X-HMAC"])
    assert service.fetch(open_id).content == bundle
    head = service.head(open_id)
    assert (head.status_code, head.headers["Content-Length"]) == (200, str(len(bundle)))
    assert service.fetch(open_id, sign(KEY, bundle)).content == bundle
    wrong = service.fetch(open_id, {**sign(KEY, bundle), "X-SIGNING-KEY": "another"})
    assert wrong.json()["code"] == "invalid_hmac"
    incomplete = service.fetch(open_id, {"X-SIGNING-KEY": KEY})
    assert (incomplete.status_code, incomplete.json()["code"]) == (400, "missing_header")
    refused = service.fetch(guarded_id)
    assert (refused.status_code, refused.json()["code"]) == (400, "missing_header")
    assert service.fetch(guarded_id, sign(KEY, bundle)).content == bundle
    assert service.fetch(str(uuid4())).status_code == 404


@pytest.mark.parametrize(
    "bundle_id",
    [
        "00000000-0000-4000-8000-000000000000",
        "no-uuid",
        "..%2f..%2fetc%2fpasswd",
        "%24%7Bx%7D",
        "a" * 5000,
    ],
)
def test_unknown_or_malformed_id_is_not_found(service: Service, bundle_id: str) -> None:
    response = service.fetch(bundle_id, sign(KEY, b"bundle"))
    assert (response.status_code, response.json()["code"]) == (404, "not_found")


def test_upload_larger_than_the_limit_is_refused(start_service: StartService) -> None:
    service = start_service(max_bundle_size=6 * MIB, part_size=5 * MIB)
    largest = content(6 * MIB)
    assert service.fetch(service.upload(largest), sign(KEY, largest)).content == largest
    [stored] = service.objects()
    declared = raw_request(
        service.url, b"POST /upload HTTP/1.1\r\nHost: x\r\nContent-Length: 6291457\r\n\r\n"
    )
    assert declared.startswith(b"HTTP/1.1 413 ")
    assert b"connection: close" in declared
    pieces = (content(MIB) for _ in range(7))
    streamed = service.http.post("/upload", content=pieces)
    form = service.http.post("/upload", files={"file": largest + b"1"})
    for response in (streamed, form):
        assert (response.status_code, response.json()["code"]) == (413, "bundle_too_large")
    wait_until(lambda: not service.multipart_uploads())
    assert service.objects() == [stored]


@pytest.mark.parametrize("chunked", [False, True])
def test_upload_by_a_client_that_disconnects_leaves_nothing(
    start_service: StartService, *, chunked: bool
) -> None:
    """The client disconnects in the middle of 64 MiB. Cleanup takes at most two seconds."""
    service = start_service()
    first_bytes = content(32 * MIB)
    with (
        begin_chunked_upload(service.url, first_bytes)
        if chunked
        else begin_upload(service.url, first_bytes, 64 * MIB)
    ):
        wait_until(lambda: bool(service.multipart_uploads()) is chunked)
    hung_up = time.monotonic()
    wait_until(lambda: not service.multipart_uploads() and not service.objects(), timeout=2)
    print(f"cleaned up after {time.monotonic() - hung_up:.2f} s")


def test_curl_and_openssl_can_transfer_a_bundle(service: Service, tmp_path: Path) -> None:
    (tmp_path / "bundle").write_bytes(content(PART + 100))
    script = f"""
        set -e
        HMAC=$(openssl dgst -sha256 -hmac "$KEY" bundle | sed 's/.*= //')
        ID=$(curl -sS --fail-with-body -F file=@bundle -H "X-HMAC: $HMAC" {service.url}/upload)
        curl -sS --fail-with-body -H "X-HMAC: $HMAC" -H "X-SIGNING-KEY: $KEY" --output fetched \
            "{service.url}/files/$ID"
        cmp bundle fetched
    """
    subprocess.run(
        ["bash", "-c", script],
        cwd=tmp_path,
        env={"KEY": "schlüssel", "PATH": "/usr/bin:/bin"},
        check=True,
    )
