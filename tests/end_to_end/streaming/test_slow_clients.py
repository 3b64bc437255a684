"""Slow clients hold so little memory that no other transfer waits for it."""

import asyncio
import time
from collections import Counter
from contextlib import ExitStack

import pytest

from service.http import access_log, slow_clients
from tests.support.access_log import logged_requests
from tests.support.clients import load
from tests.support.clients.malicious import Attack, running_attacks
from tests.support.clients.signing import random_bytes, sign
from tests.support.clients.sockets import begin_chunked_upload, begin_upload, read_exactly
from tests.support.polling import wait_until
from tests.support.services.thread import SMALL_PART, Service, StartService

KIB, MIB = 1 << 10, 1 << 20
KEY = load.KEY
COUNT = 40
SECONDS = 3.0
SLOW_RATE = 20 * KIB
"""Bytes per second of a slow client."""

SMALL_UPLOADS = 10
"""How many uploads of others are tried beside them."""

SMALL_BUDGET = 16 * MIB
"""Bytes of memory. Reserving a part for each slow client would take 200 MiB."""


@pytest.fixture
def service(start_service: StartService) -> Service:
    return start_service(memory_budget=SMALL_BUDGET, part_size=SMALL_PART)


@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
def test_nobody_is_refused_or_waits_for_memory_beside_40_slow_uploads(
    service: Service, caplog: pytest.LogCaptureFixture, *, chunked: bool
) -> None:
    bundle = random_bytes(1, int(SLOW_RATE * SECONDS))

    async def transfer() -> list[load.Response]:
        slow = [
            asyncio.create_task(
                load.upload(
                    service.url, bundle, duration=SECONDS, chunked=chunked, chunk_size=4 * KIB
                )
            )
            for _ in range(COUNT)
        ]
        await asyncio.sleep(SECONDS / 4)
        await upload_beside_others(service.url)
        return await asyncio.gather(*slow)

    with caplog.at_level("INFO", access_log.__name__):
        responses = asyncio.run(asyncio.wait_for(transfer(), 60))
        assert Counter(response.status for response in responses) == {200: COUNT}
        assert waits_for_memory(caplog, COUNT + SMALL_UPLOADS) == {0}
    for response in responses[:3]:
        bundle_id = response.body.decode()
        assert service.fetch(bundle_id, sign(KEY, bundle)).content == bundle


async def upload_beside_others(url: str) -> None:
    for _ in range(SMALL_UPLOADS):
        response = await load.upload(url, b"tiny", chunked=False)
        assert response.status == 200
        await asyncio.sleep(0.1)


def waits_for_memory(caplog: pytest.LogCaptureFixture, count: int) -> set[float]:
    """Return how many seconds all uploads have waited for memory, of which there are so many."""

    def seconds() -> list[float]:
        uploads = [line for line in logged_requests(caplog) if line["route"] == "/upload"]
        return [line["seconds_budget"] for line in uploads]

    wait_until(lambda: len(seconds()) >= count)
    return set(seconds())


def test_nobody_is_refused_or_waits_for_memory_beside_40_slow_readers_of_12_mib(
    service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    bundle = random_bytes(1, 12 * MIB)
    proof = sign(KEY, bundle)
    bundle_id = service.http.post("/upload", content=bundle, headers=proof).text
    headers = "".join(f"{name}: {value}\r\n" for name, value in proof.items())
    request = f"GET /files/{bundle_id} HTTP/1.1\r\nHost: x\r\n{headers}\r\n"
    with (
        running_attacks(
            service.url, Attack(COUNT, request, read_rate=SLOW_RATE, reconnect=False)
        ) as readers,
        caplog.at_level("INFO", access_log.__name__),
    ):
        windows = 'history_memory_used_bytes{pool="windows"}'
        wait_until(lambda: service.metrics()[windows] == COUNT * 128 * KIB, timeout=60)
        asyncio.run(asyncio.wait_for(upload_beside_others(service.url), 60))
        assert waits_for_memory(caplog, SMALL_UPLOADS) == {0}
        assert service.metrics()[windows] == COUNT * 128 * KIB
        [report] = readers.stop()
    assert report.counts == {"still open": COUNT}
    assert report.sent >= COUNT * SLOW_RATE


@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
def test_slow_upload_is_read_as_fast_as_it_sends_beside_many_others(
    start_service: StartService, monkeypatch: pytest.MonkeyPatch, *, chunked: bool
) -> None:
    """Each read returns at most 16 KiB beside so many others.

    The kernel holds what the service has not read. So if the service reads too slowly, the client
    notices it only when it waits for the response.
    """
    monkeypatch.setattr(slow_clients, "SLOW_AFTER", 0.1)
    service = start_service(memory_budget=2 * SMALL_PART, part_size=SMALL_PART)
    windows = SMALL_PART // (128 * KIB)
    piece, pieces, interval = bytes(10 * KIB), 60, 0.05
    frame = b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece
    with ExitStack() as others:
        for _ in range(windows - 1):
            others.enter_context(begin_upload(service.url, b"", SMALL_PART))
        used = 'history_memory_used_bytes{pool="windows"}'
        wait_until(lambda: service.metrics()[used] == (windows - 1) * 128 * KIB)
        started = time.monotonic()
        with (
            begin_chunked_upload(service.url, piece)
            if chunked
            else begin_upload(service.url, piece, len(piece) * (pieces + 1))
        ) as upload:
            upload.settimeout(60)
            for _ in range(pieces):
                upload.sendall(frame)
                time.sleep(interval)
            if chunked:
                upload.sendall(b"0\r\n\r\n")
            sent = time.monotonic()
            assert read_exactly(upload, 12) == b"HTTP/1.1 200"
        assert time.monotonic() - sent < sent - started
