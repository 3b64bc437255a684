"""Random transfers, many at a time, while S3 fails in every way: nothing lost, left or leaked."""

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
from tests.end_to_end.expected_bundles import Ledger
from tests.support.clients import random_transfers
from tests.support.polling import until
from tests.support.proxy import Proxy
from tests.support.services.thread import SMALL_PART, Service, running_service
from tests.support.stores import Store

AT_ONCE = 16


@dataclass(frozen=True)
class Holdings:
    """What is held at a moment: after all transfers it has to be no more than before them."""

    descriptors: int  # of all who are in this process, but those of idle connections to S3
    connections: int  # of clients
    tasks: int
    memory: int  # bytes, of all budgets in this process

    def within(self, other: "Holdings") -> bool:
        return all(mine <= its for mine, its in zip(astuple(self), astuple(other), strict=True))


def holdings(service: Service, proxy: Proxy) -> Holdings:
    loop = service.running.servers[0].get_loop()
    budgets = [it for it in gc.get_objects() if isinstance(it, Memory)]
    return Holdings(
        # An idle connection has two ends here; one in use has more behind the proxy.
        descriptors=len(os.listdir("/dev/fd")) - 2 * proxy.open_connections,  # noqa: PTH208
        connections=len(service.running.server_state.connections),
        tasks=len(asyncio.all_tasks(loop)),
        memory=sum(it.parts.in_use + it.slots.in_use for it in budgets),
    )


@contextmanager
def outages(proxy: Proxy, chance: Random) -> Iterator[None]:
    """Let the store go away for up to a second and a half, again and again."""
    over = threading.Event()

    def come_and_go() -> None:
        while not over.wait(chance.uniform(1, 4)):
            proxy.unplug()
            over.wait(chance.uniform(0.1, 1.5))
            proxy.plug()

    with ThreadPoolExecutor(1) as thread:
        running = thread.submit(come_and_go)
        try:
            yield
        finally:
            over.set()
        running.result()


def rush(service: Service, proxy: Proxy, ledger: Ledger, throws: list[Random]) -> None:
    """A transfer for each of the dice, and for every other one a fault."""

    def transfer(chance: Random) -> None:
        if chance.random() < 0.5:
            proxy.faults.append(random_transfers.fault(chance))
        ledger.run(random_transfers.transfer(chance, dict(ledger.told)), service.url, "S3 fails")

    with ThreadPoolExecutor(AT_ONCE) as clients:
        for done in [clients.submit(transfer, chance) for chance in throws]:
            done.result()


def trial(store: Store, s3: Any, *, seed: int, rounds: int, transfers: int) -> None:
    """So many transfers in each round, and a look into the bucket after it."""
    began, slowest, ledger = time.monotonic(), 0.0, Ledger()
    with (
        Proxy(store.endpoint_url) as proxy,
        running_service(store, s3, endpoint_url=proxy.url, part_size=SMALL_PART) as service,
    ):
        service.upload(b"It opens what it keeps open.")
        service.clear()
        before = holdings(service, proxy)
        for number in range(rounds):
            throws = [Random(f"{seed} {number} {each}") for each in range(transfers)]
            with outages(proxy, Random(f"{seed} {number}")):
                rush(service, proxy, ledger, throws)
            proxy.faults.clear()
            slowest = max(slowest, ledger.settle(service))
            assert not ledger.lost(service)
        print(f"\nseed {seed}, {time.monotonic() - began:.0f} s, cleaned up within {slowest:.1f} s")
        print(ledger.table())
        ledger.check(service)
        service.clear()  # moto keeps what is large in open files.
        after = before

        def quiet() -> bool:
            nonlocal after
            after = holdings(service, proxy)
            return after.within(before)

        try:
            until(quiet, seconds=10)
        finally:
            print(before, after, sep="\n")


def test_forty_faulty_transfers(store: Store, s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "MAX_BACKOFF", 0.1)
    trial(store, s3, seed=1, rounds=1, transfers=40)


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", [1, SystemRandom().getrandbits(32)], ids=["fixed", "random"])
def test_a_thousand_faulty_transfers(store: Store, s3: Any, seed: int) -> None:
    trial(store, s3, seed=seed, rounds=10, transfers=100)
