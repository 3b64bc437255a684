"""S3 at its worst, under load: no client sees what passes."""

import asyncio
import random
import time
from collections import Counter
from dataclasses import dataclass

import httpx
import pytest

from service.s3 import client
from tests.support.clients import random_transfers
from tests.support.clients.signing import sign
from tests.support.proxy import Action, Delay, Fault, Proxy, Reset, Respond, Stall
from tests.support.services.metrics import metric_total
from tests.support.services.thread import SMALL_PART, Serve, Service
from tests.support.stores import Store

MIB = 1 << 20
KEY = "the key that signs in a storm"
FOR_EVER = 120.0
"""Seconds that a stall lasts: longer than any time-out."""


@dataclass(frozen=True)
class Rough:
    """How much is moved, so many `at_once`; every `stalls`-th request and body stalls."""

    bundles: int
    large: int
    at_once: int
    stalls: int
    read_timeout: float | None = None

    def sizes(self, rng: random.Random) -> list[int]:
        sizes = [rng.randrange(1, 1 * MIB) for _ in range(self.bundles - self.large)]
        sizes += [rng.randrange(SMALL_PART + 1, 3 * SMALL_PART) for _ in range(self.large)]
        rng.shuffle(sizes)
        return sizes

    def faults(self, rng: random.Random) -> dict[str, list[Fault]]:
        reached = 100 * self.bundles
        stalled = [Stall(FOR_EVER, place(rng)) for _ in range(0, reached, self.stalls)]
        return {
            "refused": [Fault(None, Respond(503, "SlowDown"), times=None, after=4, every=5)],
            "reset": scattered([Reset(place(rng)) for _ in range(0, reached, 10)], every=10),
            "stalled bodies": scattered(list(stalled), every=self.stalls),
            "stalled": [
                Fault(None, Delay(FOR_EVER), times=None, after=self.stalls // 2, every=self.stalls)
            ],
        }


def place(rng: random.Random) -> int:
    """Somewhere in a body: as likely within its first kilobytes as among its megabytes."""
    return int(2 ** rng.uniform(0, 23))


def scattered(actions: list[Action], *, every: int) -> list[Fault]:
    """Faults of GetObject, one after another."""
    return [
        Fault("GetObject", action, after=every * number - every // 2)
        for number, action in enumerate(actions, 1)
    ]


@pytest.mark.parametrize(
    "rough",
    [
        pytest.param(
            Rough(bundles=16, large=1, at_once=8, stalls=24, read_timeout=0.7), id="small"
        ),
        pytest.param(
            Rough(bundles=150, large=40, at_once=16, stalls=50), id="full", marks=pytest.mark.soak
        ),
    ],
)
def test_refusals_resets_and_stalls_go_unnoticed(
    store: Store, serve: Serve, monkeypatch: pytest.MonkeyPatch, rough: Rough
) -> None:
    """Every fifth request is refused, every tenth body reset, every fiftieth of both stalls."""
    rng = random.Random(random_transfers.seed(soak=rough.read_timeout is None))
    if rough.read_timeout is not None:
        monkeypatch.setattr(client, "READ_TIMEOUT", rough.read_timeout)
    with Proxy(store.endpoint_url) as proxy:
        service = serve(endpoint_url=proxy.url, part_size=SMALL_PART)
        faults = rough.faults(rng)
        proxy.faults += [fault for kind in faults.values() for fault in kind]
        began = time.monotonic()
        outcomes = asyncio.run(asyncio.wait_for(move(service, rough, rng), 600))
        seconds = time.monotonic() - began
        proxy.faults.clear()
        struck = {kind: sum(fault.struck for fault in faults[kind]) for kind in faults}
        print(f"{dict(outcomes)} in {seconds:.1f} s; of {len(proxy.requests)} to S3: {struck}")
        page = service.http.get("/metrics").text
        retries = int(metric_total(page, "s3_retries_total"))
        resumed = int(metric_total(page, "s3_downloads_resumed_total"))
        print(f"{retries} retries, {resumed} resumptions")
    assert outcomes == {"up 200": rough.bundles, "down 200": rough.bundles}
    assert all(struck.values())
    assert retries
    assert resumed


async def move(service: Service, rough: Rough, rng: random.Random) -> Counter[str]:
    """Upload every bundle and download it again, so many at once; what came of each."""
    outcomes: Counter[str] = Counter()
    sizes = rough.sizes(rng)

    async def one_after_another(http: httpx.AsyncClient) -> None:
        while sizes:
            bundle = rng.randbytes(sizes.pop())
            proof = sign(KEY, bundle)
            answer = await http.post("/upload", content=bundle, headers={"X-HMAC": proof["X-HMAC"]})
            outcomes[f"up {answer.status_code}"] += 1
            answer = await http.get(f"/files/{answer.text}", headers=proof)
            whole = answer.content == bundle
            outcomes[f"down {answer.status_code}" if whole else "not the same"] += 1

    async with service.many() as http, asyncio.TaskGroup() as group:
        for _ in range(rough.at_once):
            group.create_task(one_after_another(http))
    return outcomes
