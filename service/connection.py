"""One connection: uvicorn's h11 protocol, with a bound on everything that it would wait for.

A request's head has a deadline, a reader has to keep a pace, closing does not wait for ever, and of
what a client sends no more is read than is wanted.
"""

import asyncio
import fcntl
import http
import logging
import socket
import struct
import sys
import termios
from contextlib import suppress
from typing import Any
from uuid import uuid4

import h11
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.h11_impl import H11Protocol

from service.pace import LINGER, Pace
from service.parser import MAX_HEAD, MAX_LINES, TAKING, RequestParser
from service.problems import problem

_log = logging.getLogger(__name__)

HEAD_TIMEOUT = 15.0
"""Seconds that a request's head may take, from the connection or its first byte on."""

WATCH_INTERVAL = 1.0
"""Seconds between two looks at how much a slow reader has taken, at most."""

READ_AHEAD = 16 * 1024
"""Bytes that are read at a time of what is no body that the application asks for."""

LAST_HEAD = 2.0
"""Seconds that a head has which is not at its end when the server shuts down."""

_REFUSALS = {
    "malformed_request": "Send a request that is HTTP/1.1.",
    "uri_too_long": f"Send a request target and headers of at most {MAX_HEAD} bytes.",
    "headers_too_large": f"Send at most {MAX_LINES} header lines and {MAX_HEAD} bytes of headers.",
}
"""Codes and details of the errors that the application never sees, as the request was not read."""


class Inlet(asyncio.BufferedProtocol):
    """Read no more at a time than is wanted: uvloop would take up to 256 KB from everybody.

    `buffer` is for all connections of one event loop: another thread would write over it.
    """

    def __init__(self, protocol: "Protocol", buffer: memoryview) -> None:
        self._protocol = protocol
        self._buffer = buffer
        self.connection_made = protocol.connection_made  # type: ignore[method-assign,assignment]
        self.connection_lost = protocol.connection_lost  # type: ignore[method-assign]
        self.pause_writing = protocol.pause_writing  # type: ignore[method-assign]
        self.resume_writing = protocol.resume_writing  # type: ignore[method-assign]
        self.eof_received = protocol.eof_received  # type: ignore[method-assign]

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002
        wanted = self._protocol.conn.states == TAKING
        return self._buffer if wanted else self._buffer[:READ_AHEAD]

    def buffer_updated(self, nbytes: int) -> None:
        self._protocol.data_received(bytes(self._buffer[:nbytes]))


