"""What the store keeps of what it is given. This is tried with probe objects, not assumed.

`storage` accepts no upload before `RecordProbe` has shown that the store keeps records. `bucket`
reports all capabilities.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from contextvars import Context
from http import HTTPStatus
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from botocore.exceptions import ClientError

from service.bundles.stream import StreamBroken
from service.errors import StorageUnavailable
from service.s3.bodies import RequestBody
from service.s3.calls import LOG_INTERVAL, S3Calls, error_status
from service.s3.records import (
    Records,
    fields_in_metadata,
    read_tags,
    record_arguments,
    tag_set,
)
from service.telemetry import timing

if TYPE_CHECKING:
    from types_aiobotocore_s3 import S3Client

_log = logging.getLogger(__name__)

PROBE_TIMEOUT = 4.0
"""Seconds that trying the capabilities of a record may take, with all attempts."""

RETRY_INTERVAL = 1.0
"""Seconds between the end of an attempt and the start of the next one."""

CUT_BODY_SIZE = 128 * 1024
"""Bytes that a request declares that is cut after half of them."""

CUT_BODY_TIMEOUT = 0.5
"""Seconds in which a store shows what it has kept of a request that was cut."""

REFUSALS = {HTTPStatus.BAD_REQUEST, HTTPStatus.METHOD_NOT_ALLOWED, HTTPStatus.NOT_IMPLEMENTED}
"""Statuses that mean that the store does not offer something."""

DENIALS = {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}
"""Statuses that are about credentials."""

_FIELDS = {"expires-at": "probe", "size": "probe"}
"""Not a valid record. So a sweep does not remove the object before the probe has ended."""


class Probe:
    """Probe objects under one key, which are removed by `remove`. The key is not a bundle's."""

    def __init__(self, client: S3Client, bucket: str, prefix: str) -> None:
        self._client = client
        self._location: Any = {"Bucket": bucket, "Key": f"{prefix}probe-{uuid4()}"}
        self._in_parts = False

    async def remove(self) -> None:
        """Remove the object, and multipart uploads that were not completed."""
        if self._in_parts:
            with suppress(ClientError):  # Credentials may not permit it, and the lifecycle does it.
                await self._abort_uploads()
        await self._client.delete_object(**self._location)

    async def tags_at_put(self) -> bool:
        """Whether PutObject keeps tags."""
        await self._put(**record_arguments(_FIELDS, "tags"))
        return await self._tags() == _FIELDS

    async def tags_later(self) -> bool:
        """Whether PutObjectTagging replaces the tags of an object."""
        await self._put()
        await self._client.put_object_tagging(**self._location, Tagging=tag_set(_FIELDS))
        return await self._tags() == _FIELDS

    async def tags_at_create(self) -> bool:
        """Whether CreateMultipartUpload keeps tags."""
        await self._put_in_parts(**record_arguments(_FIELDS, "tags"))
        return await self._tags() == _FIELDS

    async def metadata_at_put(self) -> bool:
        """Whether PutObject keeps metadata."""
        await self._put(**record_arguments(_FIELDS, "metadata"))
        return await self._metadata() == _FIELDS

    async def metadata_at_create(self) -> bool:
        """Whether CreateMultipartUpload keeps metadata."""
        await self._put_in_parts(**record_arguments(_FIELDS, "metadata"))
        return await self._metadata() == _FIELDS

    async def keeps_cut_bodies(self) -> bool:
        """Whether the store creates an object of what has arrived of a request that is cut."""
        await self.remove()
        body = _CutBody()
        put = asyncio.create_task(
            self._client.put_object(
                **self._location,
                Body=RequestBody(body),  # type: ignore[arg-type]
                ContentLength=body.size,
            )
        )
        half_sent = asyncio.create_task(body.half_sent.wait())
        try:
            done = asyncio.FIRST_COMPLETED
            await asyncio.wait((put, half_sent), timeout=PROBE_TIMEOUT, return_when=done)
        finally:
            half_sent.cancel()
            put.cancel()
            await asyncio.gather(put, return_exceptions=True)
        deadline = time.monotonic() + CUT_BODY_TIMEOUT
        while time.monotonic() < deadline:
            with suppress(self._client.exceptions.ClientError):
                await self._client.head_object(**self._location)
                return True
            await asyncio.sleep(0.1)
        return False

    async def _put(self, **record: Any) -> None:
        await self._client.put_object(**self._location, Body=b"probe", **record)

    async def _put_in_parts(self, **record: Any) -> None:
        self._in_parts = True
        created = await self._client.create_multipart_upload(**self._location, **record)
        upload = {**self._location, "UploadId": created["UploadId"]}
        part = await self._client.upload_part(**upload, PartNumber=1, Body=b"probe")
        parts: Any = {"Parts": [{"PartNumber": 1, "ETag": part["ETag"]}]}
        await self._client.complete_multipart_upload(**upload, MultipartUpload=parts)

    async def _abort_uploads(self) -> None:
        bucket, key = self._location["Bucket"], self._location["Key"]
        listing = await self._client.list_multipart_uploads(Bucket=bucket, Prefix=key)
        for upload in listing.get("Uploads", []):
            await self._client.abort_multipart_upload(**self._location, UploadId=upload["UploadId"])

    async def _tags(self) -> dict[str, str]:
        return await read_tags(self._client.get_object_tagging(**self._location))

    async def _metadata(self) -> dict[str, str]:
        return fields_in_metadata((await self._client.head_object(**self._location))["Metadata"])


