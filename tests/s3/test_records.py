"""A bundle's record decides whether it can be downloaded, and until when."""

import time
from uuid import uuid4

import pytest

from tests.support.clients.signing import random_bytes, sign
from tests.support.services.thread import SMALL_PART, Service, StartService

pytestmark = pytest.mark.every_store

KEY = "a signing key"


def test_expiry_is_exact_and_new_tags_do_not_extend_it(start_service: StartService) -> None:
    now = time.time()
    service = start_service(retention="1h", part_size=SMALL_PART, clock=lambda: now)
    bundle = random_bytes(1, SMALL_PART + 1)
    bundle_id = service.upload(bundle, sign(KEY, bundle)["X-HMAC"])
    tags = service.record(bundle_id)
    expires_at = int(tags["expires-at"])
    assert now + 3600 <= expires_at < now + 3601

    now = expires_at - 0.001
    assert service.fetch(bundle_id, sign(KEY, bundle)).status_code == 200
    now = expires_at
    assert service.fetch(bundle_id, sign(KEY, bundle)).status_code == 404
    assert service.head(bundle_id, sign(KEY, bundle)).status_code == 404

    service.put_record(bundle_id, tags)
    assert service.fetch(bundle_id, sign(KEY, bundle)).json()["code"] == "not_found"
    assert len(service.objects()) == 1


@pytest.mark.parametrize("missing", [{"expires-at"}, {"expires-at", "hmac-sha256"}])
def test_bundle_with_missing_or_damaged_tags_is_not_found(
    start_service: StartService, missing: set[str]
) -> None:
    service = start_service(require_hmac=False)
    bundle = random_bytes(1, 1000)
    bundle_id = service.upload(bundle, sign(KEY, bundle)["X-HMAC"])
    tags = service.record(bundle_id)
    service.put_record(bundle_id, {name: tags[name] for name in tags.keys() - missing})
    assert service.fetch(bundle_id).status_code == 404
    assert service.fetch(bundle_id, sign(KEY, bundle)).status_code == 404
    for damage in (
        {"hmac-sha256": "damaged"},
        {"sha256": "damaged"},
        {"size": "damaged"},
        {"size": "999"},
        {"size": "1001"},
    ):
        service.put_record(bundle_id, {**tags, **damage})
        assert service.fetch(bundle_id, sign(KEY, bundle)).status_code == 404
        assert service.fetch(bundle_id).status_code == 404
    service.put_record(bundle_id, tags)
    assert service.fetch(bundle_id, sign(KEY, bundle)).content == bundle


def test_object_without_a_record_is_not_found(service: Service) -> None:
    """A multipart object is one, if the service is killed before it writes the tags."""
    for multipart in (False, True):
        bundle_id = str(uuid4())
        location = {"Bucket": service.bucket, "Key": f"{service.prefix}{bundle_id}"}
        if multipart:
            upload = {
                **location,
                "UploadId": service.s3.create_multipart_upload(**location)["UploadId"],
            }
            etag = service.s3.upload_part(**upload, PartNumber=1, Body=b"bundle")["ETag"]
            parts = {"Parts": [{"ETag": etag, "PartNumber": 1}]}
            service.s3.complete_multipart_upload(**upload, MultipartUpload=parts)
        else:
            service.s3.put_object(**location, Body=b"bundle")
        assert service.fetch(bundle_id, sign(KEY, b"bundle")).status_code == 404
