"""Clients that send or read slowly, by the hundred."""

import asyncio
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from service.http import slow_clients
from tests.end_to_end.abuse.latency import in_words, latencies
from tests.support.clients import load
from tests.support.clients.malicious import Attack, attacking
from tests.support.clients.signing import sign
from tests.support.services.process import serving_bucket
from tests.support.services.thread import SMALL_PART, Serve, Service
from tests.support.stores import Store
from tests.support.stores.buckets import new_bucket

KEY = load.KEY
MIB = 1 << 20

HEADS = "GET /healthz HTTP/1.1\r\nX-Endless: "
BODIES = f"POST /upload HTTP/1.1\r\nHost: x\r\nContent-Length: {64 * 1024}\r\n\r\n"


@contextmanager
def replica(store: Store, s3: Any) -> Iterator[str]:
    """The service with its default settings, as a process."""
    with serving_bucket(store, new_bucket(s3)) as (url, _):
        yield url


@pytest.mark.soak
def test_500_slow_heads_and_bodies_at_full_size(store: Store, s3: Any) -> None:
    """Byte by byte, for longer than the service puts up with any of them."""
    with replica(store, s3) as url:
        latencies(url, count=20)
        before = latencies(url, count=300)
        with attacking(url, Attack(250, HEADS), Attack(250, BODIES)) as attackers:
            during = latencies(url, count=300, seconds=20)
            heads, bodies = attackers.stop()
    print(f"\nalone: {in_words(before)}\nunder attack: {in_words(during)}")
    print(f"slow heads: {heads}\nslow bodies: {bodies}")
    assert set(heads.counts) == {"held", "reset"}
    assert set(bodies.counts) == {"held", "408"}
    assert min(heads.counts["reset"], bodies.counts["408"]) >= 250
    assert statistics.quantiles(during, n=100)[98] < 5 * statistics.quantiles(before, n=100)[98]


def test_slow_heads_and_bodies(service: Service) -> None:
    latencies(service.url, count=4)
    before = latencies(service.url, count=20)
    with attacking(service.url, Attack(50, HEADS), Attack(50, BODIES)) as attackers:
        during = latencies(service.url, count=20)
        heads, bodies = attackers.stop()
    print(f"alone: {in_words(before)}; under attack: {in_words(during)}")
    assert heads.counts == bodies.counts == {"held": 50}
    assert statistics.median(during) < 5 * statistics.median(before)


def sleeper(service_url: str, bundle: bytes) -> str:
    """The request of a download that is not going to be read."""
    proof = sign(KEY, bundle)
    answer = httpx.post(
        f"{service_url}/upload", content=bundle, headers=proof, trust_env=False, timeout=30
    )
    head = "".join(f"{name}: {value}\r\n" for name, value in proof.items())
    return f"GET /files/{answer.text} HTTP/1.1\r\nHost: x\r\n{head}\r\n"


Transfer = tuple[float, str, int, float]
"""A good client's: the second when it began, what it was, its status, and how long it took."""


@pytest.mark.soak
def test_32_that_trickle_and_32_that_never_read_at_full_size(store: Store, s3: Any) -> None:
    """The uploads alone exhaust the budget of 256 MiB; 15 s later, all is as before."""
    with replica(store, s3) as url:
        request = sleeper(url, bytes(20 * MIB))
        alone = asyncio.run(good_clients(url, seconds=4))
        trickle = f"POST /upload HTTP/1.1\r\nHost: x\r\nContent-Length: {9 * MIB}\r\n\r\n"
        with attacking(
            url,
            Attack(32, request, byte="", again=False),
            Attack(32, trickle, every=29, again=False),
        ) as attackers:
            transfers = asyncio.run(good_clients(url, seconds=25))
            sleepers, trickles = attackers.stop(within=10)
    print(f"\nreaders that do not: {sleepers}\nuploads that trickle: {trickles}")
    print(f"alone: {slowest(alone)}")
    for second in range(25):
        print(f"from {second:2} s: {slowest([it for it in transfers if int(it[0]) == second])}")
    assert sleepers.counts == {"reset": 32}
    assert trickles.counts == {"408": 32}
    assert {status for _, _, status, _ in transfers} <= {200, 503}
    late = [it for it in transfers if it[0] >= 15]
    assert {status for _, _, status, _ in late} == {200}
    assert all(began + took < 15 for began, _, _, took in transfers if began < 13)
    for kind in {kind for _, kind, *_ in late}:
        usual = max(took for _, it, _, took in alone if it == kind)
        assert max(took for _, it, _, took in late if it == kind) < max(5 * usual, 1)


async def good_clients(url: str, *, seconds: float) -> list[Transfer]:
    """One of each kind, again and again."""
    loop = asyncio.get_running_loop()
    small, large = os.urandom(100_000), os.urandom(9 * MIB)
    answer = await load.upload(url, small)
    began, transfers = loop.time(), list[Transfer]()
    bundle_id = answer.body.decode()
    async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=60) as http:

        async def declared() -> int:
            return (await http.post("/upload", content=small)).status_code

        async def unknown() -> int:
            return (await load.upload(url, small)).status

        async def multipart() -> int:
            return (await load.upload(url, large)).status

        async def fetched() -> int:
            answer = await load.download(url, bundle_id, small)
            assert answer.status != 200 or answer.body == small
            return answer.status

        async def repeated(transfer: Callable[[], Any]) -> None:
            while (at := loop.time() - began) < seconds:
                status = await transfer()
                transfers.append((at, transfer.__name__, status, loop.time() - began - at))
                await asyncio.sleep(0.2)

        await asyncio.gather(*map(repeated, (declared, unknown, multipart, fetched)))
    return transfers


def slowest(transfers: list[Transfer]) -> str:
    """Of each kind, how many had which status, and the longest of them."""
    kinds = sorted({(kind, status) for _, kind, status, _ in transfers})
    times = {it: [took for _, *kind, took in transfers if tuple(kind) == it] for it in kinds}
    return ", ".join(f"{len(times[it])} {it[0]} {it[1]} ≤ {max(times[it]):.2f} s" for it in kinds)


def test_who_trickles_or_never_reads_gives_way(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two uploads hold all there is, until they have had their time."""
    monkeypatch.setattr(slow_clients, "GRACE_PERIOD", 1.0)
    service = serve(memory_budget=2 * SMALL_PART, part_size=SMALL_PART, read_timeout="1s")
    request = sleeper(service.url, bytes(SMALL_PART + MIB))
    trickle = f"POST /upload HTTP/1.1\r\nHost: x\r\nContent-Length: {SMALL_PART}\r\n\r\n"
    with attacking(
        service.url,
        Attack(2, request, byte="", again=False),
        Attack(2, trickle, again=False),
    ) as attackers:
        began = time.monotonic()
        assert service.http.post("/upload", content=bytes(SMALL_PART)).status_code == 200
        print(f"served after {time.monotonic() - began:.2f} s")
        sleepers, trickles = attackers.stop(within=10)
    print(f"readers that do not: {sleepers}; uploads that trickle: {trickles}")
    assert sleepers.counts == {"reset": 2}
    assert trickles.counts == {"408": 2}
