"""The `sweep` command: removes exactly what has expired, whoever else sweeps at the same time."""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from typing import Any
from uuid import uuid4

import pytest

from service.errors import BucketError
from service.s3 import retries
from service.s3.bucket.sweep import CONCURRENCY, STALE_AFTER, Progress, Sweep
from service.s3.client import connect
from service.s3.records import Records, record_arguments
from tests.support.proxy import Fault, Proxy, Respond
from tests.support.stores import Store
from tests.support.stores.access import aws_environment
from tests.support.stores.buckets import multipart_upload_keys, new_bucket, object_keys

PREFIX = "bundles/"
NOW = time.time()


class StoredBundles:
    """A bucket with bundles, some of them expired."""

    def __init__(self, store: Store, s3: Any) -> None:
        self._store = store
        self.s3 = s3
        self.bucket = new_bucket(s3)

    def add(self, fields: dict[str, str], name: str | None = None) -> str:
        key = f"{PREFIX}{name or uuid4()}"
        record = record_arguments(fields, self._store.records)
        self.s3.put_object(Bucket=self.bucket, Key=key, Body=b"bundle", **record)
        return key

    def add_bundle(self, life: float, **fields: str) -> str:
        return self.add({"expires-at": str(int(NOW + life)), **fields})

    def keys(self) -> set[str]:
        return set(object_keys(self.s3, self.bucket))

    def sweep(
        self,
        *,
        dry_run: bool = False,
        clock: Callable[[], float] = lambda: NOW,
        rate: float = 1e6,
        endpoint_url: str | None = None,
        records: Records | None = None,
    ) -> Progress:
        async def main() -> Progress:
            async with connect(connections=CONCURRENCY) as client:
                sweep = Sweep(
                    client,
                    bucket=self.bucket,
                    prefix=PREFIX,
                    records=records or self._store.records,
                    rate=rate,
                    dry_run=dry_run,
                    clock=clock,
                )
                async for _ in sweep.run():
                    pass
                return sweep.progress

        with aws_environment(self._store, endpoint_url):
            return asyncio.run(main())


@pytest.fixture
def stored(store: Store, s3: Any) -> StoredBundles:
    return StoredBundles(store, s3)


@pytest.mark.every_store
def test_only_expired_bundles_are_removed(stored: StoredBundles, store: Store, s3: Any) -> None:
    kept = {stored.add_bundle(life) for life in (1, 60, 1e6)}
    kept |= {stored.add({"expires-at": "1"}, name=name) for name in ("no-id", f"other/{uuid4()}")}
    kept |= {stored.add_bundle(60, size="7"), stored.add({})}  # Incomplete, but not stale yet.
    expired = {stored.add_bundle(life) for life in (0, -1, -1e6)}
    uploads = 0 if "upload times" in store.lacks else 1
    for _ in range(uploads):
        s3.create_multipart_upload(Bucket=stored.bucket, Key=f"{PREFIX}{uuid4()}")
    found = stored.sweep(dry_run=True)
    assert stored.keys() == kept | expired
    assert stored.sweep() == found == Progress(checked=8, expired=3)
    assert stored.keys() == kept
    assert len(multipart_upload_keys(s3, stored.bucket)) == uploads
    assert stored.sweep() == Progress(checked=5)


@pytest.mark.every_store
def test_what_abandoned_uploads_left_is_removed_after_a_day(
    stored: StoredBundles, store: Store, s3: Any
) -> None:
    kept = {stored.add_bundle(2 * STALE_AFTER), stored.add({}, name="no-id")}
    stored.add({})
    stored.add_bundle(2 * STALE_AFTER, size="7")
    stored.add({}, name=f"probe-{uuid4()}")
    abandoned = f"{PREFIX}{uuid4()}"
    for key in (abandoned, "other/upload"):
        s3.create_multipart_upload(Bucket=stored.bucket, Key=key)
    progress = stored.sweep(clock=lambda: time.time() + STALE_AFTER + 60)
    uploads = 0 if "upload prefixes" in store.lacks else 1
    assert progress == Progress(checked=4, incomplete=3, uploads=uploads)
    assert stored.keys() == kept
    remaining = [
        upload["Key"]
        for key in (abandoned, "other/upload")
        for upload in s3.list_multipart_uploads(Bucket=stored.bucket, Prefix=key).get("Uploads", [])
    ]
    assert remaining == ([] if uploads else [abandoned]) + ["other/upload"]


@pytest.mark.parametrize("records", ["tags", "metadata"])
def test_sweep_with_the_wrong_setting_removes_no_valid_bundle(
    stored: StoredBundles, store: Store, records: Records
) -> None:
    """HISTORY_RECORDS differs from the one of the service."""
    stored = StoredBundles(replace(store, records=records), stored.s3)
    kept, expired = stored.add_bundle(2 * STALE_AFTER), stored.add_bundle(60)
    other: Records = "metadata" if records == "tags" else "tags"
    progress = stored.sweep(records=other, clock=lambda: NOW + STALE_AFTER)
    assert (stored.keys(), progress.expired) == ({kept}, 1), expired


def test_sweepers_at_the_same_time_remove_the_same(stored: StoredBundles) -> None:
    kept = {stored.add_bundle(60) for _ in range(50)}
    for _ in range(50):
        stored.add_bundle(-60)
    with ThreadPoolExecutor(2) as threads:
        results = [threads.submit(stored.sweep, rate=300) for _ in range(2)]
        removed = [result.result().expired for result in results]
    assert stored.keys() == kept
    assert all(removed), "both have removed some"
    assert 50 <= sum(removed) <= 100


def test_sweep_that_fails_half_way_can_be_repeated(
    stored: StoredBundles, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retries, "MAX_BACKOFF", 0.05)
    kept = {stored.add_bundle(60) for _ in range(20)}
    expired = {stored.add_bundle(-60) for _ in range(20)}
    with Proxy(store.endpoint_url) as proxy:
        refused = Fault("DeleteObject", Respond(403, "AccessDenied"), times=None, after=10)
        proxy.faults.append(refused)
        with suppress(BucketError):
            stored.sweep(endpoint_url=proxy.url)
        assert refused.injected
        assert kept < stored.keys() < kept | expired
        proxy.faults.clear()
        stored.sweep(endpoint_url=proxy.url)
    assert stored.keys() == kept


def test_object_without_tags_is_removed_if_the_store_has_an_error_code_for_it(
    stored: StoredBundles, store: Store
) -> None:
    stored = StoredBundles(replace(store, records="tags"), stored.s3)
    stored.add({})
    with Proxy(store.endpoint_url) as proxy:
        proxy.faults.append(Fault("GetObjectTagging", Respond(404, "NoSuchTagSet"), times=None))
        kept = stored.sweep(endpoint_url=proxy.url)
        removed = stored.sweep(endpoint_url=proxy.url, clock=lambda: time.time() + 2 * STALE_AFTER)
    assert kept == Progress(checked=1)
    assert removed == Progress(checked=1, incomplete=1)
    assert stored.keys() == set()


def test_rate_of_requests_is_limited(stored: StoredBundles) -> None:
    for _ in range(10):
        stored.add_bundle(60)
    started = time.monotonic()
    stored.sweep(rate=20)
    assert time.monotonic() - started >= 9 / 20
