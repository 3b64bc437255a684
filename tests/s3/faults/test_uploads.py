"""S3 fails during an upload or a delete: no false answer, no false object, nothing left."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from service.bundles import background
from service.s3 import retries
from tests.s3.faults.failures import (
    DOWN,
    LARGE,
    NO_SUCH_UPLOAD,
    REFUSED,
    SMALL,
    WRITES,
    nothing_left,
    operations,
    refuses_and_leaves_nothing,
)
from tests.support.clients.signing import sign
from tests.support.polling import until
from tests.support.proxy import Delay, Fault, Proxy, Respond, Swallow
from tests.support.services.thread import SMALL_PART, Serve, Service
from tests.support.stores import Store

KEY = "a signing key"
PART = SMALL_PART


@pytest.mark.parametrize("operation", WRITES)
def test_an_upload_that_s3_refuses_leaves_nothing(
    proxied: Service, proxy: Proxy, operation: str
) -> None:
    fault = Fault(operation, REFUSED, times=None)
    refuses_and_leaves_nothing(proxied, proxy, fault, WRITES[operation])


@pytest.mark.parametrize("operation", ["PutObject", "CompleteMultipartUpload"])
def test_an_upload_whose_every_answer_is_lost_leaves_nothing(
    proxied: Service, proxy: Proxy, operation: str
) -> None:
    fault = Fault(operation, Swallow(), times=None)
    refuses_and_leaves_nothing(proxied, proxy, fault, WRITES[operation])


@pytest.mark.parametrize("operation", WRITES)
@pytest.mark.parametrize("action", [DOWN, Swallow()])
def test_what_passes_is_retried_unseen(
    proxied: Service, proxy: Proxy, operation: str, action: Respond | Swallow
) -> None:
    """Also where S3 did what was asked and its answer got lost: a Complete is a Complete."""
    bundle = WRITES[operation]
    proxy.faults.append(Fault(operation, action, times=1))
    bundle_id = proxied.upload(bundle, sign(KEY, bundle)["X-HMAC"])
    assert proxied.fetch(bundle_id, sign(KEY, bundle)).content == bundle


def test_no_such_upload_at_complete_may_be_our_own_success(proxied: Service, proxy: Proxy) -> None:
    """Where the answer to the first try got lost: HeadObject decides."""
    proxy.faults.append(Fault("CompleteMultipartUpload", Swallow()))
    proxy.faults.append(Fault("CompleteMultipartUpload", NO_SUCH_UPLOAD))
    bundle_id = proxied.upload(LARGE)
    assert "HeadObject" in operations(proxy)
    assert proxied.fetch(bundle_id, sign(KEY, LARGE)).content == LARGE


def test_no_such_upload_at_complete_is_a_503_where_there_is_no_object(
    proxied: Service, proxy: Proxy
) -> None:
    fault = Fault("CompleteMultipartUpload", NO_SUCH_UPLOAD)
    refuses_and_leaves_nothing(proxied, proxy, fault, LARGE)


@pytest.mark.parametrize("operation", WRITES)
def test_a_write_is_never_answered_404(proxied: Service, proxy: Proxy, operation: str) -> None:
    fault = Fault(operation, Respond(404, "NoSuchKey"))
    refuses_and_leaves_nothing(proxied, proxy, fault, WRITES[operation])


def test_an_object_is_deleted_also_where_uploads_cannot_be_listed(
    proxied: Service, proxy: Proxy
) -> None:
    proxy.faults.append(Fault("ListMultipartUploads", REFUSED))
    refuses_and_leaves_nothing(proxied, proxy, Fault("PutObjectTagging", REFUSED), LARGE)


def test_a_cause_is_logged_once_with_what_to_do_and_no_id(
    store: Store,
    serve: Serve,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(retries, "MAX_BACKOFF", 0.1)
    with Proxy(store.endpoint_url) as proxy:
        service = serve(endpoint_url=proxy.url)
        bundle_id = service.upload(SMALL)
        for action in (REFUSED, Swallow()):
            proxy.faults.append(Fault("GetObjectTagging", action, times=None))
            proxy.faults.append(Fault("HeadBucket", action, times=None))
            for _ in range(2):
                assert service.fetch(bundle_id, sign(KEY, SMALL)).status_code == 503
                until(lambda: service.http.get("/readyz").status_code == 503)
            proxy.faults.clear()
        assert service.fetch(bundle_id, sign(KEY, SMALL)).status_code == 200
    [refused, unreachable] = [
        record.getMessage() for record in caplog.records if record.name == "service.s3.calls"
    ]
    assert refused.startswith("S3 refuses GetObjectTagging: AccessDenied; check the credentials")
    assert unreachable.startswith("S3 cannot be reached for GetObjectTagging: ")
    assert "AWS_ENDPOINT_URL_S3" in unreachable
    assert bundle_id not in refused + unreachable


def test_an_upload_that_is_gone_before_it_is_aborted(proxied: Service, proxy: Proxy) -> None:
    proxy.faults.append(Fault("AbortMultipartUpload", NO_SUCH_UPLOAD))
    refuses_and_leaves_nothing(proxied, proxy, Fault("UploadPart", REFUSED), LARGE)


def test_what_cannot_be_undone_is_undone_as_soon_as_it_can_be(
    serve: Serve,
    proxy: Proxy,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """However often S3 refuses; of that it says a word at the start, and none at each try.

    The service is one that has nothing left to remove from before, and has not said so yet.
    """
    service = serve(endpoint_url=proxy.url, part_size=PART)
    monkeypatch.setattr(background, "MAX_BACKOFF", background.MIN_BACKOFF)
    asked = Fault("ListMultipartUploads", REFUSED, times=None)
    proxy.faults += [asked, Fault("DeleteObject", REFUSED, times=None)]
    proxy.faults.append(Fault("PutObjectTagging", REFUSED, times=2))
    for _ in range(2):
        assert service.http.post("/upload", content=LARGE).status_code == 503
    until(lambda: asked.struck >= 5)
    assert len(service.objects()) == 2
    proxy.faults.clear()
    until(lambda: nothing_left(service))
    assert caplog.text.count("retrying until it does") == 1


def test_what_an_outage_leaves_is_removed_after_it(proxied: Service, proxy: Proxy) -> None:
    proxy.faults.append(Fault("UploadPart", Delay(60), after=1))
    with ThreadPoolExecutor() as client:
        upload = client.submit(proxied.http.post, "/upload", content=LARGE)
        until(lambda: operations(proxy).count("UploadPart") == 2)
        proxy.unplug()
        assert upload.result().status_code == 503
    assert proxied.multipart_uploads()
    proxy.plug()
    until(lambda: nothing_left(proxied))
