"""The `sweep` command on a large bucket, as processes that run at once and are killed."""

import asyncio
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any
from uuid import uuid4

import aiohttp
import pytest

from tests.support.polling import wait_until
from tests.support.services.process import (
    NO_CERTIFICATES,
    SERVICE_COMMAND,
    clean_environment,
    process_memory,
)
from tests.support.stores import Store
from tests.support.stores.access import aws_environment, s3_client
from tests.support.stores.buckets import new_bucket

MIB = 1 << 20
DAY = 86_400
UPLOADERS = 16


async def fill(url: str, keys: dict[str, float]) -> None:
    """Store a bundle under each key. The values are their expiry times in Unix seconds."""
    remaining = iter(keys.items())

    async def upload(session: aiohttp.ClientSession) -> None:
        for key, expires_at in remaining:
            headers = {"x-amz-tagging": f"expires-at={int(expires_at)}&size=6"}
            async with session.put(f"{url}/{key}", data=b"bundle", headers=headers) as response:
                assert response.status == 200

    async with aiohttp.ClientSession() as session:
        await asyncio.gather(*(upload(session) for _ in range(UPLOADERS)))


@contextmanager
def sweepers(store: Store, bucket: str, count: int) -> Iterator[list[subprocess.Popen[str]]]:
    """Start sweeps at the same time, without a limit on their rate. Kill those that still run."""
    with aws_environment(store) as variables:
        environment = clean_environment(HISTORY_BUCKET=bucket, **variables, **NO_CERTIFICATES)
    processes = [
        subprocess.Popen(
            [*SERVICE_COMMAND, "sweep", "--rate", "1000000"],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(count)
    ]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def all_keys(s3: Any, bucket: str) -> set[str]:
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket=bucket)
    return {entry["Key"] for page in pages for entry in page.get("Contents", [])}


@pytest.mark.parametrize(
    "count",
    [600, pytest.param(100_000, marks=[pytest.mark.soak, pytest.mark.timeout(1800)])],
)
def test_killed_sweeps_are_continued_and_remove_exactly_what_has_expired(
    get_store: Callable[[str], Store], count: int
) -> None:
    """Two sweeps at once are killed half-way. Two others do the rest, in little memory."""
    store = get_store("ministack" if count > 600 else "moto")
    s3 = s3_client(store)
    bucket = new_bucket(s3)
    now = time.time()
    lives = [DAY, -DAY, 3600, -1]
    keys = {
        f"bundles/{uuid4()}": now + life
        for _, life in zip(range(count), lives * count, strict=False)
    }
    asyncio.run(fill(f"{store.endpoint_url}/{bucket}", keys))
    kept = {key for key, expires_at in keys.items() if expires_at > now}
    middle = sorted(keys.keys() - kept)[count // 4]

    def is_gone() -> bool:
        """S3 lists keys in their order, so half of the expired ones are gone when this one is."""
        return not s3.list_objects_v2(Bucket=bucket, Prefix=middle).get("Contents")

    started = time.monotonic()
    with sweepers(store, bucket, 2):
        wait_until(is_gone, timeout=600)
    remaining = all_keys(s3, bucket)
    assert kept < remaining < keys.keys()
    print(f"\nkilled after {time.monotonic() - started:.1f} s, {len(remaining)} of {count} remain")

    started, peaks = time.monotonic(), {}
    with sweepers(store, bucket, 2) as processes:
        while running := [process for process in processes if process.poll() is None]:
            for process in running:
                with suppress(AssertionError):  # A process that has just ended has no memory.
                    peaks[process.pid] = process_memory(process.pid, "VmHWM")
            time.sleep(0.1)
        outputs = [process.communicate()[0] for process in processes]
    print(f"{time.monotonic() - started:.1f} s, {max(peaks.values()) / MIB:.0f} MiB: {outputs}")
    assert [process.returncode for process in processes] == [0, 0]
    assert all_keys(s3, bucket) == kept
    assert max(peaks.values()) < 150 * MIB
