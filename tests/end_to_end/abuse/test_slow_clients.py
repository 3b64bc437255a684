"""Hundreds of clients that send or read slowly."""

import asyncio
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from service.bundles.memory import WINDOW_SIZE
from service.http import slow_clients
from tests.end_to_end.abuse.latency import measure_latencies, summarize
from tests.support.clients import load
from tests.support.clients.malicious import Attack, running_attacks
from tests.support.clients.signing import sign
from tests.support.polling import wait_until
from tests.support.services.process import service_process_for
from tests.support.services.thread import SMALL_PART, Service, StartService
from tests.support.stores import Store
from tests.support.stores.buckets import new_bucket

KEY = load.KEY
MIB = 1 << 20

SLOW_HEAD = "GET /healthz HTTP/1.1\r\nX-Endless: "
SLOW_BODY = f"POST /upload HTTP/1.1\r\nHost: x\r\nContent-Length: {64 * 1024}\r\n\r\n"


@contextmanager
def replica(store: Store, s3: Any) -> Iterator[str]:
    """Run a service process with default settings."""
    with service_process_for(store, new_bucket(s3)) as (url, _):
        yield url


@pytest.mark.soak
def test_500_slow_heads_and_bodies_do_not_delay_others_at_full_size(store: Store, s3: Any) -> None:
    """They send byte by byte until they exceed the service's timeouts."""
    with replica(store, s3) as url:
        measure_latencies(url, count=20)
        before = measure_latencies(url, count=300)
        with running_attacks(url, Attack(250, SLOW_HEAD), Attack(250, SLOW_BODY)) as attackers:
            during = measure_latencies(url, count=300, seconds=20)
            slow_heads, slow_bodies = attackers.stop()
    print(f"\nalone: {summarize(before)}\nunder attack: {summarize(during)}")
    print(f"slow heads: {slow_heads}\nslow bodies: {slow_bodies}")
    assert set(slow_heads.counts) == {"still open", "reset"}
    assert set(slow_bodies.counts) == {"still open", "408"}
    assert min(slow_heads.counts["reset"], slow_bodies.counts["408"]) >= 250
    assert statistics.quantiles(during, n=100)[98] < 5 * statistics.quantiles(before, n=100)[98]


def test_100_slow_heads_and_bodies_do_not_delay_others(service: Service) -> None:
    measure_latencies(service.url, count=4)
    before = measure_latencies(service.url, count=20)
    with running_attacks(service.url, Attack(50, SLOW_HEAD), Attack(50, SLOW_BODY)) as attackers:
        during = measure_latencies(service.url, count=20)
        slow_heads, slow_bodies = attackers.stop()
    print(f"alone: {summarize(before)}; under attack: {summarize(during)}")
    assert slow_heads.counts == slow_bodies.counts == {"still open": 50}
    assert statistics.median(during) < 5 * statistics.median(before)


def prepare_download(service_url: str, bundle: bytes) -> str:
    """Upload the bundle and return the request that downloads it."""
    proof = sign(KEY, bundle)
    response = httpx.post(
        f"{service_url}/upload", content=bundle, headers=proof, trust_env=False, timeout=30
    )
    headers = "".join(f"{name}: {value}\r\n" for name, value in proof.items())
    return f"GET /files/{response.text} HTTP/1.1\r\nHost: x\r\n{headers}\r\n"


Transfer = tuple[float, str, int, float]
"""Of a well-behaved client: when it started (in seconds), its kind, status and duration."""


