"""uvicorn, on a socket that is bound before anything else is opened."""

import socket
from collections.abc import Callable
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from service.errors import AddressInUse

KEEP_ALIVE = 75
"""Seconds that an idle connection is kept: longer than load balancers keep theirs (60)."""


def listen(host: str, port: int) -> socket.socket:
    """Bind a TCP socket, port 0 for any free one. `AddressInUse` says what stands in the way."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        reason = error.strerror or error
        raise AddressInUse(
            f"Cannot listen on {host} port {port} ({reason}): "
            "set HISTORY_HOST and HISTORY_PORT to a free address, or HISTORY_PORT=0 for any port."
        ) from error


class Server(uvicorn.Server):
    """Serve `app` on `listener` until SIGTERM or SIGINT; `ready` is called once it answers."""

    def __init__(
        self,
        app: ASGIApp,
        listener: socket.socket,
        *,
        drain_timeout: int,
        ready: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http="h11",
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