class Protocol(H11Protocol):
    """One connection, none of whose states lasts for ever."""

    conn: RequestParser
    flow: "_Flow"
    transport: "_Transport"  # type: ignore[assignment]
    _deadline: asyncio.TimerHandle | None = None
    _watch: asyncio.TimerHandle | None = None
    _refused = False

    def __init__(self, *, patience: float, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.patience = patience
        self.conn = RequestParser()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(_Transport(transport, self.patience))  # type: ignore[arg-type]
        self.flow = _Flow(self.transport, self.conn)  # type: ignore[arg-type]
        self._expect_head()
        self._expect_reader()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_is_there()
        self._unwatch()
        self.transport.closed()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        begun = self.conn.their_state is h11.SEND_BODY
        if self.conn.passes(len(data)):
            # Set, not added: uvicorn hands on what is bytes already as it is.
            self.cycle.body = data if not self.cycle.body else self.cycle.body + data  # type: ignore[assignment]
            self.cycle.message_event.set()
        else:
            super().data_received(data)
        waiting = begun and not self.cycle.message_event.is_set()
        if self.conn.their_state is h11.SEND_BODY and not waiting:
            # Take no more before the application asks: uvicorn would hold some for each client.
            # Where it has asked and all that came is half the head of a chunk, it waits still.
            self.flow.pause_reading()
        if self.conn.their_state is not h11.IDLE:
            self._head_is_there()
        elif self._deadline is None:
            self._expect_head()

    def handle_events(self) -> None:
        """Take in what has come, but let others have their turn in between.

        A client can make chunks of a byte each: one read holds so many of them that nothing else
        would happen for half a second.
        """
        self.conn.begin_turn()
        super().handle_events()
        if self.conn.turn_over:
            self.loop.call_soon(self._go_on)

    def _go_on(self) -> None:
        if not self.transport.is_closing():
            self.handle_events()
            self.flow.resume_if_asked()

    def eof_received(self) -> bool:  # type: ignore[override]
        """Let a client that has said all it had to say still have its answer.

        Only after a body: one that ends early, or a reader that hangs up, is not waited for.
        """
        answering = self.cycle is not None and not self.cycle.response_complete
        if not answering or self.cycle.more_body or self.scope["method"] != "POST":
            return False
        self.cycle.keep_alive = False
        return True

    def pause_writing(self) -> None:
        super().pause_writing()
        self._paused_at = self.loop.time()
        self._watch_reader()

    def resume_writing(self) -> None:
        self._unwatch()
        self._note_reading()
        super().resume_writing()

    def on_response_complete(self) -> None:
        self._expect_reader()
        if self.conn.our_state is h11.DONE and self.conn.their_state is h11.DONE:
            # An idle connection is kept for long: it need not keep its last request, too.
            self.cycle = self.scope = self.headers = None  # type: ignore[assignment]
        super().on_response_complete()
        if self.conn.their_state in (h11.IDLE, h11.DONE):
            self.flow.resume_reading()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002
        """Answer a request that h11 refused, unless another answer is under way."""
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            self._refuse(self.conn.refusal)
        else:
            self.transport.close()

    def _refuse(self, code: str) -> None:
        """Send a problem, and drop what the client still sends for at most `LINGER` seconds.

        To close a socket with unread data makes the kernel reset the connection, and the client may
        lose the answer.
        """
        self._refused = True
        request_id = uuid4().hex
        answer = problem(
            code,
            _REFUSALS[code],
            # The settings' origins are not known here, and this holds nothing to protect.
            {"Access-Control-Allow-Origin": "*", "X-Request-Id": request_id},
        )
        _log.info(
            "refused a request that could not be read: %d %s",
            *(answer.status_code, code),
            extra={"fields": {"request_id": request_id, "status": answer.status_code}},
        )
        head = h11.Response(
            status_code=answer.status_code,
            headers=[*answer.raw_headers, (b"connection", b"close")],
            reason=http.HTTPStatus(answer.status_code).phrase,
        )
        for event in (head, h11.Data(data=bytes(answer.body)), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.write_eof()
        self.transport.resume_reading()
        self.loop.call_later(LINGER, self.transport.close)

    def shutdown(self) -> None:
        """Close an idle connection; who has begun a head may end it."""
        if self.conn.their_state is h11.IDLE and self.conn.trailing_data[0]:
            self._head_is_there()
            self._expect_head(LAST_HEAD)
        else:
            super().shutdown()

    def _should_upgrade(self) -> bool:
        """Never, and without a word in the log: a request with `Upgrade` is one without it."""
        return False

    def _expect_head(self, timeout: float | None = None) -> None:
        self._deadline = self.loop.call_later(timeout or HEAD_TIMEOUT, self.transport.abort)

    def _head_is_there(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _expect_reader(self) -> None:
        """Measure a new answer's reader."""
        self._pace = Pace(self.patience)
        self._taken = self.transport.taken

    def _watch_reader(self) -> None:
        """While there is more to send than is taken: drop a reader that is too slow."""
        self._note_reading()
        if self._pace.left <= 0:
            self.transport.abort()
        else:
            interval = min(self._pace.left, WATCH_INTERVAL)
            self._watch = self.loop.call_later(interval, self._watch_reader)

    def _unwatch(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None

    def _note_reading(self) -> None:
        now, taken = self.loop.time(), self.transport.taken
        self._pace.waited(now - self._paused_at, taken - self._taken)
        self._paused_at, self._taken = now, taken


class _Flow(FlowControl):
    """Reads no further while some of what has come is still to be taken in.

    That is a request that waits for its turn, or a body that does. uvicorn reads on whenever the
    application asks for more of a request, also one that is at its end; a client that sends
    requests ahead would fill the memory with them.
    """

    def __init__(self, transport: asyncio.Transport, conn: RequestParser) -> None:
        super().__init__(transport)
        self._conn = conn
        self._asked = False

    def resume_reading(self) -> None:
        self._asked = self._conn.turn_over
        ahead = self._conn.their_state is h11.DONE and self._conn.trailing_data[0]
        if not self._asked and not ahead:
            super().resume_reading()

    def resume_if_asked(self) -> None:
        """Resume what a turn that is over by now held up."""
        if self._asked:
            self.resume_reading()


class _Transport:
    """A transport that knows what the client took, and whose `close` does not wait for ever."""

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
    def taken(self) -> int:
        """Bytes that have reached the client's machine, as far as this one can tell."""
        return self._written - self._transport.get_write_buffer_size() - self._unacknowledged()

    def close(self) -> None:
        self._transport.close()
        if self._deadline is None:
            loop = asyncio.get_running_loop()
            self._deadline = loop.call_later(self._timeout, self.abort)

    def abort(self) -> None:
        """Reset the connection: after a mere close, the kernel would go on sending what it has."""
        with suppress(OSError, ValueError):
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._transport.abort()

    def closed(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()

    def _unacknowledged(self) -> int:
        """Bytes in the kernel's send queue; 0 where it does not say."""
        try:
            queued = fcntl.ioctl(self._socket.fileno(), termios.TIOCOUTQ, bytes(4))
        except (OSError, ValueError):
            return 0
        return int.from_bytes(queued, sys.byteorder)
