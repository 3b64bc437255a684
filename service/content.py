"""A released bundle's bytes on their way out, and what has to be let go of when they end."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import ExitStack
from typing import Protocol

from service import trace

RECEIPT_TIMEOUT = 5.0
"""Seconds that a download's last bytes wait for its receipt to be written."""


class Content(Protocol):
    """A bundle's bytes: to be iterated once, and closed by whoever asked for them."""

    def __aiter__(self) -> AsyncIterator[bytes]: ...
    async def aclose(self) -> None: ...


class InMemory:
    """A part of a verified bundle that is in memory already."""

    def __init__(self, chunks: list[bytes], part: range) -> None:
        self._chunks = chunks
        self._part = part

    async def __aiter__(self) -> AsyncIterator[bytes]:
        start, stop = self._part.start, self._part.stop
        for chunk in self._chunks:
            if piece := chunk[max(start, 0) : max(stop, 0)]:
                yield piece
            start, stop = start - len(chunk), stop - len(chunk)

    async def aclose(self) -> None:
        self._chunks.clear()


class Held:
    """Content with the memory it takes, whose last bytes wait for a receipt to be `noted`."""

    def __init__(
        self, content: Content, memory: ExitStack, noted: asyncio.Task[None] | None
    ) -> None:
        self._content = content
        self._memory = memory
        self._noted = noted

    def __aiter__(self) -> AsyncIterator[bytes]:
        return aiter(self._content) if self._noted is None else self._until(self._noted)

    async def _until(self, noted: asyncio.Task[None]) -> AsyncIterator[bytes]:
        last = b""
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
