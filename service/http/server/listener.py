"""The socket that the server listens on. `service.cli` opens it before it starts the server."""

import os
import socket

from service.errors import ListenError

UNSENT_BYTES = 128 * 1024
"""Bytes that the kernel buffers for a client before the server stops writing."""


def listen(host: str, port: int) -> socket.socket:
    """Bind a TCP socket; port 0 means any free port. Raises `ListenError`."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server(
            (host, port), family=family, backlog=2048, dualstack_ipv6=host == "::"
        )
    except OSError as error:
        # The error's own text would repeat the address.
        reason = os.strerror(error.errno) if error.errno else error
        raise ListenError(
            f"Cannot listen on {host} port {port} ({reason}): "
            "set HISTORY_HOST and HISTORY_PORT to a free address, or HISTORY_PORT=0 for any port."
        ) from error
    if hasattr(socket, "TCP_NOTSENT_LOWAT"):
        # Without this, a slow client would seem to receive a whole send buffer at once.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_BYTES)
    return listener


def url(listener: socket.socket) -> str:
    """Return the URL for clients on this machine."""
    host, port = listener.getsockname()[:2]
    if host in {"0.0.0.0", "127.0.0.1", "::", "::1"}:
        host = "localhost"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
