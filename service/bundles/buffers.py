"""The chunks of a bundle that are kept in memory while they are sent to S3, or to be sent again.

`memory` creates buffers and decides whether they may grow. `upload` and `stream` fill them.
"""

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from typing import Protocol

MAX_REPLAY_SIZE = 8 << 20
"""Bytes of an upload that are kept to be sent to S3 again."""

SMALL_CHUNK = 16 * 1024
"""Smaller chunks are joined to four times this size: each takes memory beside its own bytes."""


class BufferMemory(Protocol):
    """The part of `memory` that buffers use."""

    async def grow_part(self, part: "PartBuffer", size: int) -> None: ...
    def try_grow_part(self, part: "PartBuffer", size: int) -> bool: ...
    def release_part(self, part: "PartBuffer") -> None: ...
    def try_grow_replay(self, replay: "ReplayBuffer", size: int) -> bool: ...
    def release_replay(self, replay: "ReplayBuffer") -> None: ...


class _ChunkBuffer:
    """Chunks of a bundle, `size` bytes in all. Its memory is accounted for by `Memory`."""

    def __init__(self, memory: BufferMemory) -> None:
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
        if not self.try_append(chunk):
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
