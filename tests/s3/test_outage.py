"""An outage of S3 under load: 503 responses while it lasts, and recovery without a restart."""

import asyncio
import math
import random
import time
from collections import Counter
from dataclasses import dataclass

import httpx
import pytest

from service.http import health
from service.s3 import calls, retries
from tests.support.clients import random_transfers
from tests.support.clients.signing import sign
from tests.support.polling import wait_until
from tests.support.proxy import Proxy
from tests.support.services.thread import SMALL_PART, Service, StartService
from tests.support.stores import Store

KEY = "the key that signs in an outage"
CONCURRENCY = 8
LOAD_SECONDS = 0.3
"""Seconds of load before the outage, and after it."""

MAX_RECOVERY_SECONDS = 2.0
"""Seconds after the outage within which a request has to succeed again."""

MAX_READINESS_SECONDS = 5.0
"""Seconds within which /readyz has to change: its probe takes 2 s and is cached for 1 s."""

OUTCOMES = {"200", "storage_unavailable", "overloaded", "cut"}
"""What a client may see. `cut` is a download whose connection was cut after the status line."""


@dataclass(frozen=True)
class Observation:
    """The outcome of one request, and when it started and ended (monotonic seconds)."""

    started: float
    ended: float
    outcome: str


class LoadGenerator:
    """Clients that upload and download without a pause, and record what they observe."""

    def __init__(self, service: Service, rng: random.Random) -> None:
        self.transfers: list[Observation] = []
        self.readiness: list[Observation] = []
        self.uploaded = 0
        self._service = service
        self._bundles = [rng.randbytes(size) for size in (1000, 300_000, SMALL_PART + 1000)]
        self._stopped = False

    async def run(self, proxy: Proxy, outage: float) -> tuple[float, float]:
        """Run through an outage of at least `outage` seconds; return when it started and ended.

        The outage lasts until the clients have noticed it.
        """
        async with self._service.async_client() as http:
            ids = [await self._upload(http, bundle) for bundle in self._bundles]
            async with asyncio.TaskGroup() as group:
                group.create_task(self._poll_readiness(http))
                for number in range(CONCURRENCY):
                    index = number // 2 % len(ids)
                    group.create_task(
                        self._transfer(http, self._bundles[index], ids[index], number % 2)
                    )
                try:
                    return await self._interrupt(proxy, outage)
                finally:
                    self._stopped = True

    async def _interrupt(self, proxy: Proxy, outage: float) -> tuple[float, float]:
        await asyncio.sleep(LOAD_SECONDS)
        started = time.monotonic()
        await asyncio.to_thread(proxy.disable)
        await asyncio.sleep(outage)
        while math.inf in (self.seconds_to_failure(started), self.seconds_to_unready(started)):
            assert time.monotonic() < started + outage + 30, "the clients do not see the outage"
            await asyncio.sleep(0.02)
        await asyncio.to_thread(proxy.enable)
        ended = time.monotonic()
        while math.inf in (self.seconds_to_success(ended), self.seconds_to_ready(ended)):
            assert time.monotonic() < ended + 30, "the service does not recover"
            await asyncio.sleep(0.02)
        await asyncio.sleep(LOAD_SECONDS)
        return started, ended

    def seconds_to_success(self, start: float) -> float:
        """Return the seconds from `start` until a transfer succeeded."""
        return _seconds_to(self.transfers, "200", start)

    def seconds_to_failure(self, start: float) -> float:
        return _seconds_to(self.transfers, "storage_unavailable", start)

    def seconds_to_ready(self, start: float) -> float:
        return _seconds_to(self.readiness, "200", start)

    def seconds_to_unready(self, start: float) -> float:
        return _seconds_to(self.readiness, "storage_unavailable", start)

    async def _poll_readiness(self, http: httpx.AsyncClient) -> None:
        while not self._stopped:
            started = time.monotonic()
            response = await http.get("/readyz")
            self.readiness.append(Observation(started, time.monotonic(), _outcome(response)))
            await asyncio.sleep(0.05)

    async def _transfer(
        self, http: httpx.AsyncClient, bundle: bytes, bundle_id: str, uploads: int
    ) -> None:
        while not self._stopped:
            if uploads:
                await self._upload(http, bundle)
            else:
                await self._download(http, bundle, bundle_id)

    async def _upload(self, http: httpx.AsyncClient, bundle: bytes) -> str:
        started = time.monotonic()
        response = await http.post("/upload", content=bundle)
        self.transfers.append(Observation(started, time.monotonic(), _outcome(response)))
        self.uploaded += response.status_code == 200
        return response.text

    async def _download(self, http: httpx.AsyncClient, bundle: bytes, bundle_id: str) -> None:
        started, outcome = time.monotonic(), "no response"
        try:
            path = f"/files/{bundle_id}"
            async with http.stream("GET", path, headers=sign(KEY, bundle)) as response:
                outcome = "cut" if response.status_code == 200 else "incomplete response"
                content = await response.aread()
                outcome = _outcome(response)
        except httpx.TransportError:
            pass
        else:
            assert outcome != "200" or content == bundle
        self.transfers.append(Observation(started, time.monotonic(), outcome))


