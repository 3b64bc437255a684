"""libxmtp's requests, as its releases and its build for browsers send them."""

import socket
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from http.client import IncompleteRead

from tests.end_to_end.compatibility.client import (
    ORIGIN,
    Client,
    Refused,
    chunked,
    exchange,
    place,
    stream,
)
from tests.end_to_end.compatibility.xmtp_formats import BrokenBundle, History
from tests.support.clients.sockets import dial


class Libxmtp(Client):
    """libxmtp's archives, on reqwest: streamed both ways, a connection for each request.

    Only a status from 400 on is an error. The answer's text goes untrimmed into the URL.
    """

    name = "libxmtp: Node, iOS, Android, React Native"

    def upload(self, server: str, batches: Sequence[bytes]) -> str:
        with dial(server) as connection:
            return self.post(connection, server, batches)

    def download(self, url: str) -> bytes:
        with dial(url) as connection:
            return b"".join(self.get(connection, url))

    def post(self, connection: socket.socket, server: str, batches: Sequence[bytes]) -> str:
        host, path = place(f"{server}/upload")
        head = self.head(f"POST {path} HTTP/1.1", host)
        body = chunked(self.pieces(batches))
        with exchange(connection, [*head, "transfer-encoding: chunked"], body) as answer:
            if answer.status >= 400:
                raise Refused(answer.status)
            return f"{server}/files/{answer.read().decode()}"

    def get(self, connection: socket.socket, url: str) -> Generator[bytes, None, None]:
        host, path = place(url)
        with exchange(connection, self.head(f"GET {path} HTTP/1.1", host)) as answer:
            if answer.status >= 400:
                raise Refused(answer.status)
            yield from stream(answer)

    def upload_in_the_end(
        self, server: str, batches: Sequence[bytes], pause: Callable[[], None]
    ) -> str:
        """As its task runner does: 20 attempts (with pauses from 3 s to 1 min)."""
        for _ in range(20):
            try:
                return self.upload(server, batches)
            except (Refused, IncompleteRead, ConnectionError):
                pause()
        raise Refused

    def import_in_the_end(
        self, url: str, opened: Callable[[Iterable[bytes]], History], pause: Callable[[], None]
    ) -> History:
        """As its sync worker does: 3 attempts (every 20 s), each straight into the importer."""
        for _ in range(3):
            try:
                with dial(url) as connection, closing(self.get(connection, url)) as body:
                    return opened(body)
            except (Refused, IncompleteRead, ConnectionError, BrokenBundle):
                pause()
        raise Refused

    @staticmethod
    def head(request: str, host: str) -> list[str]:
        return [request, "accept: */*", f"host: {host}"]

    @staticmethod
    def pieces(batches: Sequence[bytes]) -> Iterator[bytes]:
        """What comes out of a buffer of 4 KiB between the exporter's batches and the wire."""
        room = 4096
        for batch in batches:
            left = memoryview(batch)
            while left:
                piece, left = left[:room], left[room:]
                room = room - len(piece) or 4096
                yield bytes(piece)


class LibxmtpWithSlash(Libxmtp):
    """The mobile SDKs of 2025: `//upload` and `//files/{id}`."""

    name = "mobile SDKs of 2025, URL with a trailing slash"
    slash = "/"


class LibxmtpOf2024(Libxmtp):
    """Mobile SDKs of 2024: the whole file as one body, and a success is 2xx."""

    name = "mobile SDKs of 2024, URL with a trailing slash"
    form = "jsonl"
    slash = "/"

    def post(self, connection: socket.socket, server: str, batches: Sequence[bytes]) -> str:
        host, path = place(f"{server}/upload")
        body = b"".join(batches)
        head = self.head(f"POST {path} HTTP/1.1", host)
        with exchange(connection, [*head, f"content-length: {len(body)}"], [body]) as answer:
            if not 200 <= answer.status < 300:
                raise Refused(answer.status)
            return f"{server}/files/{answer.read().decode()}"


class LibxmtpInABrowser(Client):
    """libxmtp's WASM build: fetch() of a Uint8Array, which has no Content-Type, from Chromium.

    So it is a simple request, without a preflight. Whether a page sees an answer at all, also one
    that is an error, depends on `Access-Control-Allow-Origin`.
    """

    name = "xmtp-js in a browser"

    def upload(self, server: str, batches: Sequence[bytes]) -> str:
        status, text = self.fetch("POST", f"{server}/upload", b"".join(batches))
        if status >= 400:
            raise Refused(status)
        return f"{server}/files/{text.decode()}"

    def download(self, url: str) -> bytes:
        status, body = self.fetch("GET", url)
        if status >= 400:
            raise Refused(status)
        return body

    def fetch(self, method: str, url: str, body: bytes | None = None) -> tuple[int, bytes]:
        host, path = place(url)
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
        with dial(url) as connection, exchange(connection, head, [body or b""]) as answer:
            assert answer.headers["Access-Control-Allow-Origin"] in ("*", ORIGIN), "TypeError"
            return answer.status, b"".join(stream(answer))
