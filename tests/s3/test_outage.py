"""S3 unplugged under load: 503s while it lasts, and a service that comes back by itself."""

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
from tests.support.polling import until
from tests.support.proxy import Proxy
from tests.support.services.thread import SMALL_PART, Serve, Service
from tests.support.stores import Store

KEY = "the key that signs in an outage"
AT_ONCE = 8
CALM = 0.3
"""Seconds of load before the outage, and after it."""

BACK_WITHIN = 2.0
"""Seconds after which a request succeeds again."""

READY_WITHIN = 5.0
"""Seconds after which /readyz has followed: its probe takes two, and is believed for one."""

OUTCOMES = {"200", "storage_unavailable", "overloaded", "cut"}
"""What a client may see; `cut` where the download had begun."""


@dataclass(frozen=True)
class Answer:
    """What a client saw of a request, and when (monotonic seconds)."""

    began: float
    ended: float
    what: str


class Crowd:
    """Clients that upload and download without a pause, and keep what they saw."""

    def __init__(self, service: Service, rng: random.Random) -> None:
        self.answers: list[Answer] = []
        self.readiness: list[Answer] = []
        self.deposited = 0
        self._service = service
        self._bundles = [rng.randbytes(size) for size in (1000, 300_000, SMALL_PART + 1000)]
        self._left = False

    async def run(self, proxy: Proxy, outage: float) -> tuple[float, float]:
        """Stay through an outage of so many seconds, or until it shows; when it began and ended."""
        async with self._service.many() as http:
            ids = [await self._upload(http, bundle) for bundle in self._bundles]
            async with asyncio.TaskGroup() as group:
                group.create_task(self._ask(http))
                for number in range(AT_ONCE):
                    which = number // 2 % len(ids)
                    group.create_task(self._use(http, self._bundles[which], ids[which], number % 2))
                try:
                    return await self._pull_the_plug(proxy, outage)
                finally:
                    self._left = True

    async def _pull_the_plug(self, proxy: Proxy, outage: float) -> tuple[float, float]:
        await asyncio.sleep(CALM)
        began = time.monotonic()
        await asyncio.to_thread(proxy.unplug)
        await asyncio.sleep(outage)
        while math.inf in (self.refused(began), self.unready(began)):
            assert time.monotonic() < began + outage + 30, "nobody notices"
            await asyncio.sleep(0.02)
        await asyncio.to_thread(proxy.plug)
        ended = time.monotonic()
        while math.inf in (self.back(ended), self.ready(ended)):
            assert time.monotonic() < ended + 30, "it does not come back"
            await asyncio.sleep(0.02)
        await asyncio.sleep(CALM)
        return began, ended

    def back(self, plugged: float) -> float:
        """The seconds from then until a client had what it wanted."""
        return _first(self.answers, "200", plugged)

    def refused(self, unplugged: float) -> float:
        return _first(self.answers, "storage_unavailable", unplugged)

    def ready(self, plugged: float) -> float:
        return _first(self.readiness, "200", plugged)

    def unready(self, unplugged: float) -> float:
        return _first(self.readiness, "storage_unavailable", unplugged)

    async def _ask(self, http: httpx.AsyncClient) -> None:
        while not self._left:
            began = time.monotonic()
            answer = await http.get("/readyz")
            self.readiness.append(Answer(began, time.monotonic(), _seen(answer)))
            await asyncio.sleep(0.05)

    async def _use(
        self, http: httpx.AsyncClient, bundle: bytes, bundle_id: str, uploads: int
    ) -> None:
        while not self._left:
            if uploads:
                await self._upload(http, bundle)
            else:
                await self._download(http, bundle, bundle_id)

    async def _upload(self, http: httpx.AsyncClient, bundle: bytes) -> str:
        began = time.monotonic()
        answer = await http.post("/upload", content=bundle)
        self.answers.append(Answer(began, time.monotonic(), _seen(answer)))
        self.deposited += answer.status_code == 200
        return answer.text

    async def _download(self, http: httpx.AsyncClient, bundle: bytes, bundle_id: str) -> None:
        began, what = time.monotonic(), "no answer"
        try:
            path = f"/files/{bundle_id}"
            async with http.stream("GET", path, headers=sign(KEY, bundle)) as answer:
                what = "cut" if answer.status_code == 200 else "no whole answer"
                content = await answer.aread()
                what = _seen(answer)
        except httpx.TransportError:
            pass
        else:
            assert what != "200" or content == bundle
        self.answers.append(Answer(began, time.monotonic(), what))


def _seen(answer: httpx.Response) -> str:
    """An answer in a word; of errors only those that an outage may bring have their code."""
    if answer.status_code == 503 and "Retry-After" in answer.headers:
        return str(answer.json()["code"])
    return str(answer.status_code)


def _first(answers: list[Answer], what: str, after: float) -> float:
    times = (answer.ended for answer in answers if answer.what == what and answer.ended > after)
    return min(times, default=math.inf) - after


@pytest.fixture
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """For an outage that the service would otherwise bridge."""
    monkeypatch.setattr(retries, "MAX_BACKOFF", 0.05)
    monkeypatch.setattr(health, "CACHE_SECONDS", 0.1)


@pytest.mark.usefixtures("_impatient")
def test_a_second_without_s3(store: Store, serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    outage(store, serve, caplog, seconds=1)


@pytest.mark.soak
def test_ten_seconds_without_s3(
    store: Store, serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    outage(store, serve, caplog, seconds=10)


def outage(store: Store, serve: Serve, caplog: pytest.LogCaptureFixture, *, seconds: float) -> None:
    seed = random_transfers.seed(soak=seconds > 1)
    with Proxy(store.endpoint_url) as proxy:
        service = serve(endpoint_url=proxy.url, part_size=SMALL_PART)
        crowd = Crowd(service, random.Random(seed))
        began, ended = asyncio.run(asyncio.wait_for(crowd.run(proxy, seconds), 100))
        until(lambda: len(service.objects()) == crowd.deposited, seconds=15)
        until(lambda: not service.multipart_uploads(), seconds=15)
    during = Counter(answer.what for answer in crowd.answers if answer.ended < ended)
    afterwards = Counter(answer.what for answer in crowd.answers if answer.began > ended)
    unready, ready, back = crowd.unready(began), crowd.ready(ended), crowd.back(ended)
    print(f"until plugged in again: {dict(during)}; begun then: {dict(afterwards)}")
    print(f"unready after {unready:.2f} s; back after {back:.2f} s, ready after {ready:.2f} s")
    print(Counter(f"{record.name}: {record.getMessage()}" for record in caplog.records))
    assert {answer.what for answer in crowd.answers} <= OUTCOMES
    assert during["storage_unavailable"]
    assert set(afterwards) == {"200"}
    assert unready < READY_WITHIN
    assert back < BACK_WITHIN
    assert ready < READY_WITHIN
    [said] = [record.getMessage() for record in caplog.records if record.name == calls.__name__]
    assert said.startswith("S3 cannot be reached for ")
