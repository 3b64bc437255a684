"""Requests as libxmtp's releases and its browser build send them."""

import socket
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from http.client import IncompleteRead

from tests.end_to_end.compatibility.client import (
    ORIGIN,
    Client,
    RequestFailed,
    chunked,
    host_and_path,
    read_body,
    send_request,
)
from tests.end_to_end.compatibility.xmtp_formats import History, InvalidBundle
from tests.support.clients.sockets import connect_to


class Libxmtp(Client):
    """libxmtp's archives, sent with reqwest: streamed both ways, one connection per request.

    Only a status of 400 or more is an error. The response text goes into the URL untrimmed.
    """

    name = "libxmtp: Node, iOS, Android, React Native"

    def upload(self, server: str, batches: Sequence[bytes]) -> str:
        with connect_to(server) as connection:
            return self.post(connection, server, batches)

    def download(self, url: str) -> bytes:
        with connect_to(url) as connection:
            return b"".join(self.get(connection, url))

    def post(self, connection: socket.socket, server: str, batches: Sequence[bytes]) -> str:
        host, path = host_and_path(f"{server}/upload")
        head = self.head(f"POST {path} HTTP/1.1", host)
        body = chunked(self.pieces(batches))
        with send_request(connection, [*head, "transfer-encoding: chunked"], body) as response:
            if response.status >= 400:
                raise RequestFailed(response.status)
            return f"{server}/files/{response.read().decode()}"

    def get(self, connection: socket.socket, url: str) -> Generator[bytes, None, None]:
        host, path = host_and_path(url)
        with send_request(connection, self.head(f"GET {path} HTTP/1.1", host)) as response:
            if response.status >= 400:
                raise RequestFailed(response.status)
            yield from read_body(response)

    def upload_with_retries(
        self, server: str, batches: Sequence[bytes], pause: Callable[[], None]
    ) -> str:
        """Upload as its task runner does: in 20 attempts (with pauses from 3 s to 1 min)."""
        for _ in range(20):
            try:
                return self.upload(server, batches)
            except (RequestFailed, IncompleteRead, ConnectionError):
                pause()
        raise RequestFailed

    def import_with_retries(
        self, url: str, decrypt: Callable[[Iterable[bytes]], History], pause: Callable[[], None]
    ) -> History:
        """Download as its sync worker does: in 3 attempts (every 20 s), into the importer."""
        for _ in range(3):
            try:
                with connect_to(url) as connection, closing(self.get(connection, url)) as body:
                    return decrypt(body)
            except (RequestFailed, IncompleteRead, ConnectionError, InvalidBundle):
                pause()
        raise RequestFailed

    @staticmethod
    def head(request: str, host: str) -> list[str]:
        return [request, "accept: */*", f"host: {host}"]

    @staticmethod
    def pieces(batches: Sequence[bytes]) -> Iterator[bytes]:
        """Split the batches as the 4 KiB buffer between exporter and network does."""
        room = 4096
        for batch in batches:
            rest = memoryview(batch)
            while rest:
                piece, rest = rest[:room], rest[room:]
                room = room - len(piece) or 4096
                yield bytes(piece)


class LibxmtpWithTrailingSlash(Libxmtp):
    """The mobile SDKs of 2025. They request `//upload` and `//files/{id}`."""

    name = "mobile SDKs of 2025, URL with a trailing slash"
    trailing_slash = "/"


class LibxmtpOf2024(Libxmtp):
    """The mobile SDKs of 2024. They send the whole file as one body. Only 2xx is a success."""

    name = "mobile SDKs of 2024, URL with a trailing slash"
    bundle_format = "jsonl"
    trailing_slash = "/"

    def post(self, connection: socket.socket, server: str, batches: Sequence[bytes]) -> str:
        host, path = host_and_path(f"{server}/upload")
        body = b"".join(batches)
        head = self.head(f"POST {path} HTTP/1.1", host)
        with send_request(connection, [*head, f"content-length: {len(body)}"], [body]) as response:
            if not 200 <= response.status < 300:
                raise RequestFailed(response.status)
            return f"{server}/files/{response.read().decode()}"


class LibxmtpInBrowser(Client):
    """libxmtp's WASM build in Chromium: fetch() with a Uint8Array, which sets no Content-Type.

    So this is a simple request, without a preflight. A page can read a response, even an error,
    only if `Access-Control-Allow-Origin` allows it.
    """

    name = "xmtp-js in a browser"

    def upload(self, server: str, batches: Sequence[bytes]) -> str:
        status, text = self.fetch("POST", f"{server}/upload", b"".join(batches))
        if status >= 400:
            raise RequestFailed(status)
        return f"{server}/files/{text.decode()}"

    def download(self, url: str) -> bytes:
        status, body = self.fetch("GET", url)
        if status >= 400:
            raise RequestFailed(status)
        return body

    def fetch(self, method: str, url: str, body: bytes | None = None) -> tuple[int, bytes]:
        host, path = host_and_path(url)
        length = [] if body is None else [f"Content-Length: {len(body)}"]
        head = [
            f"{method} {path} HTTP/1.1",
            f"Host: {host}",
            "Connection: keep-alive",
            *length,
            'sec-ch-ua-platform: "Linux"',
            "User-Agent: Mozilla/5.0 (X11; Linux x86_64) Chrome/140.0.0.0 Safari/537.36",
            'sec-ch-ua: "Chromium";v="140", "Not=A?Brand";v="24"',
            "sec-ch-ua-mobile: ?0",
            "Accept: */*",
            f"Origin: {ORIGIN}",
            "Sec-Fetch-Site: same-site",
            "Sec-Fetch-Mode: cors",
            "Sec-Fetch-Dest: empty",
            f"Referer: {ORIGIN}/",
            "Accept-Encoding: gzip, deflate, br, zstd",
            "Accept-Language: en-US,en;q=0.9",
        ]
        with (
            connect_to(url) as connection,
            send_request(connection, head, [body or b""]) as response,
        ):
            assert response.headers["Access-Control-Allow-Origin"] in ("*", ORIGIN), "TypeError"
            return response.status, b"".join(read_body(response))
