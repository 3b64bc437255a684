"""The server process: uvicorn with a graceful shutdown that loses no request.

`service.cli` runs it. Signals set the drain state, which the application reads.
"""

import asyncio
import logging
import math
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from types import FrameType
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from service.bundles.memory import MAX_CHUNK
from service.drain import Drain
from service.http.server.connection import BufferedReader, Connection
from service.http.slow_clients import DISCARD_TIMEOUT

KEEP_ALIVE_TIMEOUT = 195
"""Seconds that an idle connection is kept open: longer than load balancers in infra do (180)."""

FORCE_EXIT_INTERVAL = 0.1
"""Seconds after which a second signal is noticed."""

LAST_REQUESTS = 0.5
"""Seconds after closing the listener in which requests are still accepted."""


class Server(uvicorn.Server):
    """Serves `app` on `listener` until SIGTERM or SIGINT; calls `ready` once it responds.

    After the signal, `drain` says that the process drains, but requests are accepted for another
    `drain_delay`, until load balancers have noticed. Then running requests have `drain_timeout` to
    finish. A second signal ends the process at once. `read_timeout` is how long a client may take
    to receive a byte of its response. All times are in seconds.
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
                timeout_keep_alive=KEEP_ALIVE_TIMEOUT,
                timeout_graceful_shutdown=drain_timeout,
            )
        )
        self._buffer = memoryview(bytearray(MAX_CHUNK))
        self._listener = listener
        self._read_timeout = read_timeout
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
        """Start draining; on a second signal, end at once. The exit code stays 0.

        uvicorn's own handler raises the signal again after shutdown, which changes the exit code.
        """
        if self._drain.begun:
            self.force_exit = self.should_exit = True
        self._drain.begun = True
        self._drained_at = min(self._drained_at, time.monotonic() + self._drain_delay)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close the listener, serve the clients that are connected, then shut uvicorn down."""
        if self._drain_delay and not self.force_exit:
            self._accept_backlog()
            for server in self.servers:
                server.close()
            await asyncio.sleep(LAST_REQUESTS)
        self._drain.refusing = True
        shutdown = asyncio.create_task(super().shutdown(sockets))
        while not shutdown.done():
            await asyncio.wait((shutdown,), timeout=FORCE_EXIT_INTERVAL)
            if self.force_exit:
                shutdown.cancel()
        if not shutdown.cancelled():
            shutdown.result()
        await self._deliver_last_responses()
        if self.force_exit:
            # What still runs is cancelled now. Each task would log a traceback.
            for name in ("uvicorn.error", "asyncio"):
                logging.getLogger(name).disabled = True

    async def _deliver_last_responses(self) -> None:
        """Wait for responses to requests that were cancelled at the end of the drain timeout.

        Their clients are still sending, and may need `DISCARD_TIMEOUT` to notice the response.
        """
        deadline = time.monotonic() + DISCARD_TIMEOUT
        while self.server_state.tasks and not self.force_exit and time.monotonic() < deadline:
            await asyncio.wait(self.server_state.tasks, timeout=FORCE_EXIT_INTERVAL)

    def _accept_backlog(self) -> None:
        """Accept the connections in the listener's backlog, which the kernel would reset.

        No error may interrupt the shutdown: running requests and the lifespan still have to end.
        Besides `BlockingIOError` if there are no more, accept fails if the process has no more file
        descriptors, or if a client has gone (accept(2)).
        """
        loop = asyncio.get_running_loop()
        protocol = partial(
            self._connection,
            config=self.config,
            server_state=self.server_state,
            app_state=self.lifespan.state,
        )
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self._accepting.append(
                    loop.create_task(loop.connect_accepted_socket(protocol, connection))
                )

    def _connection(self, **arguments: Any) -> BufferedReader:
        connection = Connection(**arguments, read_timeout=self._read_timeout)
        return BufferedReader(connection, self._buffer)

    async def on_tick(self, counter: int) -> bool:
        ending = await super().on_tick(counter) or time.monotonic() >= self._drained_at
        self._drain.begun = self._drain.begun or ending
        return ending
