"""The `sweep` command: removes expired bundles and what abandoned uploads have left behind.

For stores without lifecycle rules, and for operators who do not want to wait for S3's daily run. It
may be repeated, and any number of sweepers may run at once. It needs the IAM actions s3:ListBucket,
s3:ListBucketMultipartUploads, s3:GetObjectTagging, s3:GetObject, s3:DeleteObject and
s3:AbortMultipartUpload.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

from botocore.exceptions import BotoCoreError, ClientError

from service.bundles.record import DAY, BundleRecord
from service.errors import BucketError
from service.s3.calls import error_code, error_status
from service.s3.capabilities import REFUSALS
from service.s3.records import Records, fields_in_metadata, read_tags

if TYPE_CHECKING:
    from types_aiobotocore_s3 import S3Client

CONCURRENCY = 16
"""Requests to S3 at the same time."""

STALE_AFTER = DAY
"""Seconds after which a multipart upload, or an object that is not a bundle, is removed.

The lifecycle rule of `initialization` aborts multipart uploads after the same time.
"""

_GONE = {"NoSuchKey", "NoSuchUpload", "404"}
_OTHER: dict[Records, Records] = {"tags": "metadata", "metadata": "tags"}


@dataclass(slots=True)
class Progress:
    """What a sweep has done so far."""

    checked: int = 0
    expired: int = 0
    incomplete: int = 0
    uploads: int = 0

    def __str__(self) -> str:
        return (
            f"{self.checked:,} objects checked: {self.expired:,} expired bundles, "
            f"{self.incomplete:,} incomplete objects and {self.uploads:,} abandoned uploads"
        )


class Sweep:
    """One run. At most `rate` requests per second are sent, so that transfers are not delayed.

    With `dry_run`, everything is only counted. `clock` returns Unix seconds. Only keys of the form
    `{prefix}{uuid}` and probe objects are touched.
    """

    def __init__(  # noqa: PLR0913 - the settings, each by its name
        self,
        client: S3Client,
        *,
        bucket: str,
        prefix: str,
        records: Records,
        rate: float,
        dry_run: bool,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.progress = Progress()
        self._client = client
        self._bucket = bucket
        self._prefix = prefix
        self._records = records
        self._interval = 1 / rate
        self._dry_run = dry_run
        self._clock = clock
        self._next_request = 0.0

    async def run(self) -> AsyncIterator[Progress]:
        """Sweep once; yields the progress after each page of up to 1,000 keys.

        Holds one page in memory. Raises `BucketError` if S3 fails.
        """
        objects = self._client.get_paginator("list_objects_v2")
        uploads = self._client.get_paginator("list_multipart_uploads")
        try:
            async for page in objects.paginate(Bucket=self._bucket, Prefix=self._prefix):
                await self._run_all(self._sweep_object(entry) for entry in page.get("Contents", []))
                yield self.progress
            async for listing in uploads.paginate(Bucket=self._bucket, Prefix=self._prefix):
                found = listing.get("Uploads", [])
                await self._run_all(self._sweep_upload(entry) for entry in found)
                yield self.progress
        except (BotoCoreError, ClientError) as error:
            raise BucketError(f"S3 failed ({error}): run check, then sweep again.") from error

    async def _run_all(self, calls: Iterator[Coroutine[Any, Any, None]]) -> None:
        """Run the calls, `CONCURRENCY` of them at a time."""

        async def run_one_after_the_other() -> None:
            for call in calls:
                await call

        workers = [asyncio.create_task(run_one_after_the_other()) for _ in range(CONCURRENCY)]
        try:
            await asyncio.gather(*workers)
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)

    async def _sweep_object(self, entry: Any) -> None:
        key, name = entry["Key"], entry["Key"].removeprefix(self._prefix)
        if not _is_ours(name):
            return
        self.progress.checked += 1
        try:
            record = await self._record(key, self._records)
            if record is None:
                # A sweep whose HISTORY_RECORDS differs from the service's removes no valid bundle.
                record = await self._record(key, _OTHER[self._records])
        except ClientError as error:
            if error_code(error) in _GONE:
                return  # Another sweeper, or the lifecycle, was faster.
            raise
        if record is not None and record.size in {None, entry["Size"]}:
            if not record.is_expired(self._clock()):
                return
            self.progress.expired += 1
        elif self._is_stale(entry["LastModified"]):
            self.progress.incomplete += 1
        else:
            return
        if not self._dry_run:
            async with self._removal():
                await self._client.delete_object(Bucket=self._bucket, Key=key)

    async def _sweep_upload(self, entry: Any) -> None:
        if _is_ours(entry["Key"].removeprefix(self._prefix)) and self._is_stale(entry["Initiated"]):
            self.progress.uploads += 1
            if not self._dry_run:
                upload = {"Key": entry["Key"], "UploadId": entry["UploadId"]}
                async with self._removal():
                    await self._client.abort_multipart_upload(Bucket=self._bucket, **upload)

    async def _record(self, key: str, records: Records) -> BundleRecord | None:
        await self._wait_for_turn()
        if records == "metadata":
            head = await self._client.head_object(Bucket=self._bucket, Key=key)
            return BundleRecord.from_fields(fields_in_metadata(head["Metadata"]))
        try:
            tags = await read_tags(self._client.get_object_tagging(Bucket=self._bucket, Key=key))
        except ClientError as error:
            if records == self._records or error_status(error) not in REFUSALS:
                raise
            return None
        return BundleRecord.from_fields(tags)

    @asynccontextmanager
    async def _removal(self) -> AsyncIterator[None]:
        """Wait for the turn of a request in this block. What it removes may be gone already."""
        await self._wait_for_turn()
        try:
            yield
        except ClientError as error:
            if error_code(error) not in _GONE:
                raise

    def _is_stale(self, since: datetime) -> bool:
        return self._clock() - since.timestamp() > STALE_AFTER

    async def _wait_for_turn(self) -> None:
        """Wait until the next request may be sent."""
        now = time.monotonic()
        self._next_request = max(self._next_request, now) + self._interval
        await asyncio.sleep(self._next_request - self._interval - now)


def _is_ours(name: str) -> bool:
    """Return whether a key's last part is the id of a bundle, or the name of a probe object."""
    with suppress(ValueError):
        return str(UUID(name.removeprefix("probe-"))) == name.removeprefix("probe-")
    return False
