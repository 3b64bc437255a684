"""One connection: uvicorn's h11 protocol, with a timeout for everything that it waits for.

There is a deadline for each request's head, a minimum rate for reading a response, and a timeout
for closing. Reads are no larger than what the application asks for. `server` creates one
`Connection` for each client.
"""

import asyncio
import http
import logging
from typing import Any
from uuid import uuid4

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from service.http.problems import problem
from service.http.server.parser import (
    MAX_HEAD_LINES,
    MAX_HEAD_SIZE,
    RequestParser,
)
from service.http.server.transport import MeasuredTransport, ReadFlowControl
from service.http.slow_clients import DISCARD_TIMEOUT, ClientRate

_log = logging.getLogger(__name__)

HEAD_TIMEOUT = 15.0
"""Seconds for a request's head, from the start of the connection or of a later head."""

LAST_HEAD_TIMEOUT = 2.0
"""Seconds to complete a head that is incomplete when the server shuts down."""

RATE_CHECK_INTERVAL = 1.0
"""The longest time between two checks of a slow client's download, in seconds."""

JOIN_DELAY = 0.005
"""Seconds for which bytes of a body wait for more, unless there is already a quarter of a chunk."""

_DETAILS = {
    "malformed_request": (
        "The server cannot read the request as HTTP/1.1: send a valid HTTP/1.1 request."
    ),
    "uri_too_long": (
        f"The request target is too long: send a target and headers of at most {MAX_HEAD_SIZE} "
        "bytes together."
    ),
    "headers_too_large": (
        f"The headers of the request are too large: send at most {MAX_HEAD_LINES} header lines and "
        f"{MAX_HEAD_SIZE} bytes of headers."
    ),
}
"""Errors of requests that could not be parsed, which the application therefore never sees."""


class BufferedReader(asyncio.BufferedProtocol):
    """Limits read sizes.

    uvloop otherwise reads up to 256 KiB per connection, whether or not the application wants it.
    All connections of one event loop share `buffer`; connections of another one must not use it.
    """

    def __init__(self, connection: "Connection", buffer: memoryview) -> None:
        self._connection = connection
        self._buffer = buffer
        self.connection_made = connection.connection_made  # type: ignore[method-assign,assignment]
        self.connection_lost = connection.connection_lost  # type: ignore[method-assign]
        self.pause_writing = connection.pause_writing  # type: ignore[method-assign]
        self.resume_writing = connection.resume_writing  # type: ignore[method-assign]
        self.eof_received = connection.eof_received  # type: ignore[method-assign]

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002
        return self._buffer[: self._connection.read_size]

    def buffer_updated(self, nbytes: int) -> None:
        self._connection.data_received(bytes(self._buffer[:nbytes]))


