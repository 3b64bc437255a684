"""S3 fails, through a proxy that makes it: no false answer, no false object, nothing left."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from service import client, leftovers
from service.bodies import RESUMPTIONS
from tests.clients import dial, random_bytes, sign, until
from tests.conftest import SMALL_PART, Serve, Service, running_service
from tests.proxy import (
    CHUNK,
    AddRange,
    Delay,
    Fault,
    IgnoreRange,
    Proxy,
    Reset,
    Respond,
    Swallow,
    Truncate,
    Withhold,
)
from tests.stores import Store

KEY = "a signing key"
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


@pytest.fixture(scope="module")
def shared(store: Store, s3: Any) -> Iterator[tuple[Service, Proxy]]:
    with pytest.MonkeyPatch.context() as patch, Proxy(store.endpoint_url) as proxy:
        patch.setattr(client, "BACKOFF", 0.1)
        with running_service(store, s3, endpoint_url=proxy.url, part_size=PART) as service:
            yield service, proxy


@pytest.fixture
def proxy(shared: tuple[Service, Proxy]) -> Iterator[Proxy]:
    _, proxy = shared
    proxy.requests.clear()
    yield proxy
    proxy.faults.clear()


@pytest.fixture
def proxied(shared: tuple[Service, Proxy], proxy: Proxy) -> Iterator[Service]:
    """A service that reaches its store through the proxy; its bucket is empty at first."""
    service, _ = shared
    yield service
    proxy.faults.clear()
    until(lambda: not service.multipart_uploads())
    service.clear()


needs_proc = pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="needs Linux's /proc")


def operations(proxy: Proxy) -> list[str]:
    return [request.operation for request in proxy.requests]


def nothing_left(service: Service) -> bool:
    return not service.objects() and not service.multipart_uploads()


def test_where_the_tag_refuses_no_body_is_read(proxied: Service, proxy: Proxy) -> None:
    bundle_id = proxied.upload(LARGE, sign(KEY, LARGE)["X-HMAC"])
    proxy.requests.clear()
    refused = {"wrong HMAC": sign(KEY, b"another"), "another key": sign("another key", LARGE)}
    for proof in refused.values():
        assert proxied.fetch(bundle_id, proof).status_code == 401
    for half in ({}, {"X-HMAC": "0" * 64}, {"X-SIGNING-KEY": KEY}, {**proof, "X-SIGNING-KEY": ""}):
        assert proxied.fetch(bundle_id, half).status_code == 400
    assert operations(proxy) == ["GetObjectTagging"] * len(refused)


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


def refuses_and_leaves_nothing(proxied: Service, proxy: Proxy, fault: Fault, bundle: bytes) -> None:
    proxy.faults.append(fault)
    answer = proxied.http.post("/upload", content=bundle)
    assert (answer.status_code, answer.json()["code"]) == (503, "storage_unavailable")
    assert "Retry-After" in answer.headers
    until(lambda: nothing_left(proxied), seconds=10)


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


NO_SUCH_UPLOAD = Respond(404, "NoSuchUpload")


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
    monkeypatch.setattr(client, "BACKOFF", 0.1)
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
        record.getMessage() for record in caplog.records if record.name == "service.client"
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
    monkeypatch.setattr(leftovers, "LONGEST_PAUSE", leftovers.FIRST_PAUSE)
    asked = Fault("ListMultipartUploads", REFUSED, times=None)
    proxy.faults += [asked, Fault("DeleteObject", REFUSED, times=None)]
    proxy.faults.append(Fault("PutObjectTagging", REFUSED, times=2))
    for _ in range(2):
        assert service.http.post("/upload", content=LARGE).status_code == 503
    until(lambda: asked.struck >= 5)
    assert len(service.objects()) == 2
    proxy.faults.clear()
    until(lambda: nothing_left(service))
    assert caplog.text.count("it is asked until it does") == 1


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


@pytest.mark.parametrize("operation", ["GetObjectTagging", "GetObject"])
@pytest.mark.parametrize("answer", [REFUSED, DOWN, Respond(404, "NoSuchBucket")])
def test_s3_failing_is_never_a_404(
    proxied: Service, proxy: Proxy, operation: str, answer: Respond
) -> None:
    bundle_id = proxied.upload(SMALL)
    proxy.faults.append(Fault(operation, answer, times=None))
    got = proxied.fetch(bundle_id, sign(KEY, SMALL))
    assert (got.status_code, got.json()["code"]) == (503, "storage_unavailable")


def test_s3_gone(proxied: Service, proxy: Proxy) -> None:
    bundle_id = proxied.upload(SMALL)
    proxy.unplug()
    for answer in (
        proxied.fetch(bundle_id, sign(KEY, SMALL)),
        proxied.http.post("/upload", content=SMALL),
    ):
        assert (answer.status_code, answer.json()["code"]) == (503, "storage_unavailable")
    assert proxied.http.get("/healthz").status_code == 200
    proxy.plug()
    assert proxied.fetch(bundle_id, sign(KEY, SMALL)).content == SMALL


@pytest.mark.parametrize("action", [Truncate(6 << 20), Reset(6 << 20)])
def test_s3_breaking_off_after_the_status_line_cuts_the_connection(
    proxied: Service, proxy: Proxy, action: Truncate | Reset
) -> None:
    bundle_id = proxied.upload(LARGE)
    proxy.faults.append(Fault("GetObject", action, after=1))
    proxy.faults.append(Fault("GetObject", Truncate(0), times=None, after=1))
    proxy.requests.clear()
    with proxied.http.stream("GET", f"/files/{bundle_id}", headers=sign(KEY, LARGE)) as answer:
        assert answer.status_code == 200
        with pytest.raises(httpx.RemoteProtocolError, match="peer closed connection"):
            answer.read()
    assert operations(proxy).count("GetObject") == 2 + RESUMPTIONS
    until(lambda: proxy.open_connections <= 1)


@pytest.mark.parametrize("bundle", [SMALL, LARGE], ids=["small", "large"])
def test_s3_breaking_off_before_it_is_a_503(proxied: Service, proxy: Proxy, bundle: bytes) -> None:
    bundle_id = proxied.upload(bundle)
    proxy.faults.append(Fault("GetObject", Truncate(500)))
    proxy.faults.append(Fault("GetObject", Truncate(0), times=None))
    answer = proxied.fetch(bundle_id, sign(KEY, bundle))
    assert (answer.status_code, answer.json()["code"]) == (503, "storage_unavailable")


@pytest.mark.parametrize("action", [Truncate(3 << 20), Reset(2 << 20)])
def test_a_broken_body_is_resumed_where_it_broke(
    proxied: Service, proxy: Proxy, action: Truncate | Reset
) -> None:
    """Both while it is verified and while it is sent, and a range of it within that range."""
    bundle_id = proxied.upload(LARGE, sign(KEY, LARGE)["X-HMAC"])
    proxy.faults.append(Fault("GetObject", action, times=6))
    assert proxied.fetch(bundle_id, sign(KEY, LARGE)).content == LARGE
    assert proxy.faults.pop().struck == 6
    proxy.requests.clear()
    proxy.faults.append(Fault("GetObject", action, times=1))
    wanted = {"Range": f"bytes=1000-{7 << 20}"}
    answer = proxied.fetch(bundle_id, {**sign(KEY, LARGE), **wanted})
    assert (answer.status_code, answer.content) == (206, LARGE[1000 : (7 << 20) + 1])
    [first, resumed] = [r for r in proxy.requests if r.operation == "GetObject"]
    assert first.headers["if-match"] == resumed.headers["if-match"]
    assert resumed.headers["range"].endswith(f"-{7 << 20}")
    # A reset may cost the service also what it had not read yet.
    assert isinstance(action, Reset) or resumed.headers["range"] != first.headers["range"]


def test_a_body_is_not_resumed_with_bytes_that_nobody_asked_for(
    proxied: Service, proxy: Proxy
) -> None:
    """A store that ignores Range answers with the whole object."""
    bundle_id = proxied.upload(LARGE)
    proxy.faults.append(Fault("GetObject", Truncate(3 << 20)))
    proxy.faults.append(Fault("GetObject", IgnoreRange()))
    answer = proxied.fetch(bundle_id, sign(KEY, LARGE))
    assert (answer.status_code, answer.json()["code"]) == (503, "storage_unavailable")


@pytest.mark.parametrize("bundle", [SMALL, LARGE], ids=["small", "large"])
def test_a_part_that_nobody_asked_for_is_not_taken_for_the_bundle(
    proxied: Service, proxy: Proxy, bundle: bytes
) -> None:
    """Its proof may hold; what is missing would be filled with what the memory held before."""
    bundle_id = proxied.upload(bundle)
    proxy.faults.append(Fault("GetObject", AddRange("bytes=0-499"), times=None))
    answer = proxied.fetch(bundle_id, sign(KEY, bundle[:500]))
    assert (answer.status_code, answer.json()["code"]) == (503, "storage_unavailable")


@pytest.mark.parametrize("gone", [Respond(404, "NoSuchKey"), Respond(412, "PreconditionFailed")])
def test_a_bundle_that_is_deleted_while_its_body_is_resumed(
    proxied: Service, proxy: Proxy, gone: Respond
) -> None:
    bundle_id = proxied.upload(SMALL)
    proxy.faults.append(Fault("GetObject", Truncate(500)))
    proxy.faults.append(Fault("GetObject", gone))
    answer = proxied.fetch(bundle_id, sign(KEY, SMALL))
    assert (answer.status_code, answer.json()["code"]) == (503, "storage_unavailable")


def test_seven_refusals_in_a_row_go_unnoticed(proxied: Service, proxy: Proxy) -> None:
    proxy.faults.append(Fault("PutObject", Respond(503, "SlowDown"), times=client.ATTEMPTS - 1))
    assert proxied.fetch(proxied.upload(SMALL), sign(KEY, SMALL)).content == SMALL
    assert operations(proxy).count("PutObject") == client.ATTEMPTS


@pytest.mark.parametrize("bundle", [SMALL, LARGE], ids=["small", "large"])
def test_a_call_to_s3_is_bounded_also_where_it_takes_no_body(
    store: Store, s3: Any, monkeypatch: pytest.MonkeyPatch, bundle: bytes
) -> None:
    monkeypatch.setattr(client, "CALL_TIMEOUT", 0.5)
    monkeypatch.setattr(client, "SLOWEST", 100 << 20)
    with (
        Proxy(store.endpoint_url) as proxy,
        running_service(store, s3, endpoint_url=proxy.url, part_size=PART) as service,
    ):
        proxy.faults.append(Fault("PutObject", Delay(30), times=None))
        proxy.faults.append(Fault("UploadPart", Delay(30), times=None))
        answer = service.http.post("/upload", content=bundle)
        assert (answer.status_code, answer.json()["code"]) == (503, "storage_unavailable")
        assert answer.elapsed.total_seconds() < 5
        until(lambda: nothing_left(service))
        until(lambda: not unsent(proxy))


def unsent(proxy: Proxy) -> int:
    """Bytes that this machine still holds for the proxy; 0 where it does not tell."""
    table = Path("/proc/net/tcp")
    rows = [row.split() for row in table.read_text().splitlines()[1:]] if table.exists() else []
    port = int(proxy.url.rsplit(":", 1)[1])
    return sum(int(row[4].split(":")[0], 16) for row in rows if int(row[2][-4:], 16) == port)


def test_a_part_that_s3_stops_taking_is_sent_again(
    store: Store, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is longer than what the kernel takes for a stalled reader."""
    monkeypatch.setattr(client, "READ_TIMEOUT", 1.0)
    bundle = bytes(24 << 20)
    with Proxy(store.endpoint_url) as proxy:
        service = serve(endpoint_url=proxy.url, part_size=len(bundle))
        proxy.faults.append(Fault("PutObject", Delay(30)))
        answer = service.http.post("/upload", content=bundle)
        assert answer.status_code == 200
        assert answer.elapsed.total_seconds() < 20
        assert operations(proxy).count("PutObject") >= 2
        assert service.fetch(answer.text, sign(KEY, bundle)).content == bundle