class _CutBody:
    """A body that stops after its first half."""

    size = CUT_BODY_SIZE

    def __init__(self) -> None:
        self.half_sent = asyncio.Event()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield bytes(self.size // 2)
        self.half_sent.set()
        await asyncio.Event().wait()

    def rewind(self) -> None:
        if self.half_sent.is_set():
            raise StreamBroken

    def on_arrival(self, callback: Callable[[int], None]) -> None:
        """It never arrives."""


NEEDED: dict[Records, tuple[Callable[[Probe], Awaitable[bool]], ...]] = {
    "tags": (Probe.tags_at_put, Probe.tags_later),
    "metadata": (Probe.metadata_at_put, Probe.metadata_at_create),
}
"""What the store has to be capable of for records in tags, and for records in metadata."""

NOT_KEPT: dict[Records, str] = {
    "tags": (
        "this store does not keep object tags, so no upload is accepted: set "
        "HISTORY_RECORDS=metadata, or use another store"
    ),
    "metadata": (
        "this store does not keep the metadata of objects, so no upload is accepted: use another "
        "store"
    ),
}


_KEPT: dict[str, Callable[[Probe], Awaitable[bool]]] = {
    "tags at PutObject": Probe.tags_at_put,
    "tags at CreateMultipartUpload": Probe.tags_at_create,
    "tags by PutObjectTagging": Probe.tags_later,
    "metadata at PutObject": Probe.metadata_at_put,
    "metadata at CreateMultipartUpload": Probe.metadata_at_create,
    "what has arrived of a cut body": Probe.keeps_cut_bodies,
}
"""All that is tried. The service works whether or not the store keeps the last one."""


async def describe(client: S3Client, bucket: str, prefix: str) -> str:
    """Return one sentence about what the store keeps.

    What these credentials may not do is left out. Raises botocore's errors.
    """
    probe = Probe(client, bucket, prefix)
    kept: dict[bool, list[str]] = {True: [], False: []}
    try:
        for name, attempt in _KEPT.items():
            try:
                kept[await is_capable(attempt(probe))].append(name)
            except ClientError as error:
                if error_status(error) != HTTPStatus.FORBIDDEN:
                    raise
    finally:
        await probe.remove()
    parts = (("keeps", kept[True]), ("does not keep", kept[False]))
    return "; ".join(f"{verb} {', '.join(names)}" for verb, names in parts if names)


async def is_capable(attempt: Awaitable[bool]) -> bool:
    """Return the result of an attempt, or false if the store does not offer what it needs."""
    try:
        return await attempt
    except ClientError as error:
        if error_status(error) not in REFUSALS:
            raise
        return False


async def keeps_records(probe: Probe, records: Records) -> bool:
    """Return whether the store keeps records in this form. Raises botocore's errors."""
    try:
        for attempt in NEEDED[records]:
            if not await is_capable(attempt(probe)):
                return False
        return True
    finally:
        await probe.remove()


class RecordProbe:
    """Tries whether the store keeps records, and again until it has shown that it does."""

    def __init__(
        self, client: S3Client, calls: S3Calls, *, bucket: str, prefix: str, records: Records
    ) -> None:
        self._probe = Probe(client, bucket, prefix)  # The next attempt removes what one leaves.
        self._calls = calls
        self._records: Records = records
        self.kept = False
        self._attempts: asyncio.Task[None] | None = None
        self._attempt_ended = asyncio.Event()
        self._next_log = 0.0

    async def close(self) -> None:
        """Stop trying. An attempt that runs removes its objects first."""
        if self._attempts is not None:
            self._attempts.cancel()
            await asyncio.wait([self._attempts], timeout=PROBE_TIMEOUT)

    async def require(self, *, limit: float = PROBE_TIMEOUT) -> None:
        """Raise `StorageUnavailable` unless the store keeps records, after at most `limit` seconds.

        Callers share an attempt, and it goes on after the limit. Its context is empty, because it
        does not belong to the request that has started it.
        """
        if self.kept:
            return
        if self._attempts is None or self._attempts.done():
            self._attempts = asyncio.create_task(self._try_until_s3_responds(), context=Context())
        with timing.measure("s3"), suppress(TimeoutError):
            async with asyncio.timeout(limit):
                await self._attempt_ended.wait()
        if not self.kept:
            raise StorageUnavailable

    async def _try_until_s3_responds(self) -> None:
        """Try once, and again while S3 fails, even if nobody asks: that removes the objects.

        Unless the store keeps records, this ends after `RETRY_INTERVAL`, in which callers fail.
        """
        responded = False
        while not responded:
            try:
                async with self._calls.call("Probe", limit=PROBE_TIMEOUT):
                    self.kept = await keeps_records(self._probe, self._records)
                responded = True
            except StorageUnavailable:
                pass  # The problem has been logged.
            finally:
                self._attempt_ended.set()
            if self.kept:
                return
            if responded:
                self._log_not_kept()
            await asyncio.sleep(RETRY_INTERVAL)
            self._attempt_ended.clear()

    def _log_not_kept(self) -> None:
        if time.monotonic() >= self._next_log:
            self._next_log = time.monotonic() + LOG_INTERVAL
            _log.error(NOT_KEPT[self._records])
