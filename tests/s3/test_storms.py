"""Many temporary faults of S3 under load: the clients notice none of them."""

import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass

import httpx
import pytest

from service.bundles.buffers import MAX_REPLAY_SIZE
from service.s3 import client
from tests.support.clients import random_transfers
from tests.support.clients.signing import sign
from tests.support.proxy import Action, Delay, Fault, Proxy, Reset, Respond, Stall
from tests.support.services.metrics import metric_total
from tests.support.services.thread import SMALL_PART, Service, StartService
from tests.support.stores import Store

pytestmark = pytest.mark.both_records

MIB = 1 << 20
KEY = "the key that signs in a storm"
LONG_STALL = 120.0
"""Seconds that a stall lasts: longer than any timeout."""


@dataclass(frozen=True)
class Scenario:
    """How many bundles are transferred, and how often S3 stalls.

    Of the requests to S3 and of the response bodies, one in `stall_interval` stalls.
    """

    bundles: int
    large: int
    concurrency: int
    stall_interval: int
    read_timeout: float | None = None

    def sizes(self, rng: random.Random) -> list[int]:
        sizes = [rng.randrange(1, 1 * MIB) for _ in range(self.bundles - self.large)]
        sizes += [rng.randrange(SMALL_PART + 1, 3 * SMALL_PART) for _ in range(self.large)]
        rng.shuffle(sizes)
        return sizes

    def faults(self, rng: random.Random) -> dict[str, list[Fault]]:
        max_requests = 100 * self.bundles
        stalls = [
            Stall(LONG_STALL, random_offset(rng))
            for _ in range(0, max_requests, self.stall_interval)
        ]
        resets = [Reset(random_offset(rng)) for _ in range(0, max_requests, 10)]
        return {
            "refused requests": [
                Fault(None, Respond(503, "SlowDown"), times=None, after=4, every=5)
            ],
            "reset bodies": spread(list(resets), every=10),
            "stalled bodies": spread(list(stalls), every=self.stall_interval),
            "stalled requests": [
                Fault(
                    None,
                    Delay(LONG_STALL),
                    times=None,
                    after=self.stall_interval // 2,
                    every=self.stall_interval,
                )
            ],
        }


def random_offset(rng: random.Random) -> int:
    """Return an offset in a body, as likely within its first kilobytes as among its megabytes."""
    return int(2 ** rng.uniform(0, 23))


def spread(actions: list[Action], *, every: int) -> list[Fault]:
    """Return faults that apply one action to every `every`-th GetObject."""
    return [
        Fault("GetObject", action, after=every * number - every // 2)
        for number, action in enumerate(actions, 1)
    ]


@pytest.mark.parametrize(
    "scenario",
    [
        pytest.param(
            Scenario(bundles=16, large=1, concurrency=8, stall_interval=24, read_timeout=0.7),
            id="few bundles",
        ),
        pytest.param(
            Scenario(bundles=150, large=40, concurrency=16, stall_interval=50),
            id="many bundles",
            marks=pytest.mark.soak,
        ),
    ],
)
def test_clients_do_not_notice_refusals_resets_and_stalls(
    store: Store, start_service: StartService, monkeypatch: pytest.MonkeyPatch, scenario: Scenario
) -> None:
    """S3 refuses 20 % of the requests, resets 10 % of the bodies, and stalls 2 to 4 % of both."""
    rng = random.Random(random_transfers.seed(soak=scenario.read_timeout is None))
    if scenario.read_timeout is not None:
        monkeypatch.setattr(client, "READ_TIMEOUT", scenario.read_timeout)
    with Proxy(store.endpoint_url) as proxy:
        service = start_service(endpoint_url=proxy.url, part_size=SMALL_PART)
        faults = scenario.faults(rng)
        proxy.faults += [fault for kind in faults.values() for fault in kind]
        started = time.monotonic()
        outcomes = asyncio.run(asyncio.wait_for(transfer_all(service, scenario, rng), 600))
        seconds = time.monotonic() - started
        proxy.faults.clear()
        counts = {kind: sum(fault.injected for fault in faults[kind]) for kind in faults}
        print(
            f"{dict(outcomes)} in {seconds:.1f} s, {len(proxy.requests)} requests to S3, {counts}"
        )
        page = service.http.get("/metrics").text
        retries = int(metric_total(page, "s3_retries_total"))
        resumed = int(metric_total(page, "s3_downloads_resumed_total"))
        print(f"{retries} retries, {resumed} resumed downloads")
    assert outcomes == {"upload 200": scenario.bundles, "download 200": scenario.bundles}
    assert all(counts.values())
    assert retries
    assert resumed


def request_body(bundle: bytes) -> bytes | AsyncIterator[bytes]:
    """Return a body with a length if S3 may fail at its end, or else one without, for chunks."""

    async def chunks() -> AsyncIterator[bytes]:
        for start in range(0, len(bundle), MIB):
            yield bundle[start : start + MIB]

    return bundle if len(bundle) <= MAX_REPLAY_SIZE else chunks()


async def transfer_all(service: Service, scenario: Scenario, rng: random.Random) -> Counter[str]:
    """Upload every bundle and download it again; return how many of each outcome there were."""
    outcomes: Counter[str] = Counter()
    sizes = scenario.sizes(rng)

    async def worker(http: httpx.AsyncClient) -> None:
        while sizes:
            bundle = rng.randbytes(sizes.pop())
            proof = sign(KEY, bundle)
            headers = {"X-HMAC": proof["X-HMAC"]}
            response = await http.post("/upload", content=request_body(bundle), headers=headers)
            outcomes[f"upload {response.status_code}"] += 1
            response = await http.get(f"/files/{response.text}", headers=proof)
            wrong = "" if response.content == bundle else f", but {response.content[:300]!r}"
            outcomes[f"download {response.status_code}{wrong}"] += 1

    async with service.async_client() as http, asyncio.TaskGroup() as group:
        for _ in range(scenario.concurrency):
            group.create_task(worker(http))
    return outcomes
