"""The bytes of an authorized download, and the memory that it holds until it ends.

`service` creates a `Download`, and `http.responses` streams and closes it.
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Protocol

from service.bundles.ranges import ObjectStat
from service.bundles.record import BundleRecord


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

    def __init__(self, chunks: Sequence[bytes], part: range) -> None:
        self._chunks = chunks
        self._part = part

    async def __aiter__(self) -> AsyncIterator[memoryview]:
        start = 0
        for chunk in self._chunks:
            first, last = max(self._part.start - start, 0), self._part.stop - start
            if last > 0 and first < len(chunk):
                yield memoryview(chunk)[first:last]
            start += len(chunk)

    async def aclose(self) -> None:
        self._chunks = ()


class DownloadContent:
    """Content together with the memory that it uses."""

    def __init__(self, content: Content, resources: AsyncExitStack) -> None:
        self._content = content
        self._resources = resources

    def __aiter__(self) -> AsyncIterator[bytes | memoryview]:
        return aiter(self._content)

    async def aclose(self) -> None:
        await self._content.aclose()
        await self._resources.aclose()
