"""A Java client and an HTTP/1.0 client."""

import re
import socket
from collections.abc import Generator, Sequence
from http.client import IncompleteRead

from tests.end_to_end.compatibility.client import (
    Client,
    RequestFailed,
    host_and_path,
    read_body,
    send_request,
)
from tests.support.clients.sockets import connect_to, read_until_closed


class JdkHttpClient(Client):
    """java.net.http of JDK 11 and later. It offers HTTP/2 with every request."""

    name = "Java's HttpClient"

    def upload(self, server: str, batches: Sequence[bytes]) -> str:
        with connect_to(server) as connection:
            return self.post(connection, server, b"".join(batches))

    def download(self, url: str) -> bytes:
        with connect_to(url) as connection:
            return b"".join(self.get(connection, url))

    def post(self, connection: socket.socket, server: str, body: bytes) -> str:
        host, path = host_and_path(f"{server}/upload")
        head = self.head(f"POST {path} HTTP/1.1", host, f"Content-Length: {len(body)}")
        with send_request(connection, head, [body]) as response:
            if response.status != 200:
                raise RequestFailed(response.status)
            return f"{server}/files/{response.read().decode()}"

    def get(self, connection: socket.socket, url: str) -> Generator[bytes, None, None]:
        host, path = host_and_path(url)
        with send_request(connection, self.head(f"GET {path} HTTP/1.1", host)) as response:
            if response.status != 200:
                raise RequestFailed(response.status)
            yield from read_body(response)

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
    """An old client. It sends no Host and no chunks. A body ends when the connection ends."""

    name = "HTTP/1.0"

    def upload(self, server: str, batches: Sequence[bytes]) -> str:
        body = b"".join(batches)
        _, path = host_and_path(f"{server}/upload")
        request = f"POST {path} HTTP/1.0\r\nContent-Length: {len(body)}\r\n\r\n"
        return f"{server}/files/{self.send(server, request.encode() + body).decode()}"

    def download(self, url: str) -> bytes:
        _, path = host_and_path(url)
        return self.send(url, f"GET {path} HTTP/1.0\r\n\r\n".encode())

    def send(self, url: str, request: bytes) -> bytes:
        with connect_to(url) as connection:
            connection.sendall(request)
            head, _, body = read_until_closed(connection).partition(b"\r\n\r\n")
        if not re.match(rb"HTTP/1\.[01] 200 ", head):
            raise RequestFailed(head)
        assert b"transfer-encoding" not in head.lower()
        length = re.search(rb"(?i)\r\ncontent-length: (\d+)", head)
        assert length is not None
        if len(body) != int(length[1]):
            raise IncompleteRead(body, int(length[1]) - len(body))
        return body
