"""What uvicorn lacks on a connection: flow control of reads, and a transport with a deadline.

`ReadFlowControl` decides when to read on. `MeasuredTransport` wraps the transport: it knows how
much the client has received, and resets the connection if closing takes too long. Only
`connection` uses them, in place of uvicorn's flow control and the event loop's transport.
"""

import asyncio
import fcntl
import socket
import struct
import sys
import termios
from contextlib import suppress
from typing import Any

import h11
from uvicorn.protocols.http.flow_control import FlowControl

from service.http.server.parser import RequestParser


class ReadFlowControl(FlowControl):
    """Does not resume reading while data that has arrived waits to be processed.

    That data is a pipelined request that waits for its turn, or a part of a body. uvicorn resumes
    reading whenever the application calls `receive`, even after the end of the request's body. A
    client that sends requests ahead of the responses could then fill the memory.
    """

    def __init__(self, transport: asyncio.Transport, conn: RequestParser) -> None:
        super().__init__(transport)
        self._conn = conn
        self._resume_later = False

    def resume_reading(self) -> None:
        self._resume_later = self._conn.turn_over
        pipelined = self._conn.their_state is h11.DONE and self._conn.trailing_data[0]
        if not self._resume_later and not pipelined:
            super().resume_reading()

    def resume_after_turn(self) -> None:
        """Resume reading if it was requested during the turn that is over now."""
        if self._resume_later:
            self.resume_reading()


class MeasuredTransport:
    """A transport that knows how much the client has received, and closes within `timeout`."""

    def __init__(self, transport: asyncio.Transport, timeout: float) -> None:
        self._transport = transport
        self._timeout = timeout
        self._socket = transport.get_extra_info("socket")
        self._written = 0
        self._deadline: asyncio.TimerHandle | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        self._written += len(data)
        self._transport.write(data)

    @property
    def received(self) -> int:
        """Bytes that the client's machine has acknowledged, as far as the kernel tells."""
        return self._written - self._transport.get_write_buffer_size() - self._unacknowledged()

    def close(self) -> None:
        self._transport.close()
        if self._deadline is None:
            loop = asyncio.get_running_loop()
            self._deadline = loop.call_later(self._timeout, self.abort)

    def abort(self) -> None:
        """Reset the connection. After a plain close, the kernel would still send its buffer."""
        with suppress(OSError, ValueError):
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._transport.abort()

    def connection_lost(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()

    def _unacknowledged(self) -> int:
        """Bytes in the kernel's send queue; 0 if the kernel does not tell."""
        try:
            queued = fcntl.ioctl(self._socket.fileno(), termios.TIOCOUTQ, bytes(4))
        except (OSError, ValueError):
            return 0
        return int.from_bytes(queued, sys.byteorder)
