"""The memory budget: how many bytes of bundles a process holds, whatever its clients do.

- Who needs memory takes it before S3 is asked for anything, and gives it back in the end.
- Who cannot have it waits, first come, first served, and reads nothing from its client
  meanwhile, so that TCP holds the client back. Waiting is bounded.
- Who holds a part never waits for another one; it takes a second only if that is free at once.
  So somebody can always go on.
"""

import asyncio
import mmap
from collections import deque
from contextlib import suppress
from types import TracebackType
from typing import Self

from service import trace
from service.errors import Overloaded


class Budget:
    """`total` bytes; who waits longer than `timeout` seconds for some gets `Overloaded`."""

    def __init__(self, total: int, *, timeout: float) -> None:
        self.total = total
        self.in_use = 0
        self._timeout = timeout
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def take_now(self, size: int) -> "Lease | None":
        """Take `size` bytes if they are free and nobody waits for them."""
        if self._waiting or self.in_use + size > self.total:
            return None
        self.in_use += size
        return Lease(self, size)

    async def take(self, size: int) -> "Lease":
        """Take `size` bytes, at most `total`, when it is this caller's turn."""
        if lease := self.take_now(size):
            return lease
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append((size, turn))
        try:
            with trace.waiting("budget"):
                async with asyncio.timeout(self._timeout):
                    await turn
        except BaseException as error:
            with suppress(ValueError):
                self._waiting.remove((size, turn))
            if turn.done() and not turn.cancelled():
                self.in_use -= size
            self._serve()
            if isinstance(error, TimeoutError):
                raise Overloaded from error
            raise
        return Lease(self, size)

    def give_back(self, size: int) -> None:
        self.in_use -= size
        self._serve()

    def _serve(self) -> None:
        """Let those go on whose turn it is. A large demand is not overtaken by small ones."""
        while self._waiting and self.in_use + self._waiting[0][0] <= self.total:
            size, turn = self._waiting.popleft()
            if not turn.done():
                self.in_use += size
                turn.set_result(None)


SLOT = 256 * 1024
"""Bytes in which an upload of unknown length begins."""


class Memory:
    """What a process holds of bundles: parts of up to `total` bytes, and small slots beside them.

    `total` is at least two parts.
    """

    def __init__(self, total: int, *, timeout: float) -> None:
        self.parts = Budget(total, timeout=timeout)
        self.slots = Budget(max(total // 16, 16 * SLOT), timeout=timeout)


def buffer(size: int) -> memoryview:
    """`size` bytes to fill, given back to the system as soon as nobody refers to them.

    Out of the heap they would soon not be: it ends where the last small thing above them does.
    """
    pages = mmap.mmap(-1, max(size, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return memoryview(pages)[:size]


class Lease:
    """Bytes taken out of a budget, until they are given back."""

    def __init__(self, budget: Budget, size: int) -> None:
        self._budget = budget
        self.size = size

    def shrink(self, size: int) -> None:
        """Keep `size` bytes, if that is less; the others are free from now on."""
        if size < self.size:
            freed, self.size = self.size - size, size
            self._budget.give_back(freed)

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
