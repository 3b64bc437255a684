"""A bundle goes in, and only its proof brings it out: through a real service, on every store."""

import hashlib
import hmac
import subprocess
import time
from email.utils import parsedate_to_datetime
from pathlib import Path
from uuid import UUID, uuid4

import minio
import pytest

from tests.support.clients.signing import random_bytes, sign
from tests.support.clients.sockets import dial, raw_request
from tests.support.polling import until
from tests.support.services.thread import SMALL_PART, Serve, Service
from tests.support.stores import Store

pytestmark = pytest.mark.every_store

KEY = "a signing key"
MIB = 1 << 20
PART = SMALL_PART


def content(size: int) -> bytes:
    return random_bytes(size, size)


@pytest.mark.parametrize("size", [1, 100_000, PART - 1, PART, PART + 1, 2 * PART, 11 * MIB])
def test_what_goes_in_comes_out(service: Service, size: int) -> None:
    bundle = content(size)
    bundle_id = service.upload(bundle, sign(KEY, bundle)["X-HMAC"])
    answer = service.fetch(bundle_id, sign(KEY, bundle))
    assert answer.status_code == 200
    assert answer.content == bundle


def test_a_chunked_upload_without_any_header(service: Service) -> None:
    bundle = content(3 * MIB)
    pieces = (bundle[at : at + 8192] for at in range(0, len(bundle), 8192))
    answer = service.http.post("/upload", content=pieces)
    assert answer.status_code == 200
    assert service.fetch(answer.text, sign(KEY, bundle)).content == bundle


@pytest.mark.parametrize("size", [10, PART + 10])
def test_a_form(service: Service, size: int) -> None:
    bundle = content(size)
    answer = service.http.post(
        "/upload",
        data={"note": "beside the file"},
        files={"file": ("bundle.aes", bundle, "application/octet-stream")},
        headers={"X-HMAC": sign(KEY, bundle)["X-HMAC"]},
    )
    assert answer.status_code == 200
    assert service.fetch(answer.text, sign(KEY, bundle)).content == bundle


def test_the_object_model(service: Service) -> None:
    for bundle in (content(1000), content(PART + 1000)):
        began = time.time()
        upper = sign(KEY, bundle)["X-HMAC"].upper()
        bundle_id = service.upload(bundle, upper)
        tags = service.tags(bundle_id)
        assert tags.pop("hmac-sha256") == upper.lower()
        assert tags.pop("sha256") == hashlib.sha256(bundle).hexdigest()
        week = 7 * 86_400
        assert began + week <= int(tags.pop("expires-at")) <= time.time() + week + 1
        assert not tags
        stored = service.s3.get_object(Bucket=service.bucket, Key=f"bundles/{bundle_id}")
        assert stored["Body"].read() == bundle


def test_another_client_sees_the_tags(service: Service, store: Store) -> None:
    """minio-py, that is: nothing depends on how botocore writes or reads a tag."""
    bundle = content(PART + 5)
    bundle_id = service.upload(bundle, sign(KEY, bundle)["X-HMAC"])
    other = minio.Minio(
        store.endpoint_url.removeprefix("http://"),
        access_key=store.access_key,
        secret_key=store.secret_key,
        secure=False,
        region=store.region,
    )
    tags = other.get_object_tags(
        bucket_name=service.bucket, object_name=f"{service.prefix}{bundle_id}"
    )
    assert tags is not None
    assert tags["hmac-sha256"] == sign(KEY, bundle)["X-HMAC"]


def test_the_answer_to_an_upload(service: Service) -> None:
    answer = service.http.post("/upload", content=b"bundle")
    assert answer.headers["Content-Type"] == "text/plain; charset=utf-8"
    assert str(UUID(answer.text, version=4)) == answer.text
    assert answer.headers["Location"] == f"/files/{answer.text}"
    expires_at = int(service.tags(answer.text)["expires-at"])
    assert parsedate_to_datetime(answer.headers["Sunset"]).timestamp() == expires_at