class Connection(H11Protocol):
    """uvicorn's protocol for one connection, in which every state has a timeout."""

    conn: RequestParser
    flow: ReadFlowControl
    transport: MeasuredTransport  # type: ignore[assignment]
    _head_timer: asyncio.TimerHandle | None = None
    _rate_timer: asyncio.TimerHandle | None = None
    _join_timer: asyncio.TimerHandle | None = None
    _rejected = False

    def __init__(self, *, read_timeout: float, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._joined: list[bytes] = []
        self._joined_size = 0
        self.read_timeout = read_timeout
        self.conn = RequestParser()

    @property
    def read_size(self) -> int:
        """Bytes to read at once."""
        return self.conn.read_size(self.app_state["memory"].chunk_size())

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        # Otherwise the next chunk is written while most of the last one is still in memory.
        transport.set_write_buffer_limits(high=0)
        super().connection_made(MeasuredTransport(transport, self.read_timeout))  # type: ignore[arg-type]
        self.flow = ReadFlowControl(self.transport, self.conn)  # type: ignore[arg-type]
        self._start_head_timer()
        self._start_rate()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_head_timer()
        self._stop_join_timer()
        self._stop_rate_timer()
        self.transport.connection_lost()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._rejected:
            return
        in_body = self.conn.their_state is h11.SEND_BODY
        if self.conn.skip_body(len(data)):
            self._join(data)
        else:
            super().data_received(data)
        # The application has asked for data, but only half the head of a chunk has arrived.
        app_waits = in_body and not self.cycle.message_event.is_set()
        if self.conn.their_state is h11.SEND_BODY and not app_waits:
            # uvicorn would read ahead and buffer data for each client.
            self.flow.pause_reading()
        if self.conn.their_state is not h11.IDLE:
            self._stop_head_timer()
        elif self._head_timer is None:
            self._start_head_timer()

    def _join(self, data: bytes) -> None:
        """Pass bytes of a body to the application, together with those that arrive soon.

        On the way, a body is divided into small packets. Passing each of them on would take 0.2 ms.
        """
        self._joined.append(data)
        self._joined_size += len(data)
        enough = self.app_state["memory"].chunk_size() // 4
        if self._joined_size >= enough or self.conn.body_has_ended:
            self._pass_body_on()
        elif self._join_timer is None:
            self._join_timer = self.loop.call_later(JOIN_DELAY, self._end_join)

    def _end_join(self) -> None:
        if not self.transport.is_closing():
            self._pass_body_on()

    def _pass_body_on(self) -> None:
        self._stop_join_timer()
        data = self._joined[0] if len(self._joined) == 1 else b"".join(self._joined)
        self._joined, self._joined_size = [], 0
        # Assigned, not appended: uvicorn would copy the bytes into a bytearray.
        self.cycle.body = data if not self.cycle.body else self.cycle.body + data  # type: ignore[assignment]
        self.cycle.message_event.set()
        self.handle_events()  # Maybe the body has ended.
        if self.conn.their_state is h11.SEND_BODY:
            self.flow.pause_reading()

    def _stop_join_timer(self) -> None:
        if self._join_timer is not None:
            self._join_timer.cancel()
            self._join_timer = None

    def handle_events(self) -> None:
        """Process what has arrived, but give other connections a turn in between.

        A client can send chunks of one byte. A single read holds so many of them that processing
        them all would block the event loop for half a second.
        """
        self.conn.begin_turn()
        super().handle_events()
        if self.conn.turn_over:
            self.loop.call_soon(self._next_turn)

    def _next_turn(self) -> None:
        if not self.transport.is_closing():
            self.handle_events()
            self.flow.resume_after_turn()

    def eof_received(self) -> bool:  # type: ignore[override]
        """Keep the connection open for the response if the client has only closed its own side.

        This applies only after a complete POST. A client that closes its side in the middle of a
        body, or during a download, counts as disconnected.
        """
        responding = self.cycle is not None and not self.cycle.response_complete
        if not responding or self.cycle.more_body or self.scope["method"] != "POST":
            return False
        self.cycle.keep_alive = False
        return True

    def pause_writing(self) -> None:
        super().pause_writing()
        self._paused_at = self.loop.time()
        self._check_rate()

    def resume_writing(self) -> None:
        self._stop_rate_timer()
        self._record_rate()
        super().resume_writing()

    def on_response_complete(self) -> None:
        self._start_rate()
        if self.conn.our_state is h11.DONE and self.conn.their_state is h11.DONE:
            # Idle connections are kept for long, and should not keep their last request in memory.
            self.cycle = self.scope = self.headers = None  # type: ignore[assignment]
        super().on_response_complete()
        if self.conn.their_state in (h11.IDLE, h11.DONE):
            self.flow.resume_reading()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002
        """Answer a request that h11 rejected, unless another response has started."""
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            self._reject(self.conn.error_code)
        else:
            self.transport.close()

    def _reject(self, code: str) -> None:
        """Send a problem, then drop what the client still sends for `DISCARD_TIMEOUT` seconds.

        If a socket is closed while it has unread data, the kernel resets the connection, and the
        client may lose the response.
        """
        self._rejected = True
        request_id = uuid4().hex
        response = problem(
            code,
            _DETAILS[code],
            # The allowed origins are not known here, and this response contains no secret.
            {"Access-Control-Allow-Origin": "*", "X-Request-Id": request_id},
        )
        _log.info(
            "rejected a request that could not be parsed: %d %s",
            *(response.status_code, code),
            extra={"fields": {"request_id": request_id, "status": response.status_code}},
        )
        head = h11.Response(
            status_code=response.status_code,
            headers=[*response.raw_headers, (b"connection", b"close")],
            reason=http.HTTPStatus(response.status_code).phrase,
        )
        for event in (head, h11.Data(data=bytes(response.body)), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.write_eof()
        self.transport.resume_reading()
        self.loop.call_later(DISCARD_TIMEOUT, self.transport.close)

    def shutdown(self) -> None:
        """Close an idle connection; a client that has sent part of a head may complete it."""
        if self.conn.their_state is h11.IDLE and self.conn.trailing_data[0]:
            self._stop_head_timer()
            self._start_head_timer(LAST_HEAD_TIMEOUT)
        else:
            super().shutdown()

    def _should_upgrade(self) -> bool:
        """Ignore `Upgrade` headers. uvicorn would log a warning for each of them."""
        return False

    def _start_head_timer(self, timeout: float | None = None) -> None:
        self._head_timer = self.loop.call_later(timeout or HEAD_TIMEOUT, self.transport.abort)

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _start_rate(self) -> None:
        """Start measuring how fast the client receives the next response."""
        self._rate = ClientRate(self.read_timeout)
        self._received = self.transport.received

    def _check_rate(self) -> None:
        """Reset the connection if its client receives too slowly, or else check again later."""
        self._record_rate()
        if self._rate.time_left <= 0:
            self.transport.abort()
        else:
            interval = min(self._rate.time_left, RATE_CHECK_INTERVAL)
            self._rate_timer = self.loop.call_later(interval, self._check_rate)

    def _stop_rate_timer(self) -> None:
        if self._rate_timer is not None:
            self._rate_timer.cancel()
            self._rate_timer = None

    def _record_rate(self) -> None:
        now, received = self.loop.time(), self.transport.received
        self._rate.record(now - self._paused_at, received - self._received)
        self._paused_at, self._received = now, received
