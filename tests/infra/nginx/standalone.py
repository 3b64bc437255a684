"""nginx in front of a listening socket, without a replica."""

import select
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.infra.stack.nginx import find_nginx, running_nginx, upstream_of
from tests.infra.tools import find_or_skip


@dataclass
class StandaloneNginx:
    """nginx in front of a socket that the test controls. The test may close the socket."""

    url: str
    upstream: socket.socket
    output: Path

    def forwarded(self) -> bool:
        """Accept and close a connection from nginx. Return whether there was one."""
        try:
            self.upstream.accept()[0].close()
        except BlockingIOError:
            return False
        return True

    def accept(self) -> socket.socket:
        """Wait for the next connection from nginx."""
        ready, _, _ = select.select([self.upstream], [], [], 5)
        assert ready, "nginx has forwarded no request"
        connection, _ = self.upstream.accept()
        connection.settimeout(5)
        return connection

    def respond(self) -> dict[str, str]:
        """Respond to the next request from nginx with 204. Return the headers of the request."""
        with self.accept() as connection, connection.makefile("rb") as request:
            lines = [line.decode().rstrip() for line in iter(request.readline, b"\r\n")]
            connection.sendall(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")
        return dict(line.split(": ", 1) for line in lines[1:])


@contextmanager
def running_standalone(output: Path, port: int, listen: str = "") -> Iterator[StandaloneNginx]:
    find_or_skip(find_nginx)
    with (
        socket.create_server(("127.0.0.1", 0), backlog=512) as upstream,
        output.open("ab") as log,
    ):
        upstream.settimeout(0)
        ports = [upstream.getsockname()[1]] * 2
        with running_nginx(upstream_of(ports), port=port, listen=listen, output=log) as nginx:
            yield StandaloneNginx(nginx.url, upstream, output)


TRUSTED, UNTRUSTED = "127.0.0.2", "127.0.0.3"


def get_request(path: str, forwarded_for: str | None, *, close: bool = False) -> bytes:
    """Return a GET as a proxy forwards it."""
    lines = [f"GET {path} HTTP/1.1", "Host: x"]
    lines += [f"X-Forwarded-For: {forwarded_for}"] if forwarded_for else []
    lines += ["Connection: close"] if close else []
    return "\r\n".join([*lines, "", ""]).encode()
