"""The bodies of S3 objects: a part on its way up, an object on its way down."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING

from service.client import BrokenOff, Calls
from service.errors import NotFound, StorageUnavailable
from service.ranges import Stat

if TYPE_CHECKING:
    from types_aiobotocore_s3.type_defs import GetObjectOutputTypeDef, HeadObjectOutputTypeDef

WRITE_SIZE = 256 * 1024
"""Bytes of a part that are given to its connection at a time."""

RESUMPTIONS = 3
"""How often in a row a body that breaks off is asked for again, unless that brings `PROGRESS`."""

PROGRESS = 64 * 1024
"""Bytes; in smaller bites, a large bundle would cost its reader minutes and S3 a storm."""


class StoredObject:
    """GetObject's answer: `stat`, and the body as an iterator that its opener closes.

    `get` asks for a part of the same object. Where the body breaks off it is resumed there; if that
    brings no progress, or the object is gone, iterating raises `StorageUnavailable`.
    """

    def __init__(
        self,
        got: GetObjectOutputTypeDef,
        calls: Calls,
        get: Callable[[range], Awaitable[GetObjectOutputTypeDef]],
    ) -> None:
        self.stat = stat(got)
        self._body = got["Body"]
        self._left = part_of(got)
        self._calls = calls
        self._get = get

    async def __aiter__(self) -> AsyncIterator[bytes]:
        stuck = gained = 0
        while self._left:
            try:
                chunk = await self._calls.read(self._body)
            except BrokenOff as error:
                stuck, gained = 1 if gained >= PROGRESS else stuck + 1, 0
                if stuck > RESUMPTIONS:
                    self._calls.failed("GetObject", error.__cause__ or error)
                    raise StorageUnavailable from error
                await self._resume()
            else:
                gained += len(chunk)
                self._left = self._left[len(chunk) :]
                yield chunk

    async def aclose(self) -> None:
        """Give the connection back, or drop it where the body was not read to its end."""
        self._body.close()

    async def _resume(self) -> None:
        self._body.close()
        self._calls.metrics.s3_resumed.inc()
        try:
            got = await self._get(self._left)
        except NotFound as error:
            raise StorageUnavailable from error
        self._body = got["Body"]


class Part:
    """A part as the seekable file that botocore signs and sends again after a failure.

    Iterated, it gives aiohttp slices of the buffer: given `bytes`, aiohttp would copy the part.
    """

    def __init__(self, body: memoryview) -> None:
        self._body = body
        self._at = 0

    def read(self, size: int = -1) -> memoryview:
        start, self._at = self._at, len(self._body) if size < 0 else self._at + size
        return self._body[start : self._at]

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = offset + (0, self._at, len(self._body))[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def close(self) -> None:
        """Let go of the buffer: botocore and aiohttp keep requests until they are collected."""
        self._body = memoryview(b"")

    async def __aiter__(self) -> AsyncIterator[memoryview]:
        for start in range(0, len(self._body), WRITE_SIZE):
            yield self._body[start : start + WRITE_SIZE]


def stat(answer: GetObjectOutputTypeDef | HeadObjectOutputTypeDef) -> Stat:
    """Of the whole object, also where the answer is of a part of it."""
    whole = answer.get("ContentRange", "").rpartition("/")[2]
    size = int(whole) if whole else answer["ContentLength"]
    return Stat(size, answer["ETag"], answer["LastModified"].timestamp())


def part_of(answer: GetObjectOutputTypeDef) -> range:
    """Which bytes of the object the answer's body holds."""
    stated = re.fullmatch(r"bytes ([0-9]+)-([0-9]+)/[0-9]+", answer.get("ContentRange", ""))
    if stated is None:
        return range(answer["ContentLength"])
    return range(int(stated[1]), int(stated[2]) + 1)
