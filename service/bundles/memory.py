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
3. A transfer waits if it cannot get a window or grow its part, first come, first served, and reads
   nothing from its client. After the queue timeout, it fails with `Overloaded`.
4. A replay buffer only uses memory that nothing else needs. If a window or another buffer needs
   it, and dropping replay buffers is enough, they are dropped at once, the largest first.
5. The oldest part buffer can grow to a whole part without waiting, because windows and all other
   buffers leave that much free. So at least one upload can complete its part and release it.
6. Buffers leave a quarter of the windows free, so that new transfers can start.
7. A transfer holds up to four chunks. While there are few transfers, they use large chunks, which
   take less CPU time. Transfers that wait for a slow client have small chunks and do not count.
   Together, chunks take at most 1.5 times the memory for windows.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, suppress
from functools import partial

from service.errors import Overloaded
from service.telemetry import timing

WINDOW_SIZE = 128 * 1024
"""Bytes that every transfer may hold without a buffer."""

MIN_CHUNK, MAX_CHUNK = 16 * 1024, 1 << 20
"""Bytes that a transfer reads at once while there are many transfers, and while there are few."""

MAX_REPLAY_SIZE = 8 << 20
"""Bytes of an upload that are kept to be sent to S3 again."""

SMALL_CHUNK = 16 * 1024
"""Smaller chunks are joined to four times this size: each takes memory beside its own bytes."""


