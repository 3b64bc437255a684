"""A released bundle's bytes on their way out, and what has to be let go of when they end."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import ExitStack
from typing import Protocol

from service import trace

PIECE = 256 * 1024
"""Bytes of a bundle in memory that are given to its reader at a time."""

RECEIPT_TIMEOUT = 5.0
"""Seconds that a download's last bytes wait for its receipt to be written."""


class Content(Protocol):
    """A bundle's bytes: to be iterated once, and closed by whoever asked for them."""

    def __aiter__(self) -> AsyncIterator[bytes | memoryview]: ...
    async def aclose(self) -> None: ...


class InMemory:
    """A part of a verified bundle that is in memory already."""

    def __init__(self, bundle: memoryview, part: range) -> None:
        self._left = bundle[part.start : part.stop]

    async def __aiter__(self) -> AsyncIterator[memoryview]:
        while self._left:
            piece, self._left = self._left[:PIECE], self._left[PIECE:]
            yield piece

    async def aclose(self) -> None:
        self._left = memoryview(b"")


class Held:
    """Content with the memory it takes, whose last bytes wait for a receipt to be `noted`."""

    def __init__(
        self, content: Content, memory: ExitStack, noted: asyncio.Task[None] | None
    ) -> None:
        self._content = content
        self._memory = memory
        self._noted = noted

    def __aiter__(self) -> AsyncIterator[bytes | memoryview]:
        return aiter(self._content) if self._noted is None else self._until(self._noted)

    async def _until(self, noted: asyncio.Task[None]) -> AsyncIterator[bytes | memoryview]:
        last: bytes | memoryview = b""
        async for chunk in self._content:
            if last:
                yield last
            last = chunk
        with trace.waiting("s3"):
            await asyncio.wait([noted], timeout=RECEIPT_TIMEOUT)
        yield last

    async def aclose(self) -> None:
        await self._content.aclose()
        self._memory.close()
