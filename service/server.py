"""uvicorn on a socket of ours, and with what its end lacks: a process leaves unnoticed.

uvicorn runs with h11. httptools loses the body of a POST that carries `Upgrade: h2c`, which JDK's
client sends, takes endless heads, and merges trailers into headers.
"""

import asyncio
import math
import os
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from types import FrameType
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from service.connection import Inlet, Protocol
from service.errors import AddressInUse
from service.readiness import Drain

KEEP_ALIVE = 75
"""Seconds that an idle connection is kept: longer than load balancers keep theirs (60)."""

LAST_CALL = 0.5
"""Seconds after the listener has closed in which a request is still taken on."""

MAX_READ = 256 * 1024
"""Bytes of a body that are read at a time."""


def listen(host: str, port: int) -> socket.socket:
    """Bind a TCP socket, port 0 for any free one. `AddressInUse` says what stands in the way."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server(
            (host, port), family=family, backlog=2048, dualstack_ipv6=host == "::"
        )
    except OSError as error:
        # Of its own words, the address would be said twice.
        reason = os.strerror(error.errno) if error.errno else error
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
        self._buffer = memoryview(bytearray(MAX_READ))
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

    def _connection(self, **arguments: Any) -> Inlet:
        return Inlet(Protocol(**arguments, patience=self._patience), self._buffer)

    async def on_tick(self, counter: int) -> bool:
        ending = await super().on_tick(counter) or time.monotonic() >= self._drained_at
        self._drain.begun = self._drain.begun or ending
        return ending
