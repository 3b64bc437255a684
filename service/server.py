"""uvicorn on a socket of ours, with what it lacks: draining, and a bound on every wait.

uvicorn runs with h11. httptools loses the body of a POST that carries `Upgrade: h2c`, which JDK's
client sends, takes endless heads, and merges trailers into headers.
"""

import asyncio
import fcntl
import math
import socket
import struct
import sys
import termios
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from types import FrameType
from typing import Any

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.h11_impl import H11Protocol

from service.errors import AddressInUse
from service.pace import Pace
from service.readiness import Drain

KEEP_ALIVE = 75
"""Seconds that an idle connection is kept: longer than load balancers keep theirs (60)."""

HEAD_TIMEOUT = 15.0
"""Seconds that a request's head may take, from the connection or its first byte on."""

WATCH_INTERVAL = 1.0
"""Seconds between two looks at how much a slow reader has taken, at most."""

TURN = 100
"""Chunks of a body that are taken in before others have their turn: each takes 13 µs."""

LAST_CALL = 0.5
"""Seconds after the listener has closed in which a request is still taken on."""

READ_AHEAD = 16 * 1024
"""Bytes that are read at a time of what is no body that the application asks for."""


def listen(host: str, port: int) -> socket.socket:
    """Bind a TCP socket, port 0 for any free one. `AddressInUse` says what stands in the way."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server(
            (host, port), family=family, backlog=2048, dualstack_ipv6=host == "::"
        )
    except OSError as error:
        reason = error.strerror or error
        raise AddressInUse(
            f"Cannot listen on {host} port {port} ({reason}): "
            "set HISTORY_HOST and HISTORY_PORT to a free address, or HISTORY_PORT=0 for any port."
        ) from error
    if hasattr(socket, "TCP_NOTSENT_LOWAT"):
        # A slow reader is then seen to take bytes as it does, not a whole send buffer at a time.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, 128 * 1024)
    return listener


def url(listener: socket.socket) -> str:
    """Where a client on this machine reaches it."""
    host, port = listener.getsockname()[:2]
    if host in {"0.0.0.0", "127.0.0.1", "::", "::1"}:
        host = "localhost"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class Server(uvicorn.Server):
    """Serve `app` on `listener` until SIGTERM or SIGINT; `ready` is called once it answers.

    Then `drain` says so, but work is taken on for `drain_delay` more, until load balancers have
    noticed. Running requests get `drain_timeout`; a second signal ends at once. `read_timeout` is
    what a client may take over a byte of its answer. All in seconds.
    """

    def __init__(  # noqa: PLR0913 - the settings, each by its name
        self,
        app: ASGIApp,
        listener: socket.socket,
        drain: Drain,
        *,
        drain_delay: float,
        drain_timeout: int,
        read_timeout: float,
        ready: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=self._connection,  # type: ignore[arg-type]
                loop="uvloop",
                ws="none",
                lifespan="on",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_keep_alive=KEEP_ALIVE,
                timeout_graceful_shutdown=drain_timeout,
            )
        )
        self._listener = listener
        self._patience = read_timeout
        self._ready = ready
        self._drain = drain
        self._drain_delay = drain_delay
        self._drained_at = math.inf
        self._accepting: list[asyncio.Task[Any]] = []

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        super().run(sockets or [self._listener])

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002
        """Begin to drain, or end at once when told a second time; the exit code stays 0.

        uvicorn would raise the signal again after it has closed everything.
        """
        if self._drain.begun:
            self.force_exit = self.should_exit = True
        self._drain.begun = True
        self._drained_at = min(self._drained_at, time.monotonic() + self._drain_delay)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close the listener, but still serve whoever had reached it; then end as uvicorn does."""
        if self._drain_delay and not self.force_exit:
            self._accept_waiting()
            for server in self.servers:
                server.close()
            await asyncio.sleep(LAST_CALL)
        self._drain.refusing = True
        await super().shutdown(sockets)

    def _accept_waiting(self) -> None:
        """Take the connections of the backlog, which the kernel would reset."""
        loop = asyncio.get_running_loop()
        accepted = partial(
            self._connection,
            config=self.config,
            server_state=self.server_state,
            app_state=self.lifespan.state,
        )
        with suppress(BlockingIOError):
            while True:
                connection, _ = self._listener.accept()
                self._accepting.append(
                    loop.create_task(loop.connect_accepted_socket(accepted, connection))
                )

    def _connection(self, **arguments: Any) -> "_Inlet":
        return _Inlet(_Protocol(**arguments, patience=self._patience))

    async def on_tick(self, counter: int) -> bool:
        ending = await super().on_tick(counter) or time.monotonic() >= self._drained_at
        self._drain.begun = self._drain.begun or ending
        return ending


