"""Bodies of S3 requests and responses as streams. `storage` creates them."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable
from io import UnsupportedOperation
from typing import TYPE_CHECKING

from service.bundles.ranges import ObjectStat
from service.bundles.stream import StreamBroken
from service.bundles.upload import Body
from service.errors import NotFound, StorageUnavailable
from service.s3.calls import BodyInterrupted, S3Calls
from service.s3.records import fields_in_metadata

if TYPE_CHECKING:
    from types_aiobotocore_s3.type_defs import GetObjectOutputTypeDef, HeadObjectOutputTypeDef

MAX_RESUMES = 5
"""How often in a row an interrupted download is resumed without `MIN_PROGRESS` in between.

If S3 interrupts a tenth of its responses early, one in a million downloads fails. With three, it
is one in ten thousand. Each may take 10 s, if S3 stalls.
"""

MIN_PROGRESS = 64 * 1024
"""Bytes. With less progress per request, a large bundle would take minutes and many requests."""


class ObjectBody:
    """The body of a GetObject response, as an iterator that resumes after interruptions.

    `get` requests a range of the same object. Iterating raises `StorageUnavailable` if resuming
    brings no progress, or if the object no longer exists. The caller closes the body.
    """

    def __init__(
        self,
        response: GetObjectOutputTypeDef,
        calls: S3Calls,
        get: Callable[[range], Awaitable[GetObjectOutputTypeDef]],
    ) -> None:
        self.stat = object_stat(response)
        self._body = response["Body"]
        self._missing = body_range(response)
        self._calls = calls
        self._get = get

    async def __aiter__(self) -> AsyncIterator[bytes]:
        resumes = progress = 0
        while self._missing:
            try:
                chunk = await self._calls.read_chunk(self._body)
            except BodyInterrupted as error:
                resumes, progress = 1 if progress >= MIN_PROGRESS else resumes + 1, 0
                if resumes > MAX_RESUMES:
                    self._calls.log_failure("GetObject", error.__cause__ or error)
                    raise StorageUnavailable from error
                await self._resume()
            else:
                progress += len(chunk)
                self._missing = self._missing[len(chunk) :]
                yield chunk

    async def aclose(self) -> None:
        """Return the connection to the pool, or close it if the body was not read completely."""
        self._body.close()

    async def _resume(self) -> None:
        self._body.close()
        self._calls.metrics.s3_resumed.inc()
        try:
            response = await self._get(self._missing)
        except NotFound as error:
            raise StorageUnavailable from error
        self._body = response["Body"]


class RequestBody:
    """A request body in the form that botocore and aiohttp need.

    botocore asks for its length, and seeks to its start before a retry. It never reads the body,
    because the payload is not signed. aiohttp iterates over views of the chunks, because it would
    copy `bytes`.
    """

    def __init__(self, body: Body) -> None:
        self._body: Body | None = body
        self._size = body.size

    def __len__(self) -> int:
        return self._size

    def read(self, _: int = -1) -> bytes:
        raise UnsupportedOperation("a request body is iterated, not read")

    def tell(self) -> int:
        return 0

    @property
    def can_be_sent_again(self) -> bool:
        """Whether the start of the body is still in memory."""
        try:
            self.seek(0)
        except (StreamBroken, ValueError):
            return False
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        """Prepare for another attempt. Fails if the body cannot be sent again."""
        if (offset, whence) != (0, 0) or self._body is None:
            raise ValueError("only the start of the body can be sought")
        self._body.rewind()
        return 0

    def close(self) -> None:
        """Drop the body: botocore and aiohttp reference requests until garbage collection."""
        self._body = None

    async def __aiter__(self) -> AsyncIterator[memoryview]:
        if self._body is not None:
            async for chunk in self._body:
                yield memoryview(chunk)


def has_complete_head(response: GetObjectOutputTypeDef | HeadObjectOutputTypeDef) -> bool:
    """Return whether a response has what `object_stat` needs. S3 always sends all of it."""
    return {"ContentLength", "ETag", "LastModified"} <= response.keys()


def object_stat(response: GetObjectOutputTypeDef | HeadObjectOutputTypeDef) -> ObjectStat:
    """Describe the whole object, even if the response holds only a range of it."""
    total = response.get("ContentRange", "").rpartition("/")[2]
    size = int(total) if total else response["ContentLength"]
    fields = fields_in_metadata(response.get("Metadata", {}))
    return ObjectStat(size, response["ETag"], response["LastModified"].timestamp(), fields)


def body_range(response: GetObjectOutputTypeDef) -> range:
    """Return which bytes of the object the body of this response holds."""
    match = re.fullmatch(r"bytes ([0-9]+)-([0-9]+)/[0-9]+", response.get("ContentRange", ""))
    if match is None:
        return range(response["ContentLength"])
    return range(int(match[1]), int(match[2]) + 1)
