"""kill -9: what a process leaves behind is whole bundles, or what nobody can see."""

import asyncio
import hashlib
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
from tests.support.polling import until
from tests.support.proxy import Delay, Fault, Proxy
from tests.support.services.process import serving_bucket
from tests.support.services.thread import SMALL_PART
from tests.support.stores import Store
from tests.support.stores.buckets import multipart_upload_keys, new_bucket, stored_bundles

MIB = 1 << 20
LARGE = os.urandom(SMALL_PART + MIB)
SMALL, LARGEST = LARGE[:MIB], LARGE * 2


@pytest.mark.parametrize("count", [4, pytest.param(20, marks=pytest.mark.soak)])
def test_nothing_shows_but_whole_bundles(store: Store, s3: Any, count: int) -> None:
    """Killed while some are told their ids, some wait for their tags and some are under way."""
    bucket = new_bucket(s3)
    with Proxy(store.endpoint_url) as proxy:
        with serving_bucket(store, bucket, proxy.url, HISTORY_PART_SIZE="5MiB") as (url, process):
            uploads, downloads = asyncio.run(interrupted(url, process, proxy, count))
        told = {answer.body.decode(): bundle for answer, bundle in uploads if answer.status}
        assert {answer.status for answer, _ in uploads} == {200, load.BROKEN}
        assert {answer.status for answer in downloads} <= {200, load.BROKEN}
        assert all(answer.body == LARGE for answer in downloads if answer.status)
        with serving_bucket(store, bucket, HISTORY_PART_SIZE="5MiB") as (url, _):
            for bundle_id, bundle in told.items():
                assert asyncio.run(load.download(url, bundle_id, bundle)).body == bundle
            seen = Counter(visible(url, found) for found in objects(s3, bucket))
    left = multipart_upload_keys(s3, bucket)
    whole = sum(answer.status == 200 for answer in downloads)
    print(
        f"{len(told)} of {len(uploads)} uploads and {whole} of {len(downloads)} downloads were "
        f"done; objects: {dict(seen)}; for the lifecycle: {len(left)} multipart uploads"
    )
    assert seen["served"] >= len(told)
    assert seen["hidden"]
    assert left


async def interrupted(
    url: str, process: Popen[str], proxy: Proxy, count: int
) -> tuple[list[tuple[load.Answer, bytes]], list[load.Answer]]:
    """Of four uploads, one is done soon, as is one but for its tags; two are under way."""
    known = (await load.upload(url, LARGE)).body.decode()
    tagging = Fault("PutObjectTagging", Delay(60), times=None, every=2)
    proxy.faults.append(tagging)
    plans = [(SMALL, 0.5), (LARGE, 0.5), (LARGE, 30), (LARGEST, 3)] * (count // 4)
    uploads = [asyncio.create_task(load.upload(url, it, seconds=pace)) for it, pace in plans]
    downloads = [
        asyncio.create_task(load.download(url, known, LARGE, seconds=pace))
        for pace in (0, 10, 20, 30) * (count // 4)
    ]

    def midway() -> bool:
        parts = sum(it.operation == "UploadPart" and it.completed for it in proxy.requests)
        # One was known before; of each four, one sends two parts, and one has sent one of three.
        told = sum(task.done() for task in uploads)
        return tagging.struck >= 1 and told >= count // 4 and parts >= 2 + 3 * count // 4

    await asyncio.to_thread(until, midway, seconds=60)
    process.kill()
    answers = await asyncio.gather(*uploads)
    bundles = [bundle for bundle, _ in plans]
    return list(zip(answers, bundles, strict=True)), await asyncio.gather(*downloads)


@dataclass(frozen=True)
class Found:
    """An object as S3 has it."""

    bundle_id: str
    body: bytes
    tags: dict[str, str]


def objects(s3: Any, bucket: str) -> Iterator[Found]:
    for bundle_id, (body, tags) in stored_bundles(s3, bucket).items():
        yield Found(bundle_id, body, tags)


def visible(url: str, found: Found) -> str:
    """Whether the service shows an object; it is either whole, or hidden."""
    answer = httpx.get(
        f"{url}/files/{found.bundle_id}",
        headers=sign(load.KEY, found.body),
        trust_env=False,
        timeout=30,
    )
    if not found.tags:
        assert answer.status_code == 404
        return "hidden"
    assert found.tags["sha256"] == hashlib.sha256(found.body).hexdigest()
    assert found.body in (SMALL, LARGE, LARGEST)
    assert (answer.status_code, answer.content) == (200, found.body)
    return "served"
