"""Bodies of S3 requests and responses as streams. `storage` creates them."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING

from service.bundles.ranges import ObjectStat
from service.errors import NotFound, StorageUnavailable
from service.s3.calls import BodyInterrupted, S3Calls

if TYPE_CHECKING:
    from types_aiobotocore_s3.type_defs import GetObjectOutputTypeDef, HeadObjectOutputTypeDef

WRITE_SIZE = 256 * 1024
"""Bytes of a request body that are written to the connection at a time."""

MAX_RESUMES = 3
"""How often in a row an interrupted download is resumed without `MIN_PROGRESS` in between."""

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


class PartBody:
    """A request body as the seekable file that botocore needs for signing and retries.

    As an asynchronous iterator, it gives slices of the buffer to aiohttp. aiohttp would copy the
    whole part if it were `bytes`.
    """

    def __init__(self, buffer: memoryview) -> None:
        self._buffer = buffer
        self._position = 0

    def read(self, size: int = -1) -> memoryview:
        start = self._position
        self._position = len(self._buffer) if size < 0 else start + size
        return self._buffer[start : self._position]

    def seek(self, offset: int, whence: int = 0) -> int:
        self._position = offset + (0, self._position, len(self._buffer))[whence]
        return self._position

    def tell(self) -> int:
        return self._position

    def close(self) -> None:
        """Drop the buffer: botocore and aiohttp reference requests until garbage collection."""
        self._buffer = memoryview(b"")

    async def __aiter__(self) -> AsyncIterator[memoryview]:
        for start in range(0, len(self._buffer), WRITE_SIZE):
            yield self._buffer[start : start + WRITE_SIZE]


def object_stat(response: GetObjectOutputTypeDef | HeadObjectOutputTypeDef) -> ObjectStat:
    """Describe the whole object, even if the response holds only a range of it."""
    total = response.get("ContentRange", "").rpartition("/")[2]
    size = int(total) if total else response["ContentLength"]
    return ObjectStat(size, response["ETag"], response["LastModified"].timestamp())


def body_range(response: GetObjectOutputTypeDef) -> range:
    """Return which bytes of the object the body of this response holds."""
    match = re.fullmatch(r"bytes ([0-9]+)-([0-9]+)/[0-9]+", response.get("ContentRange", ""))
    if match is None:
        return range(response["ContentLength"])
    return range(int(match[1]), int(match[2]) + 1)
