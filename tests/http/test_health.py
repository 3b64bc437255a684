"""The readiness check: a process is ready while its bucket responds, until it drains."""

import asyncio

import pytest

from service.drain import Drain
from service.errors import Draining, StorageUnavailable
from service.http import health
from service.http.health import Readiness
from tests.support.clients.signing import sign
from tests.support.polling import wait_until
from tests.support.proxy import Delay, Fault, Proxy
from tests.support.services.thread import StartService
from tests.support.stores import Store


class FakeBucket:
    """Counts its probes. They fail while it is not `available`."""

    def __init__(self) -> None:
        self.probes = 0
        self.available = True

    async def probe(self) -> None:
        self.probes += 1
        await asyncio.sleep(0)
        if not self.available:
            raise StorageUnavailable


def test_concurrent_checks_share_one_probe() -> None:
    async def main() -> None:
        bucket = FakeBucket()
        readiness = Readiness(bucket.probe, Drain())
        await asyncio.gather(*(readiness.check() for _ in range(100)))
        await readiness.check()
        assert bucket.probes == 1

    asyncio.run(main())


def test_result_of_a_probe_expires(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        bucket = FakeBucket()
        readiness = Readiness(bucket.probe, Drain())
        await readiness.check()
        bucket.available = False
        await readiness.check()
        await asyncio.sleep(health.CACHE_SECONDS)
        with pytest.raises(StorageUnavailable):
            await readiness.check()
        bucket.available = True
        await asyncio.sleep(health.CACHE_SECONDS)
        await readiness.check()
        assert bucket.probes == 3

    monkeypatch.setattr(health, "CACHE_SECONDS", 0.05)
    asyncio.run(main())


def test_cancelled_check_does_not_cancel_the_probe_for_others() -> None:
    async def main() -> None:
        readiness = Readiness(FakeBucket().probe, Drain())
        cancelled = asyncio.create_task(readiness.check())
        other = asyncio.create_task(readiness.check())
        await asyncio.sleep(0)
        cancelled.cancel()
        await other

    asyncio.run(main())


def test_draining_process_is_not_ready() -> None:
    async def main() -> None:
        bucket, drain = FakeBucket(), Drain()
        readiness = Readiness(bucket.probe, drain)
        await readiness.check()
        drain.begun = True
        with pytest.raises(Draining):
            await readiness.check()

    asyncio.run(main())


def test_readyz_is_503_while_the_store_is_unavailable(
    store: Store, start_service: StartService
) -> None:
    with Proxy(store.endpoint_url) as proxy:
        service = start_service(endpoint_url=proxy.url)

        def status() -> int:
            return service.http.get("/readyz").status_code

        assert status() == 200
        proxy.disable()
        wait_until(lambda: status() == 503, timeout=5)
        response = service.http.get("/readyz")
        assert response.json()["code"] == "storage_unavailable"
        assert "Retry-After" in response.headers
        assert service.http.get("/healthz").status_code == 200
        proxy.enable()
        wait_until(lambda: status() == 200, timeout=4)
        proxy.faults.append(Fault("HeadBucket", Delay(30), times=None))
        wait_until(lambda: status() == 503, timeout=5)


def test_missing_bucket_is_logged_and_makes_the_service_unavailable(
    store: Store, start_service: StartService, caplog: pytest.LogCaptureFixture
) -> None:
    service = start_service(bucket="no-such-bucket")
    [message] = [
        record.getMessage() for record in caplog.records if record.name == "service.s3.calls"
    ]
    assert "create the bucket no-such-bucket with init-bucket" in message
    assert service.http.get("/readyz").json()["code"] == "storage_unavailable"
    response = service.http.post("/upload", content=b"bundle")
    assert (response.status_code, response.json()["code"]) == (503, "storage_unavailable")
    response = service.fetch("0" * 32, sign("a signing key", b""))
    assert (response.status_code, response.json()["code"]) == (503, "storage_unavailable")
