"""Clients of other languages and of HTTP/1.0."""

import re
import socket
from collections.abc import Generator, Sequence
from http.client import IncompleteRead

from tests.end_to_end.compatibility.client import Client, Refused, exchange, place, stream
from tests.support.clients.sockets import dial, read_all


class JdkHttpClient(Client):
    """java.net.http of JDK 11 and later, which offers HTTP/2 with every request."""

    name = "Java's HttpClient"

    def upload(self, server: str, batches: Sequence[bytes]) -> str:
        with dial(server) as connection:
            return self.post(connection, server, b"".join(batches))

    def download(self, url: str) -> bytes:
        with dial(url) as connection:
            return b"".join(self.get(connection, url))

    def post(self, connection: socket.socket, server: str, body: bytes) -> str:
        host, path = place(f"{server}/upload")
        head = self.head(f"POST {path} HTTP/1.1", host, f"Content-Length: {len(body)}")
        with exchange(connection, head, [body]) as answer:
            if answer.status != 200:
                raise Refused(answer.status)
            return f"{server}/files/{answer.read().decode()}"

    def get(self, connection: socket.socket, url: str) -> Generator[bytes, None, None]:
        host, path = place(url)
        with exchange(connection, self.head(f"GET {path} HTTP/1.1", host)) as answer:
            if answer.status != 200:
                raise Refused(answer.status)
            yield from stream(answer)

    @staticmethod
    def head(request: str, host: str, *length: str) -> list[str]:
        return [
            request,
            "Connection: Upgrade, HTTP2-Settings",
            *length,
            f"Host: {host}",
            "HTTP2-Settings: AAEAAEAAAAIAAAAAAAMAAAAAAAQBAAAAAAUAAEAAAAYABgAA",
            "Upgrade: h2c",
            "User-Agent: Java-http-client/17.0.15",
        ]


class Http10(Client):
    """An old client: no Host, nothing chunked, and a body ends with the connection."""

    name = "HTTP/1.0"

    def upload(self, server: str, batches: Sequence[bytes]) -> str:
        body = b"".join(batches)
        _, path = place(f"{server}/upload")
        request = f"POST {path} HTTP/1.0\r\nContent-Length: {len(body)}\r\n\r\n"
        return f"{server}/files/{self.ask(server, request.encode() + body).decode()}"

    def download(self, url: str) -> bytes:
        _, path = place(url)
        return self.ask(url, f"GET {path} HTTP/1.0\r\n\r\n".encode())

    def ask(self, url: str, request: bytes) -> bytes:
        with dial(url) as connection:
            connection.sendall(request)
            head, _, body = read_all(connection).partition(b"\r\n\r\n")
        if not re.match(rb"HTTP/1\.[01] 200 ", head):
            raise Refused(head)
        assert b"transfer-encoding" not in head.lower()
        length = re.search(rb"(?i)\r\ncontent-length: (\d+)", head)
        assert length is not None
        if len(body) != int(length[1]):
            raise IncompleteRead(body, int(length[1]) - len(body))
        return body
