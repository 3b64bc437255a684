"""Limits how much of a response aiohttp reads ahead.

Otherwise, aiohttp and uvloop together hold up to 768 KiB of a bundle for each slow client.
The private attributes were checked against aiohttp 3.14.5 and aiobotocore 2.25.1.
"""

import asyncio
from collections.abc import Callable
from functools import partial

import aiohttp
from aiohttp.client_proto import ResponseHandler

from service.bundles.memory import MAX_CHUNK

_READ_AHEAD = 8 * 1024
"""aiohttp stops reading once it holds twice as many bytes."""


def limit_read_ahead(session: aiohttp.ClientSession, read_size: Callable[[], int]) -> None:
    """Let the connections of a session read up to `read_size()` bytes at once, and little ahead."""
    assert session.connector is not None
    session._read_bufsize = _READ_AHEAD  # noqa: SLF001
    session.connector._factory = partial(  # type: ignore[assignment]  # noqa: SLF001
        _Handler, asyncio.get_running_loop(), read_size, memoryview(bytearray(MAX_CHUNK))
    )


class _Handler(ResponseHandler):
    """aiohttp's protocol of one connection. All those of an event loop share the buffer."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        read_size: Callable[[], int],
        shared_buffer: memoryview,
    ) -> None:
        super().__init__(loop)
        self._read_size = read_size
        self._shared_buffer = shared_buffer

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        transport.set_protocol(_BufferedReader(self, self._read_size, self._shared_buffer))


class _BufferedReader(asyncio.BufferedProtocol):
    """Limits read sizes, because uvloop otherwise reads up to 256 KiB."""

    def __init__(
        self, handler: ResponseHandler, read_size: Callable[[], int], buffer: memoryview
    ) -> None:
        self._handler = handler
        self._read_size = read_size
        self._buffer = buffer
        self.connection_lost = handler.connection_lost  # type: ignore[method-assign]
        self.pause_writing = handler.pause_writing  # type: ignore[method-assign]
        self.resume_writing = handler.resume_writing  # type: ignore[method-assign]
        self.eof_received = handler.eof_received  # type: ignore[method-assign]

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002
        return self._buffer[: self._read_size()]

    def buffer_updated(self, nbytes: int) -> None:
        self._handler.data_received(bytes(self._buffer[:nbytes]))
