"""The bytes of an authorized download, and the memory that it holds until it ends.

`service` creates a `Download`, and `http.responses` streams and closes it.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Protocol

from service.bundles.ranges import ObjectStat
from service.bundles.record import BundleRecord
from service.telemetry import timing

CHUNK_SIZE = 256 * 1024
"""Bytes of a bundle in memory that are sent at a time."""

RECEIPT_TIMEOUT = 5.0
"""Seconds that the last bytes of a download wait for PutObjectTagging to store its receipt."""


class Content(Protocol):
    """The bytes of a bundle. They can be iterated once; the caller that opened them closes them."""

    def __aiter__(self) -> AsyncIterator[bytes | memoryview]: ...
    async def aclose(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Download:
    """An authorized download of one byte range or of a whole bundle.

    `part` is `None` for a whole bundle. `content` is `None` for HEAD.
    """

    record: BundleRecord
    stat: ObjectStat
    content: Content | None
    part: range | None = None


class InMemoryContent:
    """The requested part of a verified bundle that is already in memory."""

    def __init__(self, bundle: memoryview, part: range) -> None:
        self._rest = bundle[part.start : part.stop]

    async def __aiter__(self) -> AsyncIterator[memoryview]:
        while self._rest:
            chunk, self._rest = self._rest[:CHUNK_SIZE], self._rest[CHUNK_SIZE:]
            yield chunk

    async def aclose(self) -> None:
        self._rest = memoryview(b"")


class DownloadContent:
    """Content together with the memory that it uses.

    Its last bytes are held back until its `receipt` is stored. A client that has received all of a
    bundle may fetch it again at once, and that download should already use the receipt.
    """

    def __init__(
        self, content: Content, resources: ExitStack, receipt: asyncio.Task[None] | None
    ) -> None:
        self._content = content
        self._resources = resources
        self._receipt = receipt

    def __aiter__(self) -> AsyncIterator[bytes | memoryview]:
        return aiter(self._content) if self._receipt is None else self._hold_back(self._receipt)

    async def _hold_back(self, receipt: asyncio.Task[None]) -> AsyncIterator[bytes | memoryview]:
        last: bytes | memoryview = b""
        async for chunk in self._content:
            if last:
                yield last
            last = chunk
        with timing.measure("s3"):
            await asyncio.wait([receipt], timeout=RECEIPT_TIMEOUT)
        yield last

    async def aclose(self) -> None:
        await self._content.aclose()
        self._resources.close()
