"""Uploads while S3 stops reading."""

import time
from pathlib import Path
from typing import Any

import pytest

from service.s3 import calls, client, retries
from tests.s3.faults.failures import LARGE, SMALL, is_bucket_empty, operations
from tests.support.clients.signing import random_bytes, sign
from tests.support.clients.sockets import begin_chunked_upload, begin_upload
from tests.support.marks import needs_proc
from tests.support.polling import wait_until
from tests.support.proxy import (
    CHUNK_SIZE,
    Delay,
    Fault,
    PauseRequest,
    Proxy,
)
from tests.support.services.thread import SMALL_PART, StartService, running_service
from tests.support.stores import Store

pytestmark = pytest.mark.both_records

KEY = "a signing key"
PART = SMALL_PART


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("bundle", [SMALL, LARGE], ids=["small", "large"])
def test_call_times_out_if_s3_does_not_read_its_body(
    store: Store, s3: Any, monkeypatch: pytest.MonkeyPatch, bundle: bytes, *, chunked: bool
) -> None:
    monkeypatch.setattr(calls, "CALL_TIMEOUT", 0.5)
    monkeypatch.setattr(client, "READ_TIMEOUT", 1.0)
    monkeypatch.setattr(calls, "MIN_UPLOAD_RATE", 100 << 20)
    with (
        Proxy(store.endpoint_url) as proxy,
        running_service(store, s3, endpoint_url=proxy.url, part_size=PART) as service,
    ):
        proxy.faults.append(Fault("PutObject", Delay(30), times=None))
        proxy.faults.append(Fault("UploadPart", Delay(30), times=None))
        response = service.http.post("/upload", content=iter([bundle]) if chunked else bundle)
        assert (response.status_code, response.json()["code"]) == (503, "storage_unavailable")
        # While the client still sends, each attempt has a timeout, but not all of them together.
        attempts = retries.MAX_ATTEMPTS * (client.READ_TIMEOUT + retries.MAX_BACKOFF)
        still_sends = bundle is LARGE and not chunked
        assert response.elapsed.total_seconds() < (attempts if still_sends else 5)
        wait_until(lambda: is_bucket_empty(service))
        wait_until(lambda: not unsent_bytes(proxy))


def unsent_bytes(proxy: Proxy) -> int:
    """Return how many bytes the kernel still has to send to the proxy, or 0 without /proc."""
    table = Path("/proc/net/tcp")
    rows = [row.split() for row in table.read_text().splitlines()[1:]] if table.exists() else []
    port = int(proxy.url.rsplit(":", 1)[1])
    return sum(int(row[4].split(":")[0], 16) for row in rows if int(row[2][-4:], 16) == port)


def test_part_is_sent_again_if_s3_stops_reading(
    store: Store, start_service: StartService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The part is larger than the kernel's buffers for a connection that is not read."""
    monkeypatch.setattr(client, "READ_TIMEOUT", 1.0)
    bundle = bytes(24 << 20)
    with Proxy(store.endpoint_url) as proxy:
        service = start_service(endpoint_url=proxy.url, part_size=len(bundle))
        proxy.faults.append(Fault("PutObject", Delay(30)))
        response = service.http.post("/upload", content=iter([bundle]))
        assert response.status_code == 200
        assert response.elapsed.total_seconds() < 20
        assert operations(proxy).count("PutObject") >= 2
        assert service.fetch(response.text, sign(KEY, bundle)).content == bundle


@pytest.mark.parametrize("size", [7 << 20, 24 << 20])
def test_upload_with_a_length_is_sent_again_if_s3_does_not_read_its_start(
    store: Store, start_service: StartService, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """The service reads no more than S3 takes, so the start of a large bundle is in memory too."""
    monkeypatch.setattr(client, "READ_TIMEOUT", 1.0)
    bundle = random_bytes(size, size)
    with Proxy(store.endpoint_url, receive_buffer=CHUNK_SIZE) as proxy:
        service = start_service(endpoint_url=proxy.url)
        proxy.faults.append(Fault("PutObject", PauseRequest()))
        response = service.http.post("/upload", content=bundle)
        assert response.status_code == 200
        assert response.elapsed.total_seconds() < 20
        assert service.fetch(response.text, sign(KEY, bundle)).content == bundle


def is_stalled(proxy: Proxy) -> bool:
    """Return whether the kernel has bytes for the proxy, but does not send them."""
    before = unsent_bytes(proxy)
    time.sleep(0.1)
    return 0 < before == unsent_bytes(proxy)


@needs_proc
@pytest.mark.parametrize("chunked", [False, True])
def test_abandoned_connection_sends_only_bytes_of_its_own_bundle(
    store: Store, start_service: StartService, *, chunked: bool
) -> None:
    """An upload is aborted while S3 does not read it. Other uploads then use its memory."""
    part = 16 << 20
    aborted, *others = (random_bytes(seed, 2 * part + 1000) for seed in range(3))
    stall = PauseRequest()
    with Proxy(store.endpoint_url, receive_buffer=CHUNK_SIZE) as proxy:
        service = start_service(endpoint_url=proxy.url, part_size=part, memory_budget=2 * part)
        first_bytes = aborted[: part + 1000]
        stalled, cleanup = "PutObject", "DeleteObject"
        if chunked:
            stalled, cleanup = "UploadPart", "AbortMultipartUpload"
        proxy.faults.append(Fault(stalled, stall))
        with (
            begin_chunked_upload(service.url, first_bytes)
            if chunked
            else begin_upload(service.url, first_bytes[: 2 << 20], len(aborted))
        ):
            wait_until(lambda: stalled in operations(proxy) and is_stalled(proxy))
        wait_until(lambda: cleanup in operations(proxy))
        stored = [(service.upload(bundle), bundle) for bundle in others]
        stall.resume.set()
        assert stall.ended.wait(20)
        assert bytes(stall.received) == aborted[: len(stall.received)]
        for bundle_id, bundle in stored:
            assert service.fetch(bundle_id, sign(KEY, bundle)).content == bundle
    print(f"{len(stall.received)} bytes were sent after the stall")
    assert stall.received