@pytest.mark.soak
def test_32_slow_uploads_and_32_downloads_without_a_reader_at_full_size(
    store: Store, s3: Any
) -> None:
    """No other client waits for them, from the start until they have timed out."""
    with replica(store, s3) as url:
        request = prepare_download(url, bytes(20 * MIB))
        alone = asyncio.run(good_clients(url, seconds=4))
        slow_upload = f"POST /upload HTTP/1.1\r\nHost: x\r\nContent-Length: {9 * MIB}\r\n\r\n"
        with running_attacks(
            url,
            Attack(32, request, payload="", reconnect=False),
            Attack(32, slow_upload, interval=29, reconnect=False),
        ) as attackers:
            transfers = asyncio.run(good_clients(url, seconds=25))
            idle_downloads, slow_uploads = attackers.stop(timeout=10)
    print(f"\ndownloads without a reader: {idle_downloads}\nslow uploads: {slow_uploads}")
    print(f"alone: {slowest(alone)}")
    for second in range(25):
        in_second = [entry for entry in transfers if int(entry[0]) == second]
        print(f"from {second:2} s: {slowest(in_second)}")
    assert idle_downloads.counts == {"reset": 32}
    assert slow_uploads.counts == {"408": 32}
    assert {status for _, _, status, _ in transfers} == {200}
    for kind in {kind for _, kind, *_ in transfers}:
        usual = max(duration for _, other, _, duration in alone if other == kind)
        longest = max(duration for _, other, _, duration in transfers if other == kind)
        assert longest < max(5 * usual, 1)


async def good_clients(url: str, *, seconds: float) -> list[Transfer]:
    """Repeat one transfer of each kind until `seconds` have passed."""
    loop = asyncio.get_running_loop()
    small, large = os.urandom(100_000), os.urandom(9 * MIB)
    response = await load.upload(url, small)
    started, transfers = loop.time(), list[Transfer]()
    bundle_id = response.body.decode()
    async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=60) as http:

        async def known_length() -> int:
            return (await http.post("/upload", content=small)).status_code

        async def unknown_length() -> int:
            return (await load.upload(url, small)).status

        async def multipart() -> int:
            return (await load.upload(url, large)).status

        async def download() -> int:
            response = await load.download(url, bundle_id, small)
            assert response.status != 200 or response.body == small
            return response.status

        async def repeat(transfer: Callable[[], Any]) -> None:
            while (start := loop.time() - started) < seconds:
                status = await transfer()
                transfers.append((start, transfer.__name__, status, loop.time() - started - start))
                await asyncio.sleep(0.2)

        await asyncio.gather(*map(repeat, (known_length, unknown_length, multipart, download)))
    return transfers


def slowest(transfers: list[Transfer]) -> str:
    """Return the count and the longest duration for each kind and status."""
    kinds = sorted({(kind, status) for _, kind, status, _ in transfers})
    durations = {
        key: [duration for _, *kind, duration in transfers if tuple(kind) == key] for key in kinds
    }
    return ", ".join(
        f"{len(durations[key])} {key[0]} {key[1]} ≤ {max(durations[key]):.2f} s" for key in kinds
    )


def test_slow_uploads_and_unread_downloads_time_out_and_free_memory(
    start_service: StartService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Uploads and downloads hold all windows until their timeout."""
    # Long enough for a slow machine to start all of them before the first one ends.
    monkeypatch.setattr(slow_clients, "GRACE_PERIOD", 6.0)
    service = start_service(memory_budget=2 * SMALL_PART, part_size=SMALL_PART, read_timeout="6s")
    request = prepare_download(service.url, bytes(SMALL_PART + MIB))
    slow_upload = f"POST /upload HTTP/1.1\r\nHost: x\r\nContent-Length: {SMALL_PART}\r\n\r\n"
    uploads = SMALL_PART // WINDOW_SIZE - 2
    with running_attacks(
        service.url,
        Attack(2, request, payload="", reconnect=False),
        Attack(uploads, slow_upload, reconnect=False),
    ) as attackers:
        windows = 'history_memory_used_bytes{pool="windows"}'
        wait_until(lambda: service.metrics()[windows] == SMALL_PART)
        started = time.monotonic()
        assert service.http.post("/upload", content=bytes(SMALL_PART)).status_code == 200
        print(f"served after {time.monotonic() - started:.2f} s")
        idle_downloads, slow_uploads = attackers.stop(timeout=20)
    print(f"downloads without a reader: {idle_downloads}; slow uploads: {slow_uploads}")
    assert idle_downloads.counts == {"reset": 2}
    assert slow_uploads.counts == {"408": uploads}
