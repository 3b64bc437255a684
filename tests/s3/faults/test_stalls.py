"""S3 takes no more of an upload."""

import time
from pathlib import Path
from typing import Any

import pytest

from service.s3 import calls, client
from tests.s3.faults.failures import LARGE, SMALL, nothing_left, operations
from tests.support.clients.signing import random_bytes, sign
from tests.support.clients.sockets import dial
from tests.support.marks import needs_proc
from tests.support.polling import until
from tests.support.proxy import (
    CHUNK,
    Delay,
    Fault,
    Proxy,
    Withhold,
)
from tests.support.services.thread import SMALL_PART, Serve, running_service
from tests.support.stores import Store

KEY = "a signing key"
PART = SMALL_PART


@pytest.mark.parametrize("bundle", [SMALL, LARGE], ids=["small", "large"])
def test_a_call_to_s3_is_bounded_also_where_it_takes_no_body(
    store: Store, s3: Any, monkeypatch: pytest.MonkeyPatch, bundle: bytes
) -> None:
    monkeypatch.setattr(calls, "CALL_TIMEOUT", 0.5)
    monkeypatch.setattr(calls, "MIN_UPLOAD_RATE", 100 << 20)
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