def stuck(proxy: Proxy) -> bool:
    """Whether the kernel takes no more for it."""
    before = unsent(proxy)
    time.sleep(0.1)
    return 0 < before == unsent(proxy)


@needs_proc
def test_what_a_lost_connection_still_sends_is_of_its_own_bundle(
    store: Store, serve: Serve
) -> None:
    """Of an upload that was aborted while S3 took no more of its part; others have its memory."""
    part = 16 << 20
    aborted, *others = (random_bytes(seed, 2 * part + 1000) for seed in range(3))
    stalled = Withhold()
    with Proxy(store.endpoint_url, ahead=CHUNK) as proxy:
        service = serve(endpoint_url=proxy.url, part_size=part, memory_budget=2 * part)
        proxy.faults.append(Fault("UploadPart", stalled))
        with dial(service.url) as connection:
            head = f"POST /upload HTTP/1.1\r\nHost: x\r\nContent-Length: {len(aborted)}\r\n\r\n"
            connection.sendall(head.encode() + aborted[: part + 1000])
            until(lambda: "UploadPart" in operations(proxy) and stuck(proxy))
        until(lambda: "AbortMultipartUpload" in operations(proxy))
        stored = [(service.upload(bundle), bundle) for bundle in others]
        stalled.told.set()
        assert stalled.ended.wait(20)
        assert bytes(stalled.taken) == aborted[: len(stalled.taken)]
        for bundle_id, bundle in stored:
            assert service.fetch(bundle_id, sign(KEY, bundle)).content == bundle
    print(f"{len(stalled.taken)} bytes were sent late")
    assert stalled.taken


def test_a_bundle_deleted_between_the_two_reads(proxied: Service, proxy: Proxy) -> None:
    bundle_id = proxied.upload(LARGE)
    proxy.faults.append(Fault("GetObject", Respond(404, "NoSuchKey"), after=1))
    answer = proxied.fetch(bundle_id, sign(KEY, LARGE))
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


def test_nothing_more_is_read_for_a_reader_that_has_left(proxied: Service, proxy: Proxy) -> None:
    bundle = LARGE * 3
    proof = sign(KEY, bundle)
    bundle_id = proxied.http.post("/upload", content=bundle, headers=proof).text
    proxy.requests.clear()
    with proxied.http.stream("GET", f"/files/{bundle_id}", headers=proof) as answer:
        next(answer.iter_raw())
    until(lambda: proxy.open_connections <= 1)
    [_, read] = proxy.requests
    assert read.operation == "GetObject"
    assert read.sent < len(bundle) // 2
