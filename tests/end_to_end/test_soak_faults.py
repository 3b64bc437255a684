"""Random transfers at once while S3 fails in every way: nothing is lost, left over or leaked."""

import asyncio
import gc
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from random import Random, SystemRandom
from typing import Any

import pytest

from service.bundles.memory import Memory
from service.s3 import retries
from tests.end_to_end.expected_bundles import ExpectedBundles
from tests.support.clients import random_transfers
from tests.support.polling import wait_until
from tests.support.proxy import Proxy
from tests.support.services.thread import SMALL_PART, Service, running_service
from tests.support.stores import Store

pytestmark = pytest.mark.both_records

CONCURRENCY = 16


@dataclass(frozen=True)
class Resources:
    """Resources in use at one moment. After all transfers, they must not exceed those before."""

    descriptors: int  # of this whole process, without those of idle connections to S3
    connections: int  # of clients
    tasks: int
    memory: int  # bytes, of all memory pools in this process

    def within(self, other: "Resources") -> bool:
        return all(
            ours <= theirs for ours, theirs in zip(astuple(self), astuple(other), strict=True)
        )


def resources_in_use(service: Service, proxy: Proxy) -> Resources:
    loop = service.server.servers[0].get_loop()
    # `isinstance` would follow weak references, some of which may be dead.
    pools = [item for item in gc.get_objects() if type(item) is Memory]
    return Resources(
        # Both ends of an idle connection are in this process. A busy one has more behind the proxy.
        descriptors=len(os.listdir("/dev/fd")) - 2 * proxy.open_connections,  # noqa: PTH208
        connections=len(service.server.server_state.connections),
        tasks=len(asyncio.all_tasks(loop)),
        memory=sum(pool.windows.in_use + pool.buffers.in_use for pool in pools),
    )


@contextmanager
def outages(proxy: Proxy, rng: Random) -> Iterator[None]:
    """Repeatedly make the store unreachable, for up to 1.5 seconds each time."""
    stopped = threading.Event()

    def interrupt() -> None:
        while not stopped.wait(rng.uniform(1, 4)):
            proxy.disable()
            stopped.wait(rng.uniform(0.1, 1.5))
            proxy.enable()

    with ThreadPoolExecutor(1) as thread:
        running = thread.submit(interrupt)
        try:
            yield
        finally:
            stopped.set()
        running.result()


def run_round(
    service: Service, proxy: Proxy, expected: ExpectedBundles, generators: list[Random]
) -> None:
    """Run one transfer for each random generator, half of them with a fault."""

    def transfer(rng: Random) -> None:
        if rng.random() < 0.5:
            proxy.faults.append(random_transfers.fault(rng))
        expected.run(
            random_transfers.transfer(rng, dict(expected.uploaded)), service.url, "S3 fails"
        )

    with ThreadPoolExecutor(CONCURRENCY) as clients:
        for future in [clients.submit(transfer, rng) for rng in generators]:
            future.result()


def run_rounds(store: Store, s3: Any, *, seed: int, rounds: int, transfers: int) -> None:
    """Run rounds of transfers, and check the bucket after each round."""
    started, slowest, expected = time.monotonic(), 0.0, ExpectedBundles()
    with (
        Proxy(store.endpoint_url) as proxy,
        running_service(store, s3, endpoint_url=proxy.url, part_size=SMALL_PART) as service,
    ):
        service.upload(b"The first upload opens what the service keeps open.")
        service.delete_objects()
        before = resources_in_use(service, proxy)
        for number in range(rounds):
            generators = [Random(f"{seed} {number} {transfer}") for transfer in range(transfers)]
            with outages(proxy, Random(f"{seed} {number}")):
                run_round(service, proxy, expected, generators)
            proxy.faults.clear()
            slowest = max(slowest, expected.wait_for_cleanup(service))
            assert not expected.missing(service)
        print(
            f"\nseed {seed}, {time.monotonic() - started:.0f} s, cleaned up within {slowest:.1f} s"
        )
        print(expected.summary())
        expected.check(service)
        service.delete_objects()  # moto keeps large objects in open files.
        after = before

        def released() -> bool:
            nonlocal after
            after = resources_in_use(service, proxy)
            return after.within(before)

        try:
            wait_until(released, timeout=10)
        finally:
            print(before, after, sep="\n")


def test_forty_transfers_with_faults(
    store: Store, s3: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retries, "MAX_BACKOFF", 0.1)
    run_rounds(store, s3, seed=1, rounds=1, transfers=40)


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", [1, SystemRandom().getrandbits(32)], ids=["fixed", "random"])
def test_a_thousand_transfers_with_faults(store: Store, s3: Any, seed: int) -> None:
    run_rounds(store, s3, seed=seed, rounds=10, transfers=100)
