"""Stores that keep less than they accept: this is tried at the start, and no bundle is lost."""

import asyncio
import logging
import time
from collections.abc import Iterator
from typing import Any

import pytest

from service.errors import StorageUnavailable
from service.s3 import calls as s3_calls
from service.s3 import capabilities, retries
from service.s3.calls import S3Calls
from service.s3.capabilities import Probe, RecordProbe, is_capable
from service.s3.client import connect
from service.telemetry import timing, tracing
from service.telemetry.metrics import Metrics
from tests.support.clients.signing import random_bytes, sign
from tests.support.polling import wait_until
from tests.support.proxy import (
    Action,
    Delay,
    DropHeader,
    DropResponse,
    Fault,
    KeepCutBody,
    Proxy,
    Respond,
)
from tests.support.services.thread import StartService
from tests.support.stores import Store
from tests.support.stores.access import aws_environment
from tests.support.stores.buckets import new_bucket, object_keys

NOT_IMPLEMENTED = Respond(501, "NotImplemented")
BUNDLE = random_bytes(1, 1000)

LACKS_TAGS: dict[str, list[tuple[str, Action]]] = {
    "ignores tags of PutObject": [("PutObject", DropHeader("x-amz-tagging"))],
    "refuses tags of PutObject": [("PutObject", Respond(501, "NotImplemented", after_bytes=0))],
    "cannot read tags": [("GetObjectTagging", NOT_IMPLEMENTED)],
    "has no tags": [("GetObjectTagging", Respond(404, "NoSuchTagSet"))],
    "cannot write tags later": [("PutObjectTagging", NOT_IMPLEMENTED)],
    "refuses tags as invalid": [("PutObjectTagging", Respond(400, "InvalidArgument"))],
}
"""Stores that do not keep records in tags: operations and what they do instead."""


