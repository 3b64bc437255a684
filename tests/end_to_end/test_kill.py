"""kill -9 leaves only complete bundles, and objects that the service does not show to anyone."""

import asyncio
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from subprocess import Popen
from typing import Any

import httpx
import pytest

from tests.support.clients import load
from tests.support.clients.signing import sign
from tests.support.polling import wait_until
from tests.support.proxy import Delay, Fault, Proxy
from tests.support.services.process import service_process_for
from tests.support.services.thread import SMALL_PART
from tests.support.stores import Store
from tests.support.stores.buckets import multipart_upload_keys, new_bucket, stored_bundles

pytestmark = pytest.mark.both_records

MIB = 1 << 20
LARGE = os.urandom(SMALL_PART + MIB)
SMALL, LARGEST = LARGE[:MIB], LARGE * 2


@pytest.mark.parametrize("count", [4, pytest.param(20, marks=pytest.mark.soak)])
def test_killed_process_leaves_only_complete_or_hidden_objects(
    store: Store, s3: Any, count: int
) -> None:
    """The process is killed while uploads are complete, waiting for their tags, or running."""
    bucket = new_bucket(s3)
    with Proxy(store.endpoint_url) as proxy:
        with service_process_for(store, bucket, proxy.url, HISTORY_PART_SIZE="5MiB") as (
            url,
            process,
        ):
            uploads, downloads = asyncio.run(kill_during_transfers(url, process, proxy, count))
        uploaded = {
            response.body.decode(): bundle for response, bundle in uploads if response.status
        }
        assert {response.status for response, _ in uploads} == {200, load.INCOMPLETE}
        assert {response.status for response in downloads} <= {200, load.INCOMPLETE}
        assert all(response.body == LARGE for response in downloads if response.status)
        with service_process_for(store, bucket, HISTORY_PART_SIZE="5MiB") as (url, _):
            for bundle_id, bundle in uploaded.items():
                assert asyncio.run(load.download(url, bundle_id, bundle)).body == bundle
            counts = Counter(visibility(url, stored) for stored in stored_objects(s3, bucket))
    unfinished = multipart_upload_keys(s3, bucket)
    complete = sum(response.status == 200 for response in downloads)
    print(
        f"complete: {len(uploaded)} of {len(uploads)} uploads, "
        f"{complete} of {len(downloads)} downloads; objects: {dict(counts)}; "
        f"left to the lifecycle: {len(unfinished)} multipart uploads"
    )
    assert counts["served"] >= len(uploaded)
    assert counts["hidden"]
    assert unfinished


async def kill_during_transfers(
    url: str, process: Popen[str], proxy: Proxy, count: int
) -> tuple[list[tuple[load.Response, bytes]], list[load.Response]]:
    """Kill the process during uploads and downloads, and return their responses.

    Of every five uploads, one ends soon, one waits for its tags and three are still being sent, one
    of them with a length.
    """
    known_id = (await load.upload(url, LARGE)).body.decode()
    tagging = Fault("PutObjectTagging", Delay(60), times=None, every=2)
    proxy.faults.append(tagging)
    plans = [
        (SMALL, 0.5, True),
        (LARGE, 0.5, True),
        (LARGE, 30, True),
        (LARGEST, 3, True),
        (LARGEST, 30, False),
    ] * (count // 4)
    uploads = [
        asyncio.create_task(load.upload(url, bundle, duration=seconds, chunked=chunked))
        for bundle, seconds, chunked in plans
    ]
    downloads = [
        asyncio.create_task(load.download(url, known_id, LARGE, duration=seconds))
        for seconds in (0, 10, 20, 30) * (count // 4)
    ]

    def halfway() -> bool:
        parts = sum(
            request.operation == "UploadPart" and request.completed for request in proxy.requests
        )
        puts = sum(
            request.operation == "PutObject" and request.received >= MIB // 4
            for request in proxy.requests
        )
        # The first bundle had two parts. Of every five uploads, one sends two parts, and another
        # has sent one of three. Two are a PutObject.
        done = sum(task.done() for task in uploads)
        return (
            tagging.injected >= 1
            and done >= count // 4
            and parts >= 2 + 3 * count // 4
            and puts >= 2 * count // 4
        )

    await asyncio.to_thread(wait_until, halfway, timeout=60)
    process.kill()
    responses = await asyncio.gather(*uploads)
    bundles = [bundle for bundle, *_ in plans]
    return list(zip(responses, bundles, strict=True)), await asyncio.gather(*downloads)


@dataclass(frozen=True)
class StoredObject:
    """An object, read from S3 directly."""

    bundle_id: str
    body: bytes
    tags: dict[str, str]


def stored_objects(s3: Any, bucket: str) -> Iterator[StoredObject]:
    for bundle_id, (body, tags) in stored_bundles(s3, bucket).items():
        yield StoredObject(bundle_id, body, tags)


def visibility(url: str, stored: StoredObject) -> str:
    """Return "served" for an object that the service serves. It must be complete. Else "hidden"."""
    response = httpx.get(
        f"{url}/files/{stored.bundle_id}",
        headers=sign(load.KEY, stored.body),
        trust_env=False,
        timeout=30,
    )
    size = int(stored.tags.get("size", len(stored.body)))
    if not stored.tags or size != len(stored.body):
        assert response.status_code == 404
        return "hidden"
    assert stored.body in (SMALL, LARGE, LARGEST)
    assert (response.status_code, response.content) == (200, stored.body)
    return "served"
