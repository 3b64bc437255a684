"""The memory budget: how many bytes of bundles a process holds, whatever its clients do.

- Who needs memory takes it before S3 is asked for anything, and gives it back in the end.
- Who cannot have it waits, first come, first served, and reads nothing from its client
  meanwhile, so that TCP holds the client back. Waiting is bounded.
- Who holds a part never waits for another one; it takes a second only if that is free at once.
  So somebody can always go on.
- What was a part's memory is kept for the next one, as far as the budget has room for it: new
  pages take a sixth of the CPU of an upload.
"""

import asyncio
import mmap
from collections import deque
from contextlib import suppress
from types import TracebackType
from typing import Self

from service import trace
from service.errors import Overloaded

SLOT = 256 * 1024
"""Bytes in which an upload of unknown length begins."""


class Budget:
    """`total` bytes; who waits longer than `timeout` seconds for some gets `Overloaded`."""

    def __init__(self, total: int, *, timeout: float) -> None:
        self.total = total
        self.in_use = 0
        self._timeout = timeout
        self._spare = _Spare()
        self._waiting: deque[tuple[int, asyncio.Future[Lease]]] = deque()

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def spare(self) -> int:
        """Bytes kept for who is next; no more than `total` with those that are in use."""
        return self._spare.size

    def take_now(self, size: int) -> "Lease | None":
        """Take `size` bytes if they are free and nobody waits for them."""
        if self._waiting or self.in_use + size > self.total:
            return None
        return self._lease(size)

    async def take(self, size: int) -> "Lease":
        """Take `size` bytes, at most `total`, when it is this caller's turn."""
        if lease := self.take_now(size):
            return lease
        turn: asyncio.Future[Lease] = asyncio.get_running_loop().create_future()
        self._waiting.append((size, turn))
        try:
            with trace.waiting("budget"):
                async with asyncio.timeout(self._timeout):
                    return await turn
        except BaseException as error:
            with suppress(ValueError):
                self._waiting.remove((size, turn))
            if turn.done() and not turn.cancelled():
                turn.result().release()
            self._serve()
            if isinstance(error, TimeoutError):
                raise Overloaded from error
            raise

    def give_back(self, size: int, pages: mmap.mmap | None) -> None:
        """Have `size` bytes less in use, and perhaps these `pages` for who is next."""
        self.in_use -= size
        if pages is not None:
            self._spare.put(pages)
        self._serve()
        self._spare.fit(self.total - self.in_use)

    def _serve(self) -> None:
        """Let those go on whose turn it is. A large demand is not overtaken by small ones."""
        while self._waiting and self.in_use + self._waiting[0][0] <= self.total:
            size, turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(self._lease(size))

    def _lease(self, size: int) -> "Lease":
        self.in_use += size
        lease = Lease(self, size, self._spare.take(size))
        self._spare.fit(self.total - self.in_use)
        return lease


class _Spare:
    """Pages that were in use, `size` bytes of them, for leases of just their size.

    None smaller than a slot: they cost little, but there could be any number to look through, and
    the kernel makes each of them a page at least.
    """

    def __init__(self) -> None:
        self.size = 0
        self._pages: deque[mmap.mmap] = deque()

    def take(self, size: int) -> mmap.mmap | None:
        if size < SLOT:
            return None
        found = next((pages for pages in self._pages if len(pages) == size), None)
        if found is not None:
            self._pages.remove(found)
            self.size -= size
        return found

    def put(self, pages: mmap.mmap) -> None:
        """Keep pages, but none that somebody sees still."""
        if len(pages) >= SLOT and _unseen(pages):
            self._pages.append(pages)
            self.size += len(pages)

    def fit(self, limit: int) -> None:
        """Drop the oldest, down to `limit` bytes."""
        while self.size > limit:
            self.size -= len(self._pages.popleft())


def _unseen(pages: mmap.mmap) -> bool:
    """Whether nobody has a view of them left; only then can pages be resized."""
    try:
        pages.resize(len(pages))
    except (BufferError, SystemError):  # The latter where no pages can.
        return False
    return True


class Memory:
    """What a process holds of bundles: parts of up to `total` bytes, and small slots beside them.

    `total` is at least two parts.
    """

    def __init__(self, total: int, *, timeout: float) -> None:
        self.parts = Budget(total, timeout=timeout)
        self.slots = Budget(max(total // 16, 16 * SLOT), timeout=timeout)


class Lease:
    """Bytes taken out of a budget, until they are given back."""

    def __init__(self, budget: Budget, size: int, pages: mmap.mmap | None = None) -> None:
        self._budget = budget
        self._pages = pages
        self.size = size

    def buffer(self) -> memoryview:
        """All of these bytes, to be filled: at first they hold anything.

        They are pages of their own, as the heap ends where the last small thing above them does;
        and new ones where somebody sees the last buffer still, whose bytes stay what they are.
        """
        if self._pages is None or not _unseen(self._pages):
            flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
            self._pages = mmap.mmap(-1, max(self.size, 1), flags=flags)
        return memoryview(self._pages)[: self.size]

    def shrink(self, size: int) -> None:
        """Keep `size` bytes, if that is less; the others are free from now on."""
        if size < self.size:
            freed, self.size = self.size - size, size
            pages, self._pages = self._pages, None
            self._budget.give_back(freed, pages)

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
