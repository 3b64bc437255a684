"""Limits how much of a response aiohttp reads ahead.

Otherwise, aiohttp and uvloop together hold up to 768 KiB of a bundle for each slow client.
The private attributes were checked against aiohttp 3.14.5 and aiobotocore 2.25.1.
"""

import asyncio
from functools import partial
from typing import Protocol

import aiohttp
from aiohttp.client_proto import ResponseHandler

from service.bundles.memory import MAX_CHUNK

_READ_AHEAD = 8 * 1024
"""aiohttp stops reading once it holds twice as many bytes."""

SLOW_AFTER = 0.25
"""Seconds for which nothing is read, after which the client of a download counts as slow."""


SLOW_READ = 32 * 1024
"""Bytes to read at once for a slow client: just enough to let aiohttp pause."""

SMALL_READS = 8
"""Reads of `SLOW_READ` bytes for a slow client, before it may be fast again."""


class ReadMemory(Protocol):
    """The part of `bundles.memory` that limits reads."""

    slow_transfers: int

    def chunk_size(self) -> int: ...


def limit_read_ahead(session: aiohttp.ClientSession, memory: ReadMemory) -> None:
    """Let the connections of a session read one chunk at once, and little ahead."""
    assert session.connector is not None
    session._read_bufsize = _READ_AHEAD  # noqa: SLF001
    session.connector._factory = partial(  # type: ignore[assignment]  # noqa: SLF001
        _Handler, asyncio.get_running_loop(), memory, memoryview(bytearray(MAX_CHUNK))
    )


class _Handler(ResponseHandler):
    """aiohttp's protocol of one connection. All those of an event loop share the buffer.

    aiohttp pauses reading while the client has not taken the last chunk. A slow client takes
    seconds for that. Its chunks are small, so that those of others can be large. It only counts as
    slow while it holds no large chunks from before.
    """

    _pause: asyncio.TimerHandle | None = None
    _slow = False

    def __init__(
        self, loop: asyncio.AbstractEventLoop, memory: ReadMemory, shared_buffer: memoryview
    ) -> None:
        super().__init__(loop)
        self._memory = memory
        self._shared_buffer = shared_buffer
        self._small_reads = 0  # How many more reads are small, because the client was slow.
        self._held = 0, 0  # The sizes of the last two reads: what the client takes, and what waits.

    @property
    def read_size(self) -> int:
        """Bytes to read at once."""
        return SLOW_READ if self._small_reads else self._memory.chunk_size()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        transport.set_protocol(_BufferedReader(self, self._shared_buffer))

    def connection_lost(self, exc: BaseException | None) -> None:
        self._end_pause()
        super().connection_lost(exc)

    def pause_reading(self) -> None:
        super().pause_reading()
        if self._pause is None:
            self._pause = self._loop.call_later(SLOW_AFTER, self._become_slow)

    def resume_reading(self, resume_parser: bool = True) -> None:  # noqa: FBT001, FBT002
        self._end_pause()
        was_paused = self._reading_paused
        super().resume_reading(resume_parser)
        if was_paused and self._payload is not None and self._payload.is_eof():
            # The last chunk had been paused, so the connection is free now. aiohttp has still
            # started its read timeout, which would end a later request on this connection.
            self._drop_timeout()

    def record_read(self, size: int) -> None:
        self._held = self._held[1], size
        self._small_reads = max(self._small_reads - 1, 0)

    def _become_slow(self) -> None:
        self._small_reads = SMALL_READS
        self._slow = max(self._held) <= SLOW_READ
        self._memory.slow_transfers += self._slow

    def _end_pause(self) -> None:
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None
            self._memory.slow_transfers -= self._slow
            self._slow = False


class _BufferedReader(asyncio.BufferedProtocol):
    """Limits read sizes, because uvloop otherwise reads up to 256 KiB."""

    def __init__(self, handler: _Handler, buffer: memoryview) -> None:
        self._handler = handler
        self._buffer = buffer
        self.connection_lost = handler.connection_lost  # type: ignore[method-assign]
        self.pause_writing = handler.pause_writing  # type: ignore[method-assign]
        self.resume_writing = handler.resume_writing  # type: ignore[method-assign]
        self.eof_received = handler.eof_received  # type: ignore[method-assign]

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002
        return self._buffer[: self._handler.read_size]

    def buffer_updated(self, nbytes: int) -> None:
        self._handler.record_read(nbytes)
        self._handler.data_received(bytes(self._buffer[:nbytes]))