class Usage:
    """One use of the memory: its limit, the bytes in use, and the transfers that wait for it."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.in_use = 0
        self.queue: deque[_Waiter] = deque()

    @property
    def waiting(self) -> int:
        """The number of transfers that wait."""
        return len(self.queue)


class _Waiter:
    """A transfer that waits for memory until `take` succeeds, maybe for a `part`."""

    def __init__(self, take: Callable[[], bool], part: "PartBuffer | None") -> None:
        self.take = take
        self.part = part
        self.turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()


class Memory:
    """The memory of this process: `total` bytes, at least two parts. `timeout` is in seconds."""

    def __init__(self, total: int, *, part_size: int, timeout: float) -> None:
        self.max_transfers = min(total // 2, total - part_size) // WINDOW_SIZE
        self.windows = Usage(self.max_transfers * WINDOW_SIZE)
        self.buffers = Usage(total - self.max_transfers // 4 * WINDOW_SIZE)
        self.part_size = part_size
        self._total = total
        self._timeout = timeout
        self.slow_transfers = 0  # Those that wait for a slow client. Their chunks are small.
        self._parts: dict[PartBuffer, None] = {}  # In the order of their creation.
        self._replays: set[ReplayBuffer] = set()

    async def window(self) -> "Reservation":
        """Take a window, after all earlier callers."""
        release = partial(self._release, self.windows, WINDOW_SIZE)
        if self.windows.queue or not self._try_window():
            await self._wait(self.windows, _Waiter(self._try_window, None), release)
        return Reservation(release)

    def chunk_size(self) -> int:
        """Return how many bytes a transfer should read at once, at most."""
        transfers = max(self.windows.in_use // WINDOW_SIZE, 1)
        share = max(transfers, 8 * (transfers - self.slow_transfers))
        return min(max(self.windows.total // share, MIN_CHUNK), MAX_CHUNK)

    def part(self) -> "PartBuffer":
        """Start a part of an upload of unknown length."""
        part = PartBuffer(self)
        self._parts[part] = None
        return part

    def replay(self) -> "ReplayBuffer":
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

    async def grow_part(self, part: "PartBuffer", size: int) -> None:
        """Take memory for a part, after all earlier callers unless it is the oldest part."""
        if not self.try_grow_part(part, size):
            waiter = _Waiter(lambda: self._take(part, size), part)
            await self._wait(self.buffers, waiter, lambda: self._shrink(part, size))

    def try_grow_part(self, part: "PartBuffer", size: int) -> bool:
        """Take memory for a part if it is free now."""
        return (not self.buffers.queue or part is self._oldest_part) and self._take(part, size)

    def release_part(self, part: "PartBuffer") -> None:
        self._parts.pop(part, None)
        oldest = self._oldest_part  # It has become the oldest now, and does not wait any longer.
        self.buffers.queue = deque(sorted(self.buffers.queue, key=lambda w: w.part is not oldest))
        self._shrink(part, part.size)

    def try_grow_replay(self, replay: "ReplayBuffer", size: int) -> bool:
        """Take memory for a replay buffer if nothing else needs it."""
        if fits := not self.buffers.queue and self._fits(self._reserved_windows, size):
            self._grow(replay, size)
        return fits

    def release_replay(self, replay: "ReplayBuffer") -> None:
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
    def _oldest_part(self) -> "PartBuffer | None":
        return next(iter(self._parts), None)

    def _take(self, part: "PartBuffer", size: int) -> bool:
        reserved = part is self._oldest_part and part.size + size <= self.part_size
        if taken := reserved or self._make_room(self._reserved_windows, size):
            self._grow(part, size)
        return taken

    def _try_window(self) -> bool:
        needed = self.windows.in_use + WINDOW_SIZE
        if fits := needed <= self.windows.total and self._make_room(needed, 0):
            self.windows.in_use = needed
        return fits

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

    def _grow(self, buffer: "_ChunkBuffer", size: int) -> None:
        buffer.size += size
        self.buffers.in_use += size

    def _shrink(self, buffer: "_ChunkBuffer", size: int) -> None:
        buffer.size -= size
        self._release(self.buffers, size)

    def _release(self, usage: Usage, size: int) -> None:
        usage.in_use -= size
        self._serve()

    def _serve(self) -> None:
        """Let waiting transfers continue in their order; those that hold a part come first."""
        for usage in (self.buffers, self.windows):
            while usage.queue:
                waiter = usage.queue[0]
                if not waiter.turn.done():
                    if not waiter.take():
                        break
                    waiter.turn.set_result(None)
                usage.queue.popleft()

    async def _wait(self, usage: Usage, waiter: _Waiter, undo: Callable[[], None]) -> None:
        """Wait until memory is taken; `undo` that if the caller is cancelled at that moment."""
        usage.queue.append(waiter)
        try:
            with timing.measure("budget"):
                async with asyncio.timeout(self._timeout):
                    await waiter.turn
        except BaseException as error:
            if waiter.turn.done() and not waiter.turn.cancelled():
                undo()
            waiter.turn.cancel()
            with suppress(ValueError):
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


class _ChunkBuffer:
    """Chunks of a bundle, `size` bytes in all. Its memory is accounted for by `Memory`."""

    def __init__(self, memory: Memory) -> None:
        self.size = 0
        self._memory = memory
        self._chunks: list[bytes | bytearray] = []

    def __iter__(self) -> Iterator[bytes | bytearray]:
        return iter(self._chunks)

    def _add(self, chunk: bytes) -> None:
        """Add a chunk; small ones are joined."""
        last = self._chunks[-1] if self._chunks else b""
        if isinstance(last, bytearray) and len(last) + len(chunk) <= 4 * SMALL_CHUNK:
            with suppress(BufferError):  # A connection to S3 is sending it.
                last += chunk
                return
        self._chunks.append(bytearray(chunk) if len(chunk) < SMALL_CHUNK else chunk)


class PartBuffer(_ChunkBuffer):
    """One part of an upload of unknown length, while it fills and while it is sent."""

    async def append(self, chunk: bytes) -> None:
        """Add a chunk, after waiting for memory. Raises `Overloaded`."""
        await self._memory.grow_part(self, len(chunk))
        self._add(chunk)

    def try_append(self, chunk: bytes) -> bool:
        """Add a chunk if memory for it is free now."""
        if grown := self._memory.try_grow_part(self, len(chunk)):
            self._add(chunk)
        return grown

    async def __aiter__(self) -> AsyncIterator[bytes | bytearray]:
        for chunk in self._chunks:
            yield chunk

    def rewind(self) -> None:
        """A part can always be sent again."""

    def on_arrival(self, callback: Callable[[int], None]) -> None:
        """A part is sent only after all of it has arrived."""
        callback(self.size)

    def release(self) -> None:
        self._chunks.clear()
        self._memory.release_part(self)


class ReplayBuffer(_ChunkBuffer):
    """What an upload of known length has sent to S3 so far, as long as it is `complete`."""

    complete = True

    def append(self, chunk: bytes) -> None:
        """Add a chunk, or give the buffer up if it is too large or memory is short."""
        if not self.complete:
            return
        if self.size + len(chunk) > MAX_REPLAY_SIZE or not self._memory.try_grow_replay(
            self, len(chunk)
        ):
            self.release()
        else:
            self._add(chunk)

    def forget(self) -> None:
        """Drop the chunks, after `Memory` has taken back what they held."""
        self.complete = False
        self.size = 0
        self._chunks.clear()

    def release(self) -> None:
        self._memory.release_replay(self)
        self.forget()
