"""Runs tests of one `BundleService`, without HTTP, on an S3 storage that can pause and fail."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from service.bundles.limits import UploadLimits
from service.bundles.memory import Memory
from service.bundles.service import BundleService
from service.drain import Drain
from service.s3 import retries
from service.s3.calls import S3Calls
from service.s3.client import connect
from service.telemetry.metrics import Metrics
from tests.bundles.transfers.service_setup import (
    PART,
    UPLOAD_LIMIT,
    ControlledStorage,
    Run,
    Setup,
    Test,
)
from tests.support.proxy import Proxy
from tests.support.stores import Store
from tests.support.stores.access import aws_environment
from tests.support.stores.buckets import new_bucket


@pytest.fixture
def run(store: Store, s3: Any) -> Run:
    """A function that runs a test in an empty bucket."""

    def run_test(
        test: Test,
        *,
        parts: int = 2,
        require_hmac: bool = True,
        clock: Callable[[], float] = lambda: 0,
        endpoint_url: str | None = None,
    ) -> None:
        async def main() -> None:
            tasks_before = asyncio.all_tasks()
            async with connect() as client:
                metrics, bucket = Metrics(), new_bucket(s3)
                storage = ControlledStorage(
                    client,
                    S3Calls(bucket, metrics),
                    bucket=bucket,
                    prefix="history/",
                    records=store.records,
                )
                memory = Memory(parts * PART, part_size=PART, timeout=10)
                bundles = BundleService(
                    *(storage, memory, UploadLimits(bytes_per_hour=UPLOAD_LIMIT), metrics, Drain()),
                    max_size=1 << 30,
                    retention=60,
                    require_hmac=require_hmac,
                    clock=clock,
                )
                await test(Setup(bundles, storage, memory, metrics, s3, bucket))
                await bundles.close()
                assert asyncio.all_tasks() == tasks_before
                assert memory.windows.in_use == memory.buffers.in_use == 0
                assert memory.windows.waiting == memory.buffers.waiting == 0

        with aws_environment(store, endpoint_url):
            asyncio.run(asyncio.wait_for(main(), 30))

    return run_test


@pytest.fixture
def proxy(store: Store, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    monkeypatch.setattr(retries, "MAX_BACKOFF", 0.1)
    with ExitStack() as stack:
        yield stack.enter_context(Proxy(store.endpoint_url))
