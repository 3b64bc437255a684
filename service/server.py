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