@pytest.mark.parametrize("size", [1000, PART + 1000])
def test_the_headers_of_a_download(service: Service, size: int) -> None:
    bundle = content(size)
    bundle_id = service.upload(bundle, sign(KEY, bundle)["X-HMAC"])
    got = service.fetch(bundle_id, sign(KEY, bundle))
    head = service.head(bundle_id, sign(KEY, bundle))
    assert head.status_code == 200
    assert not head.content
    for answer in (got, head):
        headers = answer.headers
        assert headers["Content-Type"] == "application/octet-stream"
        assert headers["Content-Length"] == str(size)
        assert "Content-Encoding" not in headers
        assert headers["ETag"].startswith('"')
        assert abs(parsedate_to_datetime(headers["Last-Modified"]).timestamp() - time.time()) < 60
        assert parsedate_to_datetime(headers["Sunset"]).timestamp() > time.time()
        assert headers["Cache-Control"] == "private, no-store"
        assert headers["Content-Disposition"] == f'attachment; filename="{bundle_id}"'
        assert headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize("size", [1000, PART + 1000])
@pytest.mark.parametrize("tagged", [True, False])
def test_only_the_proof_opens_a_bundle(service: Service, size: int, *, tagged: bool) -> None:
    bundle, other = content(size), b"another bundle"
    right = sign(KEY, bundle)
    bundle_id = service.upload(bundle, right["X-HMAC"] if tagged else None)
    refused: list[tuple[dict[str, str], int, str]] = [
        ({}, 400, "missing_header"),
        ({"X-HMAC": right["X-HMAC"]}, 400, "missing_header"),
        ({"X-SIGNING-KEY": KEY}, 400, "missing_header"),
        ({**right, "X-SIGNING-KEY": ""}, 400, "missing_header"),
        ({**right, "X-HMAC": ""}, 400, "missing_header"),
        ({**right, "X-HMAC": right["X-HMAC"][:-1]}, 400, "malformed_header"),
        ({**right, "X-HMAC": right["X-HMAC"][:-1] + "g"}, 400, "malformed_header"),
        ({**right, "X-SIGNING-KEY": "another key"}, 401, "invalid_hmac"),
        (sign(KEY, other), 401, "invalid_hmac"),
        (sign("another key", bundle), 200 if not tagged else 401, "invalid_hmac"),
    ]
    for proof, status, code in refused:
        answer = service.fetch(bundle_id, proof)
        assert answer.status_code == service.head(bundle_id, proof).status_code == status, proof
        assert status == 200 or answer.json()["code"] == code
        assert status != 401 or answer.headers["WWW-Authenticate"] == "XMTP-HMAC-SHA256"
    assert service.fetch(bundle_id, {**right, "X-HMAC": right["X-HMAC"].upper()}).content == bundle
    spaced = raw_request(
        service.url,
        f"GET /files/{bundle_id} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
        f"X-HMAC: {right['X-HMAC']}\r\nX-SIGNING-KEY:   {KEY}\t \r\n\r\n".encode(),
    )
    assert spaced.endswith(b"\r\n\r\n" + bundle)


def test_a_key_of_any_bytes(service: Service) -> None:
    bundle = content(1000)
    key = "schlüssel-🔑".encode() + bytes(range(0x80, 0x100))
    digest = hmac.new(key, bundle, "sha256").hexdigest()
    bundle_id = service.upload(bundle, digest)
    answer = service.http.get(
        f"/files/{bundle_id}", headers={b"X-HMAC": digest.encode(), b"X-SIGNING-KEY": key}
    )
    assert answer.content == bundle


def test_without_require_hmac_the_id_opens_what_has_no_hmac(serve: Serve) -> None:
    service = serve(require_hmac=False, part_size=PART)
    bundle = content(PART + 1)
    open_id = service.upload(bundle)
    guarded_id = service.upload(bundle, sign(KEY, bundle)["X-HMAC"])
    assert service.fetch(open_id).content == bundle
    head = service.head(open_id)
    assert (head.status_code, head.headers["Content-Length"]) == (200, str(len(bundle)))
    assert service.fetch(open_id, sign(KEY, bundle)).content == bundle
    wrong = service.fetch(open_id, {**sign(KEY, bundle), "X-SIGNING-KEY": "another"})
    assert wrong.json()["code"] == "invalid_hmac"
    half = service.fetch(open_id, {"X-SIGNING-KEY": KEY})
    assert (half.status_code, half.json()["code"]) == (400, "missing_header")
    refused = service.fetch(guarded_id)
    assert (refused.status_code, refused.json()["code"]) == (400, "missing_header")
    assert service.fetch(guarded_id, sign(KEY, bundle)).content == bundle
    assert service.fetch(str(uuid4())).status_code == 404


