"""S3 fails during a download: no false answer, and no byte of anything else."""

import httpx
import pytest

from service.s3 import retries
from service.s3.bodies import MAX_RESUMES
from tests.s3.faults.failures import DOWN, LARGE, REFUSED, SMALL, operations
from tests.support.clients.signing import sign
from tests.support.polling import until
from tests.support.proxy import AddRange, Fault, IgnoreRange, Proxy, Reset, Respond, Truncate
from tests.support.services.thread import Service

KEY = "a signing key"


def test_where_the_tag_refuses_no_body_is_read(proxied: Service, proxy: Proxy) -> None:
    bundle_id = proxied.upload(LARGE, sign(KEY, LARGE)["X-HMAC"])
    proxy.requests.clear()
    refused = {"wrong HMAC": sign(KEY, b"another"), "another key": sign("another key", LARGE)}
    for proof in refused.values():
        assert proxied.fetch(bundle_id, proof).status_code == 401
    for half in ({}, {"X-HMAC": "0" * 64}, {"X-SIGNING-KEY": KEY}, {**proof, "X-SIGNING-KEY": ""}):
        assert proxied.fetch(bundle_id, half).status_code == 400
    assert operations(proxy) == ["GetObjectTagging"] * len(refused)


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
    assert operations(proxy).count("GetObject") == 2 + MAX_RESUMES
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
    proxy.faults.append(
        Fault("PutObject", Respond(503, "SlowDown"), times=retries.MAX_ATTEMPTS - 1)
    )
    assert proxied.fetch(proxied.upload(SMALL), sign(KEY, SMALL)).content == SMALL
    assert operations(proxy).count("PutObject") == retries.MAX_ATTEMPTS


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
