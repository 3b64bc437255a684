"""The memory limit: how many bytes of bundles this process holds at once.

Every transfer takes one window before it reads bytes of a bundle. The window covers the chunk in
hand, the chunk that an upload holds back, and what the connections to S3 and to the client buffer.
Beyond its window, a transfer may hold one of these buffers, whose memory is taken as they fill:

- a `PartBuffer`: the current part of an upload of unknown length
- a `ReplayBuffer`: what an upload of known length has already sent to S3
- a `Reservation`: a bundle that is read to verify its proof, whose size is known before

The rules:

1. Windows and buffers together never hold more than the limit.
2. Windows take at most half of it, and leave room for one part.
3. A transfer waits if it cannot get a window or grow its part, and reads nothing from its client.
   After the queue timeout, it fails with `Overloaded`. Transfers are served first come, first
   served, but a caller with more than a tenth of all windows gets no more while a caller with
   fewer waits. Transfers that need no token do not count as those of one caller.
4. A replay buffer only uses memory that nothing else needs. If a window or another buffer needs
   it, and dropping replay buffers is enough, they are dropped at once, the largest first.
5. The oldest part buffer can grow to a whole part without waiting, because windows and all other
   buffers leave that much free. So at least one upload can complete its part and release it.
6. Buffers leave a quarter of the windows free, so that new transfers can start.
7. A transfer holds up to four chunks. While there are few transfers, they use large chunks, which
   take less CPU time. Transfers that wait for a slow client and hold small chunks, which their
   windows cover, do not count. Large chunks of the others take at most a quarter of the memory
   for windows. If each transfer starts after those before it have stopped reading, chunks can take
   up to 1.9 times that memory.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial

from service.bundles.buffers import PartBuffer, ReplayBuffer
from service.bundles.limits import ANYONE, Caller, FairQueue
from service.errors import Overloaded
from service.telemetry import timing

WINDOW_SIZE = 128 * 1024
"""Bytes that every transfer may hold without a buffer."""

MIN_CHUNK, MAX_CHUNK = 32 * 1024, 1 << 20
"""Bytes that a transfer reads at once while there are many transfers, and while there are few."""


def _new_future() -> asyncio.Future[None]:
    return asyncio.get_running_loop().create_future()


@dataclass(eq=False)
class _Waiter:
    """A transfer that waits until `take` succeeds, which takes a window or memory for a part."""

    take: Callable[[], bool]
    caller: Caller = ANYONE
    part: PartBuffer | None = None
    served: asyncio.Future[None] = field(default_factory=_new_future)


class _PartQueue(OrderedDict[PartBuffer | None, _Waiter]):
    """The transfers that wait for memory for their part, first come, first served."""

    def append(self, waiter: _Waiter) -> None:
        self[waiter.part] = waiter

    def remove(self, waiter: _Waiter) -> None:
        """Remove a transfer, if it is there."""
        self.pop(waiter.part, None)

    def first(self) -> _Waiter:
        return next(iter(self.values()))


class Usage:
    """One use of the memory: its limit, the bytes in use, and the transfers that wait for it."""

    def __init__(self, total: int, queue: _PartQueue | FairQueue[_Waiter]) -> None:
        self.total = total
        self.in_use = 0
        self.queue = queue

    @property
    def waiting(self) -> int:
        """The number of transfers that wait."""
        return len(self.queue)


class Memory:
    """The memory of this process: `total` bytes, at least two parts. `timeout` is in seconds."""

    def __init__(self, total: int, *, part_size: int, timeout: float) -> None:
        self.max_transfers = min(total // 2, total - part_size) // WINDOW_SIZE
        self._window_queue = FairQueue[_Waiter](self.max_transfers)
        self._part_queue = _PartQueue()
        self.windows = Usage(self.max_transfers * WINDOW_SIZE, self._window_queue)
        self.buffers = Usage(total - self.max_transfers // 4 * WINDOW_SIZE, self._part_queue)
        self.part_size = part_size
        self._total = total
        self.timeout = timeout
        self.slow_transfers = 0  # Those that wait for a slow client. Their chunks are small.
        self._parts: dict[PartBuffer, None] = {}  # In the order of their creation.
        self._replays: set[ReplayBuffer] = set()

    async def window(self, caller: Caller = ANYONE) -> "Reservation":
        """Take a window, after those that wait already."""
        take, release = partial(self._try_window, caller), partial(self._release_window, caller)
        if self.windows.queue or not take():
            await self._wait(self.windows, _Waiter(take, caller), release)
        return Reservation(release)

    def chunk_size(self) -> int:
        """Return how many bytes a transfer should read at once, at most."""
        fast = max(self.windows.in_use // WINDOW_SIZE - self.slow_transfers, 1)
        return min(max(self.windows.total // (16 * fast), MIN_CHUNK), MAX_CHUNK)

    def part(self) -> PartBuffer:
        """Start a part of an upload of unknown length."""
        part = PartBuffer(self)
        self._parts[part] = None
        return part

    def choose_part_size(self, smallest: int) -> int:
        """Return the size for all parts of one upload: the smallest if whole ones may not fit.

        Small parts are sent earlier, so parts that wait for a slow one can be sent and released.
        """
        fit = len(self._parts) * self.part_size <= self.buffers.total
        return self.part_size if fit else smallest

    def replay(self) -> ReplayBuffer:
        """Start the replay buffer of an upload of known length."""
        replay = ReplayBuffer(self)
        self._replays.add(replay)
        return replay

    def reserve(self, size: int) -> "Reservation | None":
        """Reserve memory for a bundle of `size` bytes, or return `None` if it is not free now."""
        if self.buffers.queue or not self._make_room(self._reserved_windows, size):
            return None
        self.buffers.in_use += size
        return Reservation(partial(self._release, self.buffers, size))

    async def grow_part(self, part: PartBuffer, size: int) -> None:
        """Wait for memory for a part, after all that wait already."""
        waiter = _Waiter(lambda: self._take(part, size), part=part)
        await self._wait(self.buffers, waiter, lambda: self._shrink(part, size))

    def try_grow_part(self, part: PartBuffer, size: int) -> bool:
        """Take memory for a part if it is free now."""
        return (not self.buffers.queue or part is self._oldest_part) and self._take(part, size)

    def release_part(self, part: PartBuffer) -> None:
        self._parts.pop(part, None)
        if self._oldest_part in self._part_queue:  # It has become the oldest, and need not wait.
            self._part_queue.move_to_end(self._oldest_part, last=False)
        self._shrink(part, part.size)

    def try_grow_replay(self, replay: ReplayBuffer, size: int) -> bool:
        """Take memory for a replay buffer if nothing else needs it."""
        if fits := not self.buffers.queue and self._fits(self._reserved_windows, size):
            self._grow(replay, size)
        return fits

    def release_replay(self, replay: ReplayBuffer) -> None:
        self._replays.discard(replay)
        self._shrink(replay, replay.size)

    def replay_size(self) -> int:
        """Return the bytes in all replay buffers."""
        return sum(replay.size for replay in self._replays)

    @property
    def _reserved_windows(self) -> int:
        """Bytes that buffers have to leave to windows."""
        return max(self.windows.in_use, self.max_transfers // 4 * WINDOW_SIZE)

    @property
    def _oldest_part(self) -> PartBuffer | None:
        return next(iter(self._parts), None)

    def _take(self, part: PartBuffer, size: int) -> bool:
        reserved = part is self._oldest_part and part.size + size <= self.part_size
        if taken := reserved or self._make_room(self._reserved_windows, size):
            self._grow(part, size)
        return taken

    def _try_window(self, caller: Caller) -> bool:
        needed = self.windows.in_use + WINDOW_SIZE
        if fits := needed <= self.windows.total and self._make_room(needed, 0):
            self.windows.in_use = needed
            self._window_queue.add_window(caller)
        return fits

    def _release_window(self, caller: Caller) -> None:
        self._window_queue.remove_window(caller)
        self._release(self.windows, WINDOW_SIZE)

    def _fits(self, windows: int, size: int) -> bool:
        """Return whether `windows` bytes and `size` more of buffers leave room for one part."""
        oldest = self._oldest_part
        needed = windows + self.buffers.in_use + size + self.part_size
        return needed - (oldest.size if oldest else 0) <= self._total

    def _make_room(self, windows: int, size: int) -> bool:
        """Make this fit by dropping replay buffers, the largest first; return whether it does."""
        if self._fits(windows, size):
            return True
        if not self._fits(windows, size - self.replay_size()):
            return False
        while not self._fits(windows, size):
            largest = max(self._replays, key=lambda replay: replay.size)
            self._replays.discard(largest)
            self.buffers.in_use -= largest.size
            largest.forget()
        return True

    def _grow(self, buffer: PartBuffer | ReplayBuffer, size: int) -> None:
        buffer.size += size
        self.buffers.in_use += size

    def _shrink(self, buffer: PartBuffer | ReplayBuffer, size: int) -> None:
        buffer.size -= size
        self._release(self.buffers, size)

    def _release(self, usage: Usage, size: int) -> None:
        usage.in_use -= size
        self._serve()

    def _serve(self) -> None:
        """Let waiting transfers continue in their order; those that hold a part come first."""
        for usage in (self.buffers, self.windows):
            while usage.queue:
                waiter = usage.queue.first()
                if not waiter.served.done():
                    if not waiter.take():
                        break
                    waiter.served.set_result(None)
                usage.queue.remove(waiter)

    async def _wait(self, usage: Usage, waiter: _Waiter, undo: Callable[[], None]) -> None:
        """Wait until memory is taken; `undo` that if the caller is cancelled at that moment."""
        usage.queue.append(waiter)
        try:
            with timing.measure("budget"):
                async with asyncio.timeout(self.timeout):
                    await waiter.served
        except BaseException as error:
            if waiter.served.done() and not waiter.served.cancelled():
                undo()
            waiter.served.cancel()
            usage.queue.remove(waiter)
            self._serve()
            if isinstance(error, TimeoutError):
                raise Overloaded from error
            raise


class Reservation(AbstractContextManager["Reservation"]):
    """Memory that is held until it is released; also a context manager."""

    def __init__(self, release: Callable[[], None]) -> None:
        self._release: Callable[[], None] | None = release

    def release(self) -> None:
        if self._release is not None:
            release, self._release = self._release, None
            release()

    def __exit__(self, *_: object) -> None:
        self.release()
