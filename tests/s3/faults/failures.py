"""Faults of S3 and bundles for these tests, and the check of an upload that fails."""

import httpx

from tests.support.clients.signing import random_bytes
from tests.support.polling import wait_until
from tests.support.proxy import Fault, Proxy, Respond
from tests.support.services.thread import SMALL_PART, Service

PART = SMALL_PART
SMALL, LARGE = (random_bytes(7, size) for size in (1000, 2 * PART + 1000))
UNAVAILABLE, DENIED = Respond(503, "ServiceUnavailable"), Respond(403, "AccessDenied")
WRITES = {
    "PutObject": SMALL,
    "CreateMultipartUpload": LARGE,
    "UploadPart": LARGE,
    "CompleteMultipartUpload": LARGE,
    "PutObjectTagging": LARGE,
}


def operations(proxy: Proxy) -> list[str]:
    return [request.operation for request in proxy.requests]


def is_bucket_empty(service: Service) -> bool:
    return not service.objects() and not service.multipart_uploads()


def upload(service: Service, bundle: bytes, *, hmac: str | None = None) -> httpx.Response:
    """Upload a large bundle in chunks, as a multipart upload, and a small one with its length."""
    headers = {} if hmac is None else {"X-HMAC": hmac}
    content = iter([bundle]) if bundle is LARGE else bundle
    return service.http.post("/upload", content=content, headers=headers)


def check_failed_upload(proxied: Service, proxy: Proxy, fault: Fault, bundle: bytes) -> None:
    """Upload through a fault: the response has to be 503, and S3 must keep nothing."""
    proxy.faults.append(fault)
    response = upload(proxied, bundle)
    assert (response.status_code, response.json()["code"]) == (503, "storage_unavailable")
    assert "Retry-After" in response.headers
    wait_until(lambda: is_bucket_empty(proxied), timeout=10)


NO_SUCH_UPLOAD = Respond(404, "NoSuchUpload")
