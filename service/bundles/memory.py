"""The memory limit for bundle data: how many bytes all transfers of this process may hold.

- A transfer acquires memory before it reads bytes of a bundle, and releases it when it ends.
- A transfer that cannot get memory waits, first come, first served. While it waits it reads
  nothing from its client, so TCP slows the client down. Waiting is limited by the queue timeout.
- A transfer that holds a part never waits for a second one. It uses a second part only if that is
  free at once. So at least one transfer can always make progress.
- Released pages are kept for the next transfer, within the limit: allocating new pages takes a
  sixth of the CPU time of an upload.
"""

import asyncio
import mmap
from collections import deque
from contextlib import suppress
from types import TracebackType
from typing import Self

from service.errors import Overloaded
from service.telemetry import timing

SLOT_SIZE = 256 * 1024
"""Bytes of the first buffer of an upload whose length is unknown."""


class Memory:
    """The two memory pools of a process.

    `parts` has `total` bytes, for the parts of uploads and for downloads; `total` has to be at
    least the size of two parts. `slots` is a small extra pool, in which uploads of unknown length
    start.
    """

    def __init__(self, total: int, *, timeout: float) -> None:
        self.parts = MemoryPool(total, timeout=timeout)
        self.slots = MemoryPool(max(total // 16, 16 * SLOT_SIZE), timeout=timeout)


class MemoryPool:
    """A pool of `total` bytes. Waiting longer than `timeout` seconds raises `Overloaded`."""

    def __init__(self, total: int, *, timeout: float) -> None:
        self.total = total
        self.in_use = 0
        self._timeout = timeout
        self._cache = _PageCache()
        self._waiting: deque[tuple[int, asyncio.Future[Allocation]]] = deque()

    @property
    def waiting(self) -> int:
        """The number of transfers that wait for memory."""
        return len(self._waiting)

    @property
    def cached(self) -> int:
        """Bytes that are kept for the next transfers. With `in_use`, they never exceed `total`."""
        return self._cache.size

    def try_acquire(self, size: int) -> "Allocation | None":
        """Allocate `size` bytes if they are free and no other transfer waits."""
        if self._waiting or self.in_use + size > self.total:
            return None
        return self._allocate(size)

    async def acquire(self, size: int) -> "Allocation":
        """Allocate `size` bytes, at most `total`, after all earlier callers."""
        if allocation := self.try_acquire(size):
            return allocation
        turn: asyncio.Future[Allocation] = asyncio.get_running_loop().create_future()
        self._waiting.append((size, turn))
        try:
            with timing.measure("budget"):
                async with asyncio.timeout(self._timeout):
                    return await turn
        except BaseException as error:
            with suppress(ValueError):
                self._waiting.remove((size, turn))
            if turn.done() and not turn.cancelled():
                turn.result().release()
            self._serve_queue()
            if isinstance(error, TimeoutError):
                raise Overloaded from error
            raise

    def release(self, size: int, pages: mmap.mmap | None) -> None:
        """Free `size` bytes of an allocation; `pages` can be used for another one."""
        self.in_use -= size
        if pages is not None:
            self._cache.put(pages)
        self._serve_queue()
        self._cache.shrink(self.total - self.in_use)

    def _serve_queue(self) -> None:
        """Allocate to waiting transfers in order. Small requests do not overtake a large one."""
        while self._waiting and self.in_use + self._waiting[0][0] <= self.total:
            size, turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(self._allocate(size))

    def _allocate(self, size: int) -> "Allocation":
        self.in_use += size
        allocation = Allocation(self, size, self._cache.take(size))
        self._cache.shrink(self.total - self.in_use)
        return allocation


class Allocation:
    """Bytes taken from a pool until they are released."""

    def __init__(self, pool: MemoryPool, size: int, pages: mmap.mmap | None = None) -> None:
        self._pool = pool
        self._pages = pages
        self.size = size

    def buffer(self) -> memoryview:
        """Return a buffer of `size` bytes. Its initial contents are arbitrary.

        The buffer has pages of its own: the heap could not be returned to the system while any
        small object lies above it. If someone still has a view of the previous buffer, the new
        buffer gets new pages, so the bytes of the old view do not change.
        """
        if self._pages is None or not _is_unreferenced(self._pages):
            flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
            self._pages = mmap.mmap(-1, max(self.size, 1), flags=flags)
        return memoryview(self._pages)[: self.size]

    def shrink(self, size: int) -> None:
        """Keep `size` bytes, if that is less than now, and release the rest."""
        if size < self.size:
            freed, self.size = self.size - size, size
            pages, self._pages = self._pages, None
            self._pool.release(freed, pages)

    def release(self) -> None:
        self.shrink(0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()


class _PageCache:
    """Released pages, `size` bytes in all, for new allocations of exactly the same size.

    Pages smaller than a slot are not cached. They are cheap to allocate, there could be very many
    of them to search, and the kernel rounds each of them up to a whole page.
    """

    def __init__(self) -> None:
        self.size = 0
        self._pages: deque[mmap.mmap] = deque()

    def take(self, size: int) -> mmap.mmap | None:
        if size < SLOT_SIZE:
            return None
        match = next((pages for pages in self._pages if len(pages) == size), None)
        if match is not None:
            self._pages.remove(match)
            self.size -= size
        return match

    def put(self, pages: mmap.mmap) -> None:
        """Cache pages, unless someone still has a view of them."""
        if len(pages) >= SLOT_SIZE and _is_unreferenced(pages):
            self._pages.append(pages)
            self.size += len(pages)

    def shrink(self, limit: int) -> None:
        """Drop the oldest pages until `limit` bytes are left."""
        while self.size > limit:
            self.size -= len(self._pages.popleft())


def _is_unreferenced(pages: mmap.mmap) -> bool:
    """Return whether no view of these pages exists: mmap refuses to resize while one does."""
    try:
        pages.resize(len(pages))
    except (BufferError, SystemError):  # SystemError: the platform cannot resize pages at all.
        return False
    return True
