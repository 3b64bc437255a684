"""nginx in front of one listening socket, without any replica."""

import select
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.infra.stack.nginx import balancer, find_nginx
from tests.infra.tools import installed


@dataclass
class Alone:
    """nginx in front of one listening socket, or of none: what comes of a request it decides."""

    url: str
    behind: socket.socket
    output: Path

    def reached(self) -> bool:
        """Whether a connection has come through."""
        try:
            self.behind.accept()[0].close()
        except BlockingIOError:
            return False
        return True

    def take(self) -> socket.socket:
        """The next connection that comes through."""
        waiting, _, _ = select.select([self.behind], [], [], 5)
        assert waiting, "nothing has come through"
        connection, _ = self.behind.accept()
        connection.settimeout(5)
        return connection

    def answer(self) -> dict[str, str]:
        """Answer the next request that comes through with 204; its header fields."""
        with self.take() as connection, connection.makefile("rb") as received:
            lines = [line.decode().rstrip() for line in iter(received.readline, b"\r\n")]
            connection.sendall(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")
        return dict(line.split(": ", 1) for line in lines[1:])


@contextmanager
def alone_at(output: Path, port: int, listen: str = "") -> Iterator[Alone]:
    installed(find_nginx)
    with (
        socket.create_server(("127.0.0.1", 0), backlog=512) as behind,
        output.open("ab") as log,
    ):
        behind.settimeout(0)
        ports = [behind.getsockname()[1]] * 2
        with balancer(ports, port=port, listen=listen, output=log) as nginx:
            yield Alone(nginx.url, behind, output)


TRUSTED, STRANGER = "127.0.0.2", "127.0.0.3"


def get(path: str, forwarded: str | None, *, close: bool = False) -> bytes:
    """A GET as a proxy passes it on."""
    lines = [f"GET {path} HTTP/1.1", "Host: x"]
    lines += [f"X-Forwarded-For: {forwarded}"] if forwarded else []
    lines += ["Connection: close"] if close else []
    return "\r\n".join([*lines, "", ""]).encode()
