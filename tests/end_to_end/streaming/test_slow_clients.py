"""Slow clients hold so little memory that they do not delay others."""

import asyncio
import statistics
import time
from collections import Counter
from collections.abc import Callable

import pytest

from tests.support.clients import load
from tests.support.clients.malicious import Attack, running_attacks
from tests.support.clients.signing import random_bytes, sign
from tests.support.services.thread import SMALL_PART, Service, StartService

KIB, MIB = 1 << 10, 1 << 20
KEY = load.KEY
COUNT = 40
SECONDS = 3.0
SLOW_RATE = 20 * KIB
"""Bytes per second of a slow client."""

SMALL_BUDGET = 16 * MIB
"""Bytes of memory. Reserving a part for each slow client would take 200 MiB."""


@pytest.fixture
def service(start_service: StartService) -> Service:
    return start_service(memory_budget=SMALL_BUDGET, part_size=SMALL_PART)


@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
def test_40_slow_uploads_are_not_refused_and_do_not_delay_others(
    service: Service, *, chunked: bool
) -> None:
    bundle = random_bytes(1, int(SLOW_RATE * SECONDS))

    async def transfer() -> tuple[list[load.Response], list[float]]:
        slow = [
            asyncio.create_task(
                load.upload(
                    service.url, bundle, duration=SECONDS, chunked=chunked, chunk_size=4 * KIB
                )
            )
            for _ in range(COUNT)
        ]
        await asyncio.sleep(SECONDS / 4)
        times = await measure_small_uploads(service.url, lambda: any(not t.done() for t in slow))
        return await asyncio.gather(*slow), times

    responses, times = asyncio.run(asyncio.wait_for(transfer(), 60))
    print(f"{len(times)} small uploads, longest {max(times) * 1e3:.0f} ms")
    assert Counter(response.status for response in responses) == {200: COUNT}
    assert len(times) > 3
    assert statistics.median(times) < 0.2
    for response in responses[:3]:
        bundle_id = response.body.decode()
        assert service.fetch(bundle_id, sign(KEY, bundle)).content == bundle


async def measure_small_uploads(url: str, more: Callable[[], bool]) -> list[float]:
    """Upload 4 bytes again and again; return the seconds of each upload."""
    times = []
    while more():
        started = time.monotonic()
        response = await load.upload(url, b"tiny", chunked=False)
        times.append(time.monotonic() - started)
        assert response.status == 200
        await asyncio.sleep(0.1)
    return times


def test_40_slow_readers_of_12_mib_are_not_refused_and_do_not_delay_others(
    service: Service,
) -> None:
    bundle = random_bytes(1, 12 * MIB)
    proof = sign(KEY, bundle)
    bundle_id = service.http.post("/upload", content=bundle, headers=proof).text
    headers = "".join(f"{name}: {value}\r\n" for name, value in proof.items())
    request = f"GET /files/{bundle_id} HTTP/1.1\r\nHost: x\r\n{headers}\r\n"
    with running_attacks(
        service.url, Attack(COUNT, request, read_rate=SLOW_RATE, reconnect=False)
    ) as readers:
        time.sleep(1)  # moto needs this long to read the object for all of them.
        deadline = time.monotonic() + SECONDS
        times = asyncio.run(
            asyncio.wait_for(
                measure_small_uploads(service.url, lambda: time.monotonic() < deadline), 60
            )
        )
        used = service.metrics()['history_memory_used_bytes{pool="windows"}']
        [report] = readers.stop()
    print(f"{report}; {len(times)} small uploads, longest {max(times) * 1e3:.0f} ms")
    assert report.counts == {"still open": COUNT}
    assert report.sent >= COUNT * SLOW_RATE
    assert used == COUNT * 128 * KIB
    assert len(times) > 3
    assert statistics.median(times) < 0.2
