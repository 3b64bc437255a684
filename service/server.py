"""uvicorn on a socket of ours, with what it lacks: deadlines for heads and for closing.

uvicorn runs with h11. httptools loses the body of a POST that carries `Upgrade: h2c`, which JDK's
client sends, takes endless heads, and merges trailers into headers.
"""

import asyncio
import socket
from collections.abc import Callable
from types import FrameType
from typing import Any

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from service.errors import AddressInUse

KEEP_ALIVE = 75
"""Seconds that an idle connection is kept: longer than load balancers keep theirs (60)."""

HEAD_TIMEOUT = 15.0
"""Seconds that a request's head may take, from the connection or its first byte on."""


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

    `drain_timeout` is what running requests get then, `read_timeout` what a client may take over
    the last bytes of a connection that closes; both in seconds.
    """

    def __init__(
        self,
        app: ASGIApp,
        listener: socket.socket,
        *,
        drain_timeout: int,
        read_timeout: float,
        ready: Callable[[], None] = lambda: None,
    ) -> None:
        class Protocol(_Protocol):
            close_timeout = read_timeout

        super().__init__(
            uvicorn.Config(
                app,
                http=Protocol,
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
        self._ready = ready

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        super().run(sockets or [self._listener])

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002
        """End gracefully, and with exit code 0; at once when told a second time.

        uvicorn would raise the signal again after it has closed everything.
        """
        self.force_exit = self.should_exit
        self.should_exit = True


class _Protocol(H11Protocol):
    """One connection, none of whose states lasts for ever."""

    close_timeout: float
    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(_Closing(transport, self.close_timeout))  # type: ignore[arg-type]
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_is_there()
        self.transport.closed()  # type: ignore[attr-defined]
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state is h11.SEND_BODY:
            # Take no more before the application asks: uvicorn would hold some for each client.
            self.flow.pause_reading()
        if self.conn.their_state is not h11.IDLE:
            self._head_is_there()
        elif self._deadline is None:
            self._expect_head()

    def eof_received(self) -> bool:  # type: ignore[override]
        """Let a client that has said all it had to say still have its answer.

        Only after a body: one that ends early, or a reader that hangs up, is not waited for.
        """
        answering = self.cycle is not None and not self.cycle.response_complete
        if not answering or self.cycle.more_body or self.scope["method"] != "POST":
            return False
        self.cycle.keep_alive = False
        return True

    def send_400_response(self, msg: str) -> None:
        """Answer what is not HTTP, unless an answer is under way; the request is at its end."""
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            super().send_400_response(msg)
        else:
            self.transport.close()

    def _should_upgrade(self) -> bool:
        """Never, and without a word in the log: a request with `Upgrade` is one without it."""
        return False

    def _expect_head(self) -> None:
        self._deadline = self.loop.call_later(HEAD_TIMEOUT, self.transport.abort)

    def _head_is_there(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


class _Closing:
    """A transport whose `close` does not wait for ever for a client to take the last bytes."""

    def __init__(self, transport: asyncio.Transport, timeout: float) -> None:
        self._transport = transport
        self._timeout = timeout
        self._deadline: asyncio.TimerHandle | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def close(self) -> None:
        self._transport.close()
        if self._deadline is None:
            loop = asyncio.get_running_loop()
            self._deadline = loop.call_later(self._timeout, self._transport.abort)

    def closed(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