def test_expiry_is_exact_and_unmoved_by_tagging(serve: Serve) -> None:
    now = time.time()
    service = serve(retention="1h", part_size=PART, clock=lambda: now)
    bundle = content(PART + 1)
    bundle_id = service.upload(bundle, sign(KEY, bundle)["X-HMAC"])
    tags = service.tags(bundle_id)
    expires_at = int(tags["expires-at"])
    assert now + 3600 <= expires_at < now + 3601

    now = expires_at - 0.001
    assert service.fetch(bundle_id, sign(KEY, bundle)).status_code == 200
    now = expires_at
    assert service.fetch(bundle_id, sign(KEY, bundle)).status_code == 404
    assert service.head(bundle_id, sign(KEY, bundle)).status_code == 404

    service.put_tags(bundle_id, tags)
    assert service.fetch(bundle_id, sign(KEY, bundle)).json()["code"] == "not_found"
    assert len(service.objects()) == 1


@pytest.mark.parametrize(
    "lost", [{"sha256"}, {"expires-at"}, {"sha256", "expires-at", "hmac-sha256"}]
)
def test_a_lost_tag_opens_nothing(serve: Serve, lost: set[str]) -> None:
    service = serve(require_hmac=False)
    bundle = content(1000)
    bundle_id = service.upload(bundle, sign(KEY, bundle)["X-HMAC"])
    tags = service.tags(bundle_id)
    service.put_tags(bundle_id, {name: tags[name] for name in tags.keys() - lost})
    assert service.fetch(bundle_id).status_code == 404
    assert service.fetch(bundle_id, sign(KEY, bundle)).status_code == 404
    service.put_tags(bundle_id, {**tags, "hmac-sha256": "damaged"})
    assert service.fetch(bundle_id).status_code == 404


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
def test_no_such_bundle(service: Service, bundle_id: str) -> None:
    answer = service.fetch(bundle_id, sign(KEY, b"bundle"))
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


def test_too_large(serve: Serve) -> None:
    service = serve(max_bundle_size=6 * MIB, part_size=5 * MIB)
    largest = content(6 * MIB)
    assert service.fetch(service.upload(largest), sign(KEY, largest)).content == largest
    [stored] = service.objects()
    declared = raw_request(
        service.url, b"POST /upload HTTP/1.1\r\nHost: x\r\nContent-Length: 6291457\r\n\r\n"
    )
    assert declared.startswith(b"HTTP/1.1 413 ")
    assert b"connection: close" in declared
    pieces = (content(MIB) for _ in range(7))
    sent = service.http.post("/upload", content=pieces)
    form = service.http.post("/upload", files={"file": largest + b"1"})
    for answer in (sent, form):
        assert (answer.status_code, answer.json()["code"]) == (413, "bundle_too_large")
    until(lambda: not service.multipart_uploads())
    assert service.objects() == [stored]


def test_a_client_that_hangs_up_leaves_nothing(serve: Serve) -> None:
    """In the middle of 64 MiB, and within two seconds."""
    service = serve()
    with dial(service.url) as connection:
        connection.sendall(b"POST /upload HTTP/1.1\r\nHost: x\r\nContent-Length: 67108864\r\n\r\n")
        for _ in range(32):
            connection.sendall(content(MIB))
        until(lambda: bool(service.multipart_uploads()))
    hung_up = time.monotonic()
    until(lambda: not service.multipart_uploads() and not service.objects(), seconds=2)
    print(f"nothing left after {time.monotonic() - hung_up:.2f} s")


def test_curl_and_openssl_alone(service: Service, tmp_path: Path) -> None:
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
