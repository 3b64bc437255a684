"""Slow clients and large uploads at full size: nobody is refused, and memory stays in its limit."""

import asyncio
import statistics
import time
from collections import Counter
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
import uvloop

from tests.support.clients import load
from tests.support.clients.load import Response
from tests.support.clients.malicious import Attack, running_attacks
from tests.support.clients.signing import random_bytes
from tests.support.services.metrics import metric_total
from tests.support.services.process import process_memory, service_process_for
from tests.support.stores import Store
from tests.support.stores.servers import sink

KIB, MIB = 1 << 10, 1 << 20
DEFAULT_BUDGET = 256 * MIB
OVERHEAD = 160 * MIB
"""Bytes that the process may use beside its memory budget."""

SETTLING = 10.0
"""Seconds that the service has to accept a thousand connections at once, and open those to S3."""

SLOW_RATE = 20 * KIB
OPEN = {"HISTORY_REQUIRE_HMAC": "false"}
GOOD_SIZES = {"4 B": 4, "1 MiB": MIB, "9 MiB": 9 * MIB}


@pytest.fixture(scope="module")
def discarding_store() -> Iterator[Store]:
    with sink(object_size=12 * MIB) as store:
        yield store


@dataclass
class GoodClients:
    """Clients that upload and download each of `GOOD_SIZES`, and the seconds of each transfer."""

    url: str
    times: dict[str, list[float]] = field(default_factory=dict)

    async def run(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds

        async def repeat(name: str, size: int) -> None:
            bundle = random_bytes(size, size)
            bundle_id = str(UUID(int=size))
            while time.monotonic() < deadline:
                await measure(f"up {name}", load.upload(self.url, bundle, chunked=False))
                response = await measure(f"down {name}", load.download(self.url, bundle_id))
                assert len(response.body) == size
                await asyncio.sleep(0.1)

        async def measure(name: str, transfer: Coroutine[Any, Any, Response]) -> Response:
            started = time.monotonic()
            response = await transfer
            self.times.setdefault(name, []).append(time.monotonic() - started)
            assert response.status == 200
            return response

        await asyncio.gather(*(repeat(*named_size) for named_size in GOOD_SIZES.items()))

    def p99(self, name: str) -> float:
        return statistics.quantiles(self.times[name], n=100)[98]

    def __str__(self) -> str:
        return "; ".join(
            f"{len(times)} of {name}: median {statistics.median(times) * 1e3:.0f} ms, "
            f"p99 {self.p99(name) * 1e3:.0f} ms"
            for name, times in self.times.items()
        )


def check_latency(alone: GoodClients, beside: GoodClients) -> None:
    """Check that 99 % of transfers take at most twice as long as without the slow clients.

    All clients and the store share the processors with the service.
    """
    ratios = {name: round(beside.p99(name) / alone.p99(name), 2) for name in alone.times}
    print(f"p99 compared to alone: {ratios}")
    assert {name: ratio for name, ratio in ratios.items() if ratio > 2} == {}


def check_memory(pid: int, budget: int = DEFAULT_BUDGET) -> None:
    peak = process_memory(pid, "VmHWM")
    print(f"peak {peak / MIB:.0f} MiB, allowed {(budget + OVERHEAD) / MIB:.0f}")
    assert peak <= budget + OVERHEAD


@pytest.mark.soak
def test_1000_slow_uploads_do_not_delay_others(discarding_store: Store) -> None:
    """Each declares 10 MiB and sends 20 KiB/s, for a minute."""
    head = f"POST /upload HTTP/1.1\r\nHost: x\r\nContent-Length: {10 * MIB}\r\n\r\n"
    slow = Attack(1000, head, payload="x" * SLOW_RATE, interval=1, reconnect=False)
    with service_process_for(discarding_store, "a-bucket", **OPEN) as (url, process):
        alone, beside = GoodClients(url), GoodClients(url)
        uvloop.run(GoodClients(url).run(2))
        uvloop.run(alone.run(60))
        with running_attacks(url, slow) as attackers:
            time.sleep(SETTLING)
            uvloop.run(beside.run(60))
            [report] = attackers.stop()
        print(f"\nalone: {alone}\nbeside slow uploads: {beside}\n{report}")
        assert report.counts == {"still open": 1000}
        check_memory(process.pid)
    check_latency(alone, beside)


@pytest.mark.soak
def test_100_slow_chunked_uploads_complete(discarding_store: Store) -> None:
    """Each sends 1.5 MiB in chunks of 4 KiB, at 20 KiB/s."""
    bundle = random_bytes(1, 3 * MIB // 2)

    async def transfer(url: str, beside: GoodClients) -> Counter[int]:
        duration = len(bundle) / SLOW_RATE
        uploads = asyncio.gather(
            *(load.upload(url, bundle, duration=duration, chunk_size=4 * KIB) for _ in range(100))
        )
        await beside.run(duration)
        return Counter(response.status for response in await uploads)

    with service_process_for(discarding_store, "a-bucket", **OPEN) as (url, process):
        alone, beside = GoodClients(url), GoodClients(url)
        uvloop.run(GoodClients(url).run(2))
        uvloop.run(alone.run(60))
        statuses = uvloop.run(transfer(url, beside))
        print(f"\nalone: {alone}\nbeside slow uploads: {beside}\n{statuses}")
        check_memory(process.pid)
    assert statuses == {200: 100}
    check_latency(alone, beside)


@pytest.mark.soak
def test_500_slow_readers_do_not_delay_others(discarding_store: Store) -> None:
    """Each reads 12 MiB at 20 KiB/s, for a minute."""
    with service_process_for(discarding_store, "a-bucket", **OPEN) as (url, process):
        alone, beside = GoodClients(url), GoodClients(url)
        uvloop.run(GoodClients(url).run(2))
        uvloop.run(alone.run(60))
        request = f"GET /files/{uuid4()} HTTP/1.1\r\nHost: x\r\n\r\n"
        readers = Attack(500, request, read_rate=SLOW_RATE, reconnect=False)
        with running_attacks(url, readers) as attackers:
            time.sleep(SETTLING)
            uvloop.run(beside.run(60))
            [report] = attackers.stop()
        print(f"\nalone: {alone}\nbeside slow readers: {beside}\n{report}")
        check_memory(process.pid)
    assert report.counts == {"still open": 500}
    assert report.sent >= 500 * 60 * SLOW_RATE
    check_latency(alone, beside)


@pytest.mark.parametrize(
    ("count", "size", "budget", "chunked"),
    [
        (16, 12 * MIB, 256, False),
        (16, 12 * MIB, 256, True),
        pytest.param(64, 100 * MIB, 256, False, marks=pytest.mark.soak),
        pytest.param(64, 100 * MIB, 64, False, marks=pytest.mark.soak),
    ],
)
def test_uploads_at_once_stay_within_the_memory_limit(
    discarding_store: Store, count: int, size: int, budget: int, *, chunked: bool
) -> None:
    bundle = random_bytes(1, size)

    async def transfer(url: str) -> Counter[int]:
        uploads = (load.upload(url, bundle, chunked=chunked) for _ in range(count))
        return Counter(response.status for response in await asyncio.gather(*uploads))

    settings = {"HISTORY_MEMORY_BUDGET": f"{budget}MiB"}
    with service_process_for(discarding_store, "a-bucket", **settings) as (url, process):
        started = time.monotonic()
        statuses = uvloop.run(transfer(url))
        print(f"\n{statuses} in {time.monotonic() - started:.1f} s")
        check_memory(process.pid, budget * MIB)
        page = httpx.get(f"{url}/metrics", trust_env=False).text
    assert statuses == {200: count}
    assert metric_total(page, "memory_used_bytes") == 0