class _Inlet(asyncio.BufferedProtocol):
    """Read no more at a time than is wanted: uvloop would take up to 256 KB from everybody."""

    _buffer = memoryview(bytearray(256 * 1024))
    """Shared by all connections, as what is read is taken out of it at once."""

    def __init__(self, protocol: "_Protocol") -> None:
        self._protocol = protocol
        self.connection_made = protocol.connection_made  # type: ignore[method-assign,assignment]
        self.connection_lost = protocol.connection_lost  # type: ignore[method-assign]
        self.pause_writing = protocol.pause_writing  # type: ignore[method-assign]
        self.resume_writing = protocol.resume_writing  # type: ignore[method-assign]
        self.eof_received = protocol.eof_received  # type: ignore[method-assign]

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002
        conn = self._protocol.conn
        wanted = conn.their_state is h11.SEND_BODY and conn.our_state is h11.SEND_RESPONSE
        return self._buffer if wanted else self._buffer[:READ_AHEAD]

    def buffer_updated(self, nbytes: int) -> None:
        self._protocol.data_received(bytes(self._buffer[:nbytes]))


class _Protocol(H11Protocol):
    """One connection, none of whose states lasts for ever."""

    conn: "_Connection"
    flow: "_Flow"
    transport: "_Transport"  # type: ignore[assignment]
    _deadline: asyncio.TimerHandle | None = None
    _watch: asyncio.TimerHandle | None = None

    def __init__(self, *, patience: float, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.patience = patience
        self.conn = _Connection(h11.SERVER)

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
        begun = self.conn.their_state is h11.SEND_BODY
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
        super().on_response_complete()
        if self.conn.their_state in (h11.IDLE, h11.DONE):
            self.flow.resume_reading()

    def send_400_response(self, msg: str) -> None:
        """Answer what is not HTTP, unless an answer is under way; the request is at its end."""
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            super().send_400_response(msg)
        else:
            self.transport.close()

    def shutdown(self) -> None:
        """Close an idle connection; who has begun a head is still answered."""
        if self.conn.their_state is not h11.IDLE or not self.conn.trailing_data[0]:
            super().shutdown()

    def _should_upgrade(self) -> bool:
        """Never, and without a word in the log: a request with `Upgrade` is one without it."""
        return False

    def _expect_head(self) -> None:
        self._deadline = self.loop.call_later(HEAD_TIMEOUT, self.transport.abort)

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


class _Connection(h11.Connection):
    """h11's state machine, which has nothing more for now where a turn is over."""

    _left = TURN

    def begin_turn(self) -> None:
        self._left = TURN

    @property
    def turn_over(self) -> bool:
        return not self._left

    def next_event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        if self.turn_over:
            return h11.NEED_DATA
        event = super().next_event()
        self._left -= isinstance(event, h11.Data)
        return event


class _Flow(FlowControl):
    """Reads no further while some of what has come is still to be taken in.

    That is a request that waits for its turn, or a body that does. uvicorn reads on whenever the
    application asks for more of a request, also one that is at its end; a client that sends
    requests ahead would fill the memory with them.
    """

    def __init__(self, transport: asyncio.Transport, conn: _Connection) -> None:
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
