"""The objects that this version stores, which later versions must read.

docs/compatibility.md promises this format. The values here are literal, so a change of the code
that reads or writes a record cannot change what these tests expect. Add cases, and change none.
"""

import hashlib
import hmac
from collections.abc import Mapping
from typing import Any

import pytest

from tests.support.clients.signing import digest, sign
from tests.support.services.thread import Service, StartService

pytestmark = pytest.mark.both_records

BUNDLE = b"an encrypted bundle"
KEY = "the signing key of a stored bundle"
BUNDLE_ID = "0b8e9a52-6c1d-4f37-9b1e-3c5a7d2f8e64"
PROOF = {
    "X-HMAC": "dc3ae07f7c47a86dadfb968f11c06ff63ec5c4e220f664d270862cc61b60103f",
    "X-SIGNING-KEY": KEY,
}
EXPIRES_AT = {"expires-at": "4102444800"}
SIZE = {"size": "19"}
SHA256 = {"sha256": "e9dcb6f2f9f31de052fb815314b4951617b5857bf3372db8bc2dc2f201823c0e"}
HMAC = {"hmac-sha256": "dc3ae07f7c47a86dadfb968f11c06ff63ec5c4e220f664d270862cc61b60103f"}
RECEIPT = {"receipt": "12255bf27c80de667ac326cdab1c6a4a9533bb8a60b0105615173f9041fa6876"}

RECORDS: list[Mapping[str, str]] = [
    EXPIRES_AT,
    EXPIRES_AT | SIZE,
    EXPIRES_AT | SIZE | SHA256,
    EXPIRES_AT | HMAC,
    EXPIRES_AT | SIZE | HMAC,
    EXPIRES_AT | HMAC | RECEIPT,
    EXPIRES_AT | SIZE | SHA256 | HMAC | RECEIPT,
]
"""The records of uploads with and without a length, a digest, an HMAC and a key."""


def store_object(
    service: Service, fields: Mapping[str, str], *, bundle_id: str = BUNDLE_ID, body: bytes = BUNDLE
) -> None:
    """Put a bundle into the bucket as the service does, without the code of the service."""
    record: dict[str, Any] = {"Tagging": "&".join(f"{name}={fields[name]}" for name in fields)}
    if service.records == "metadata":
        record = {"Metadata": {f"history-{name}": fields[name] for name in fields}}
    service.s3.put_object(Bucket=service.bucket, Key=f"bundles/{bundle_id}", Body=body, **record)


@pytest.mark.parametrize("fields", RECORDS, ids=",".join)
def test_stored_object_is_served_and_deleted(
    start_service: StartService, fields: Mapping[str, str]
) -> None:
    service = start_service()
    store_object(service, fields)
    path = f"/files/{BUNDLE_ID}"
    part = service.http.get(path, headers={**PROOF, "Range": "bytes=3-11"})
    assert (part.status_code, part.content) == (206, b"encrypted")
    for method, content in (("HEAD", b""), ("GET", BUNDLE)):
        response = service.http.request(method, path, headers=PROOF)
        assert (response.status_code, response.content) == (200, content)
        assert response.headers["Content-Length"] == "19"
        assert response.headers["Sunset"] == "Fri, 01 Jan 2100 00:00:00 GMT"
        assert response.headers.get("Repr-Digest") == (
            "sha-256=:6dy28vnzHeBS+4FTFLSVFhe1hXvzNy24vC3C8gGCPA4=:" if "sha256" in fields else None
        )
    wrong_key = {**PROOF, "X-SIGNING-KEY": "another signing key"}
    assert service.http.get(path, headers=wrong_key).status_code == 401
    # This HMAC is right, but not the one that was uploaded.
    other_proof = sign("another signing key", BUNDLE)
    status = 401 if "hmac-sha256" in fields else 200
    assert service.http.get(path, headers=other_proof).status_code == status
    assert service.http.delete(path, headers=PROOF).status_code == 204
    assert service.objects() == []


def test_stored_receipt_opens_the_bundle_without_reading_it(start_service: StartService) -> None:
    service = start_service()
    store_object(service, EXPIRES_AT | HMAC | RECEIPT)
    assert service.fetch(BUNDLE_ID, PROOF).content == BUNDLE
    ways = {
        name: count for name, count in service.metrics().items() if "verifications_total" in name
    }
    assert ways == {'history_verifications_total{outcome="held",way="receipt"}': 1}


@pytest.mark.parametrize(
    "fields",
    [
        {"expires-at": "1700000000"},
        EXPIRES_AT | {"size": "20"},
        EXPIRES_AT | {"hmac-sha256": HMAC["hmac-sha256"].upper()},
        EXPIRES_AT | RECEIPT,
        SIZE | HMAC,
    ],
    ids=["expired", "wrong size", "upper case", "receipt without an HMAC", "no expiry time"],
)
def test_expired_or_invalid_object_is_not_found(
    start_service: StartService, fields: Mapping[str, str]
) -> None:
    service = start_service()
    store_object(service, fields)
    assert service.fetch(BUNDLE_ID, PROOF).status_code == 404


@pytest.mark.parametrize("kind", ["with a length", "chunked", "form"])
def test_truncated_object_is_not_found(start_service: StartService, kind: str) -> None:
    service = start_service()
    bodies: dict[str, dict[str, Any]] = {
        "with a length": {"content": BUNDLE},
        "chunked": {"content": iter([BUNDLE])},
        "form": {"files": {"file": BUNDLE}},
    }
    bundle_id = service.http.post("/upload", headers=PROOF, **bodies[kind]).text
    assert service.fetch(bundle_id, PROOF).content == BUNDLE
    store_object(service, service.record(bundle_id), bundle_id=bundle_id, body=BUNDLE[:-1])
    assert service.fetch(bundle_id, PROOF).status_code == 404


def test_unknown_fields_are_ignored(start_service: StartService) -> None:
    """So a later version may add one that earlier versions need not know."""
    service = start_service()
    store_object(service, EXPIRES_AT | SIZE | HMAC | {"added-later": "1"})
    assert service.fetch(BUNDLE_ID, PROOF).content == BUNDLE


def test_upload_stores_these_fields_and_no_others(start_service: StartService) -> None:
    """Earlier versions read them: they ignore others, and drop them when they store a receipt."""
    service = start_service()
    headers = {**sign(KEY, BUNDLE), "Content-Digest": digest(BUNDLE)}
    response = service.http.post("/upload", content=BUNDLE, headers=headers)
    bundle_id = response.text
    location = {"Bucket": service.bucket, "Key": f"bundles/{bundle_id}"}
    if service.records == "metadata":
        stored = service.s3.head_object(**location)["Metadata"]
        fields = {name.removeprefix("history-"): stored[name] for name in stored}
        assert all(name.startswith("history-") for name in stored)
    else:
        tags = service.s3.get_object_tagging(**location)["TagSet"]
        fields = {tag["Key"]: tag["Value"] for tag in tags}
    assert 4_000_000_000 > int(fields.pop("expires-at")) > 1_700_000_000
    message = f"xmtp-history-receipt-v1\0{bundle_id}\0{HMAC['hmac-sha256']}"
    receipt = hmac.new(KEY.encode(), message.encode(), hashlib.sha256).hexdigest()
    assert fields == SIZE | SHA256 | HMAC | {"receipt": receipt}
