"""Ready is who has a bucket that answers, and is not about to end."""

import asyncio

import pytest

from service.drain import Drain
from service.errors import Draining, StorageUnavailable
from service.http import health
from service.http.health import Readiness
from tests.support.clients.signing import sign
from tests.support.polling import until
from tests.support.proxy import Delay, Fault, Proxy
from tests.support.services.thread import Serve
from tests.support.stores import Store


class Bucket:
    """How often it was asked, and whether it is there."""

    def __init__(self) -> None:
        self.asked = 0
        self.there = True

    async def probe(self) -> None:
        self.asked += 1
        await asyncio.sleep(0)
        if not self.there:
            raise StorageUnavailable


def test_many_at_a_time_ask_the_bucket_once() -> None:
    async def main() -> None:
        bucket = Bucket()
        ready = Readiness(bucket.probe, Drain())
        await asyncio.gather(*(ready.check() for _ in range(100)))
        await ready.check()
        assert bucket.asked == 1

    asyncio.run(main())


def test_what_the_bucket_said_is_soon_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        bucket = Bucket()
        ready = Readiness(bucket.probe, Drain())
        await ready.check()
        bucket.there = False
        await ready.check()
        await asyncio.sleep(health.CACHE_SECONDS)
        with pytest.raises(StorageUnavailable):
            await ready.check()
        bucket.there = True
        await asyncio.sleep(health.CACHE_SECONDS)
        await ready.check()
        assert bucket.asked == 3

    monkeypatch.setattr(health, "CACHE_SECONDS", 0.05)
    asyncio.run(main())


def test_who_asks_and_leaves_takes_the_answer_from_nobody() -> None:
    async def main() -> None:
        ready = Readiness(Bucket().probe, Drain())
        impatient = asyncio.create_task(ready.check())
        patient = asyncio.create_task(ready.check())
        await asyncio.sleep(0)
        impatient.cancel()
        await patient

    asyncio.run(main())


def test_who_drains_is_not_ready_whatever_the_bucket_says() -> None:
    async def main() -> None:
        bucket, drain = Bucket(), Drain()
        ready = Readiness(bucket.probe, drain)
        await ready.check()
        drain.begun = True
        with pytest.raises(Draining):
            await ready.check()

    asyncio.run(main())


def test_readyz_follows_the_store(store: Store, serve: Serve) -> None:
    with Proxy(store.endpoint_url) as proxy:
        service = serve(endpoint_url=proxy.url)

        def status() -> int:
            return service.http.get("/readyz").status_code

        assert status() == 200
        proxy.unplug()
        until(lambda: status() == 503, seconds=5)
        answer = service.http.get("/readyz")
        assert answer.json()["code"] == "storage_unavailable"
        assert "Retry-After" in answer.headers
        assert service.http.get("/healthz").status_code == 200
        proxy.plug()
        until(lambda: status() == 200, seconds=4)
        proxy.faults.append(Fault("HeadBucket", Delay(30), times=None))
        until(lambda: status() == 503, seconds=5)


def test_a_bucket_that_does_not_exist_is_said_at_start_and_after_it(
    store: Store, serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    service = serve(bucket="no-such-bucket")
    [said] = [record.getMessage() for record in caplog.records if record.name == "service.s3.calls"]
    assert "create the bucket no-such-bucket with init-bucket" in said
    assert service.http.get("/readyz").json()["code"] == "storage_unavailable"
    answer = service.http.post("/upload", content=b"bundle")
    assert (answer.status_code, answer.json()["code"]) == (503, "storage_unavailable")
    answer = service.fetch("0" * 32, sign("the key of nothing", b""))
    assert (answer.status_code, answer.json()["code"]) == (503, "storage_unavailable")
