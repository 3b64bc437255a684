"""Clients that pause longer than S3 waits for the next byte of a request.

All times are a twentieth of the real ones: S3 waits for about 20 s, and clients may pause for 30 s.
"""

import asyncio
import time
from collections.abc import Iterator

import pytest

from service.bundles import stream
from service.bundles.memory import Memory
from service.bundles.stream import UploadStream
from tests.support.clients.signing import random_bytes, sign
from tests.support.clients.sockets import begin_upload, problem_code, read_until_closed
from tests.support.polling import wait_until
from tests.support.proxy import DropSilentRequest, Fault, Proxy
from tests.support.services.thread import StartService
from tests.support.stores import Store

pytestmark = pytest.mark.both_records

KEY = "a signing key"
S3_PATIENCE = 1.0
"""Seconds of silence after which S3 drops a request."""

CLIENT_PAUSE = 1.5
KIB = 1024


@pytest.fixture
def proxy(store: Store) -> Iterator[Proxy]:
    with Proxy(store.endpoint_url) as running:
        running.faults.append(Fault("PutObject", DropSilentRequest(S3_PATIENCE), times=None))
        yield running


def slow_body(bundle: bytes, chunk_size: int, pauses: int) -> Iterator[bytes]:
    """Yield a bundle in chunks, with pauses after some of them: as early and as late as possible.

    The first pause is after the second chunk: before that, there is no request to S3.
    """
    chunks = [bundle[start : start + chunk_size] for start in range(0, len(bundle), chunk_size)]
    for position, chunk in enumerate(chunks, 1):
        yield chunk
        if position in (2, len(chunks) - 1)[:pauses]:
            time.sleep(CLIENT_PAUSE)


@pytest.mark.parametrize("chunk_size", [1 * KIB, 64 * KIB])
@pytest.mark.parametrize("size", [200 * KIB, 10_000 * KIB], ids=["short", "long"])
def test_s3_does_not_drop_an_upload_while_its_client_pauses(
    proxy: Proxy,
    start_service: StartService,
    monkeypatch: pytest.MonkeyPatch,
    size: int,
    chunk_size: int,
) -> None:
    """The long bundle cannot be sent again at its end, so dropping it would be an error."""
    monkeypatch.setattr(stream, "SILENCE", 0.25)
    service, bundle = start_service(endpoint_url=proxy.url), random_bytes(1, size)
    response = service.http.post(
        "/upload",
        content=slow_body(bundle, chunk_size, pauses=2),
        headers={"Content-Length": str(size)},
    )
    assert response.status_code == 200
    assert [request.operation for request in proxy.requests] == ["PutObject"]
    assert service.fetch(response.text, sign(KEY, bundle)).content == bundle


def test_upload_that_s3_drops_during_a_pause_is_sent_again(
    proxy: Proxy, start_service: StartService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "SILENCE", 60.0)
    service, bundle = start_service(endpoint_url=proxy.url), random_bytes(1, 2400 * KIB)
    response = service.http.post(
        "/upload",
        # The first two chunks are more than one read, so the request to S3 starts.
        content=slow_body(bundle, 800 * KIB, pauses=1),
        headers={"Content-Length": str(len(bundle))},
    )
    assert response.status_code == 200
    operations = [request.operation for request in proxy.requests]
    assert operations.count("PutObject") >= 2
    assert service.fetch(response.text, sign(KEY, bundle)).content == bundle


@pytest.mark.parametrize("sent", [100 * KIB, 9_000 * KIB])
def test_client_that_stays_silent_times_out_and_leaves_nothing(
    proxy: Proxy, start_service: StartService, monkeypatch: pytest.MonkeyPatch, sent: int
) -> None:
    monkeypatch.setattr(stream, "SILENCE", 0.25)
    service = start_service(endpoint_url=proxy.url, read_timeout="2s")
    with begin_upload(service.url, random_bytes(1, sent), 2 * sent) as connection:
        response = read_until_closed(connection)
    assert response.startswith(b"HTTP/1.1 408 ")
    assert problem_code(response) == b"upload_timeout"
    [put] = [request for request in proxy.requests if request.operation == "PutObject"]
    assert put.received < sent
    wait_until(lambda: not service.objects())


def test_chunk_that_arrives_as_the_silence_ends_is_not_overtaken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The timeout and the chunk come in the same step of the event loop."""
    monkeypatch.setattr(stream, "SILENCE", 0.05)
    chunks = [bytes([number]) * 1000 for number in range(1, 4)]

    async def test() -> None:
        loop = asyncio.get_running_loop()
        memory = Memory(20 << 20, part_size=5 << 20, timeout=1)
        upload = UploadStream(3000, memory.replay())
        received = bytearray()

        async def receive() -> None:
            async for piece in upload:
                received.extend(piece)

        receiving = asyncio.create_task(receive())
        await upload.send(chunks[0])
        await asyncio.sleep(0)
        loop.call_later(0.051, lambda: upload.send(chunks[1]).send(None))
        time.sleep(0.1)  # noqa: ASYNC251 - both timers are due when the event loop continues
        await asyncio.sleep(0.01)
        await upload.send(chunks[2])
        upload.finish()
        await receiving
        assert bytes(received) == b"".join(chunks)

    asyncio.run(asyncio.wait_for(test(), 10))
