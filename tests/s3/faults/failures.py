"""Failures of S3, and what has to come of them."""

from tests.support.clients.signing import random_bytes
from tests.support.polling import until
from tests.support.proxy import Fault, Proxy, Respond
from tests.support.services.thread import SMALL_PART, Service

PART = SMALL_PART
SMALL, LARGE = (random_bytes(7, size) for size in (1000, 2 * PART + 1000))
DOWN, REFUSED = Respond(503, "ServiceUnavailable"), Respond(403, "AccessDenied")
WRITES = {
    "PutObject": SMALL,
    "CreateMultipartUpload": LARGE,
    "UploadPart": LARGE,
    "CompleteMultipartUpload": LARGE,
    "PutObjectTagging": LARGE,
}


def operations(proxy: Proxy) -> list[str]:
    return [request.operation for request in proxy.requests]


def nothing_left(service: Service) -> bool:
    return not service.objects() and not service.multipart_uploads()


def refuses_and_leaves_nothing(proxied: Service, proxy: Proxy, fault: Fault, bundle: bytes) -> None:
    proxy.faults.append(fault)
    answer = proxied.http.post("/upload", content=bundle)
    assert (answer.status_code, answer.json()["code"]) == (503, "storage_unavailable")
    assert "Retry-After" in answer.headers
    until(lambda: nothing_left(proxied), seconds=10)


NO_SUCH_UPLOAD = Respond(404, "NoSuchUpload")