def _outcome(response: httpx.Response) -> str:
    """Return the error code of a 503 response that may be retried, otherwise the status."""
    if response.status_code == 503 and "Retry-After" in response.headers:
        return str(response.json()["code"])
    return str(response.status_code)


def _seconds_to(observations: list[Observation], outcome: str, start: float) -> float:
    times = (
        observation.ended
        for observation in observations
        if observation.outcome == outcome and observation.ended > start
    )
    return min(times, default=math.inf) - start


@pytest.fixture
def _short_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the retries, which would otherwise hide an outage of one second."""
    monkeypatch.setattr(retries, "MAX_BACKOFF", 0.05)
    monkeypatch.setattr(health, "CACHE_SECONDS", 0.1)


@pytest.mark.usefixtures("_short_backoff")
def test_service_recovers_from_an_outage_of_one_second(
    store: Store, start_service: StartService, caplog: pytest.LogCaptureFixture
) -> None:
    check_outage(store, start_service, caplog, seconds=1)


@pytest.mark.soak
def test_service_recovers_from_an_outage_of_ten_seconds(
    store: Store, start_service: StartService, caplog: pytest.LogCaptureFixture
) -> None:
    check_outage(store, start_service, caplog, seconds=10)


def check_outage(
    store: Store, start_service: StartService, caplog: pytest.LogCaptureFixture, *, seconds: float
) -> None:
    seed = random_transfers.seed(soak=seconds > 1)
    with Proxy(store.endpoint_url) as proxy:
        service = start_service(endpoint_url=proxy.url, part_size=SMALL_PART)
        load = LoadGenerator(service, random.Random(seed))
        started, ended = asyncio.run(asyncio.wait_for(load.run(proxy, seconds), 100))
        wait_until(lambda: len(service.objects()) == load.uploaded, timeout=15)
        wait_until(lambda: not service.multipart_uploads(), timeout=15)
    during = Counter(transfer.outcome for transfer in load.transfers if transfer.ended < ended)
    afterwards = Counter(
        transfer.outcome for transfer in load.transfers if transfer.started > ended
    )
    unready = load.seconds_to_unready(started)
    ready, success = load.seconds_to_ready(ended), load.seconds_to_success(ended)
    print(f"ended before the recovery: {dict(during)}; started after it: {dict(afterwards)}")
    print(
        f"unready after {unready:.2f} s; success after {success:.2f} s, ready after {ready:.2f} s"
    )
    print(Counter(f"{record.name}: {record.getMessage()}" for record in caplog.records))
    assert {transfer.outcome for transfer in load.transfers} <= OUTCOMES
    assert during["storage_unavailable"]
    assert set(afterwards) == {"200"}
    assert unready < MAX_READINESS_SECONDS
    assert success < MAX_RECOVERY_SECONDS
    assert ready < MAX_READINESS_SECONDS
    [message] = [record.getMessage() for record in caplog.records if record.name == calls.__name__]
    assert message.startswith("S3 cannot be reached for ")