@pytest.fixture
def proxy(store: Store, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    monkeypatch.setattr(retries, "MAX_BACKOFF", 0.05)
    with Proxy(store.endpoint_url) as proxy:
        yield proxy


@pytest.mark.parametrize("store_lacks", LACKS_TAGS)
def test_service_is_not_ready_if_the_store_does_not_keep_tags(
    proxy: Proxy,
    start_service: StartService,
    caplog: pytest.LogCaptureFixture,
    store_lacks: str,
) -> None:
    """No upload gets an id, and the log says what to do within seconds."""
    for operation, action in LACKS_TAGS[store_lacks]:
        proxy.faults.append(Fault(operation, action, times=None))
    started = time.monotonic()
    service = start_service(endpoint_url=proxy.url)
    assert service.http.get("/readyz").status_code == 503
    assert time.monotonic() - started < 5
    assert "set HISTORY_RECORDS=metadata" in caplog.text
    assert "credentials" not in caplog.text
    response = service.http.post("/upload", content=BUNDLE)
    assert (response.status_code, response.json()["code"]) == (503, "storage_unavailable")
    assert service.http.get("/healthz").status_code == 200
    assert service.objects() == []


def test_service_without_tags_works_with_records_in_metadata(
    proxy: Proxy, start_service: StartService
) -> None:
    for operation in ("GetObjectTagging", "PutObjectTagging"):
        proxy.faults.append(Fault(operation, NOT_IMPLEMENTED, times=None))
    service = start_service(endpoint_url=proxy.url, records="metadata")
    assert service.http.get("/readyz").status_code == 200
    proof = sign("a signing key", BUNDLE)
    proxy.requests.clear()
    bundle_id = service.upload(BUNDLE, proof["X-HMAC"])
    assert service.fetch(bundle_id, proof).content == BUNDLE
    assert [request.operation for request in proxy.requests] == ["PutObject", "GetObject"]


@pytest.mark.parametrize("operation", ["PutObject", "CreateMultipartUpload"])
def test_service_is_not_ready_if_the_store_does_not_keep_metadata(
    proxy: Proxy,
    start_service: StartService,
    caplog: pytest.LogCaptureFixture,
    operation: str,
) -> None:
    dropped = DropHeader("x-amz-meta-history-expires-at")
    proxy.faults.append(Fault(operation, dropped, times=None))
    service = start_service(endpoint_url=proxy.url, records="metadata")
    assert service.http.get("/readyz").status_code == 503
    assert "use another store" in caplog.text
    assert service.http.post("/upload", content=BUNDLE).status_code == 503
    assert service.objects() == []


@pytest.mark.parametrize(
    "fault",
    [
        Fault("CreateMultipartUpload", DropResponse()),
        Fault("UploadPart", Respond(403, "AccessDenied")),
        Fault("CompleteMultipartUpload", Respond(500, "InternalError"), times=None),
        Fault("DeleteObject", Respond(500, "InternalError"), times=None),
    ],
    ids=lambda fault: fault.operation,
)
def test_interrupted_probe_leaves_nothing(
    proxy: Proxy, start_service: StartService, fault: Fault
) -> None:
    proxy.faults.append(fault)
    service = start_service(endpoint_url=proxy.url, records="metadata")
    service.http.get("/readyz")
    proxy.faults.clear()
    wait_until(lambda: service.multipart_uploads() == [] == service.objects())


def test_probe_that_a_shutdown_interrupts_leaves_nothing(
    store: Store, s3: Any, proxy: Proxy
) -> None:
    bucket = new_bucket(s3)
    proxy.faults.append(Fault("UploadPart", Delay(60)))

    def uploads() -> list[Any]:
        found: list[Any] = s3.list_multipart_uploads(Bucket=bucket).get("Uploads", [])
        return found

    async def main() -> None:
        async with connect() as client:
            calls = S3Calls(bucket, Metrics())
            probe = RecordProbe(client, calls, bucket=bucket, prefix="x/", records="metadata")
            with pytest.raises(StorageUnavailable):
                await probe.require(limit=1)
            assert len(uploads()) == 1
            await probe.close()

    with aws_environment(store, proxy.url):
        asyncio.run(main())
    assert uploads() == object_keys(s3, bucket) == []


def test_repeated_probe_does_not_belong_to_the_request_that_started_it(
    store: Store,
    s3: Any,
    proxy: Proxy,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The request waits for its end, but log lines and spans do not belong to it."""
    monkeypatch.setattr(capabilities, "RETRY_INTERVAL", 0.05)
    monkeypatch.setattr(s3_calls, "LOG_INTERVAL", 0.0)
    proxy.faults.append(Fault("PutObject", Respond(403, "AccessDenied"), times=None))
    bucket, spans, request_ids = new_bucket(s3), list[str](), list[str | None]()
    repeated = asyncio.Event()

    class RequestSpan:
        trace_id = "trace"

        def child(self, _: str, name: str, __: tracing.Attributes) -> "RequestSpan":
            spans.append(name)
            return self

        def end(self, _: tracing.Attributes, __: str | None = None) -> None:
            pass

    class RecordRequestId(logging.Filter):
        def filter(self, _: logging.LogRecord) -> bool:
            request_ids.append(timing.request_id())
            if len(request_ids) == 3:
                repeated.set()
            return True

    async def send_request(probe: RecordProbe) -> timing.RequestTiming:
        request = timing.start("the id of the request")
        tracing.enter(RequestSpan())
        with pytest.raises(StorageUnavailable):
            await probe.require()
        return request

    async def main() -> None:
        async with connect() as client:
            calls = S3Calls(bucket, Metrics())
            probe = RecordProbe(client, calls, bucket=bucket, prefix="x/", records="tags")
            request = await asyncio.create_task(send_request(probe))
            assert request.s3 > 0
            await asyncio.wait_for(repeated.wait(), 20)
            await probe.close()

    with aws_environment(store, proxy.url), caplog.filtering(RecordRequestId()):
        asyncio.run(main())
    assert (set(request_ids), spans) == ({None}, [])


def test_repetition_that_succeeds_is_the_last(
    store: Store, s3: Any, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody has to ask again, and who asks then waits for nothing."""
    monkeypatch.setattr(capabilities, "RETRY_INTERVAL", 0.05)
    failure = Fault("PutObject", Respond(403, "AccessDenied"), times=2)
    proxy.faults.append(failure)
    bucket = new_bucket(s3)

    async def main() -> None:
        async with connect() as client:
            calls = S3Calls(bucket, Metrics())
            probe = RecordProbe(client, calls, bucket=bucket, prefix="x/", records="tags")
            with pytest.raises(StorageUnavailable):
                await probe.require()
            await asyncio.to_thread(wait_until, lambda: probe.kept, timeout=20)
            assert failure.injected == 2
            sent = len(proxy.probes)
            await probe.require()
            assert len(proxy.probes) == sent
            await probe.close()

    with aws_environment(store, proxy.url):
        asyncio.run(main())


def test_probe_is_repeated_until_the_store_responds(
    proxy: Proxy, start_service: StartService
) -> None:
    failure = Fault(None, Respond(500, "InternalError"), times=None)
    proxy.faults.append(failure)
    service = start_service(endpoint_url=proxy.url)
    assert service.http.get("/readyz").status_code == 503
    assert service.http.post("/upload", content=BUNDLE).status_code == 503
    proxy.faults.clear()
    wait_until(lambda: service.http.get("/readyz").status_code == 200)
    assert service.fetch(service.upload(BUNDLE), sign("a signing key", BUNDLE)).content == BUNDLE
    probes = len(proxy.probes)
    service.upload(BUNDLE)
    assert service.http.get("/readyz").status_code == 200
    assert len(proxy.probes) == probes


@pytest.mark.every_store
def test_service_is_ready_exactly_if_the_store_keeps_its_records(
    store: Store, start_service: StartService, caplog: pytest.LogCaptureFixture
) -> None:
    """Garage accepts an upload with tags, and drops them."""
    started = time.monotonic()
    service = start_service(records="tags", require_hmac=False)
    status, upload = (
        service.http.get("/readyz").status_code,
        service.http.post("/upload", content=BUNDLE),
    )
    if "object tags" in store.lacks:
        assert time.monotonic() - started < 5
        assert "set HISTORY_RECORDS=metadata" in caplog.text
        assert (status, upload.status_code, service.objects()) == (503, 503, [])
    else:
        assert (status, upload.status_code) == (200, 200)
        assert service.fetch(upload.text).content == BUNDLE


@pytest.mark.every_store
def test_capabilities_of_the_store(store: Store, s3: Any) -> None:
    """Every store here keeps metadata."""
    bucket = new_bucket(s3)

    async def main() -> dict[str, bool]:
        async with connect() as client:
            probe = Probe(client, bucket, "bundles/")
            attempts = {
                "tags at put": probe.tags_at_put,
                "tags later": probe.tags_later,
                "metadata at put": probe.metadata_at_put,
                "metadata at create": probe.metadata_at_create,
                "keeps cut bodies": probe.keeps_cut_bodies,
            }
            found = {name: await is_capable(attempt()) for name, attempt in attempts.items()}
            await probe.remove()
            return found

    with aws_environment(store):
        capabilities = asyncio.run(main())
    keeps_tags = "object tags" not in store.lacks
    assert capabilities == {
        "tags at put": keeps_tags,
        "tags later": keeps_tags,
        "metadata at put": True,
        "metadata at create": True,
        "keeps cut bodies": "cut bodies" in store.lacks,
    }
    assert object_keys(s3, bucket) == []


def test_store_that_keeps_cut_bodies_is_recognized(store: Store, s3: Any, proxy: Proxy) -> None:
    bucket = new_bucket(s3)
    proxy.faults.append(Fault("PutObject", KeepCutBody()))

    async def main() -> bool:
        async with connect() as client:
            probe = Probe(client, bucket, "bundles/")
            kept = await probe.keeps_cut_bodies()
            await probe.remove()
            return kept

    with aws_environment(store, proxy.url):
        assert asyncio.run(main())
    assert object_keys(s3, bucket) == []
