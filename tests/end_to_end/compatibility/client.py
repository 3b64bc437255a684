"""The base class of the clients, and how they send requests and read responses."""

import random
import socket
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from http.client import HTTPResponse, IncompleteRead
from typing import ClassVar
from urllib.parse import urlsplit

from tests.end_to_end.compatibility import xmtp_formats
from tests.end_to_end.compatibility.xmtp_formats import History
from tests.support.key_leaks import LEAK_DETECTOR

ORIGIN = "http://localhost:3000"
SIGNING_KEY = LEAK_DETECTOR.add_key("the-key-that-signed-this-bundle")


class RequestFailed(Exception):
    """The client considers the response an error. It then retries or gives up."""


@dataclass(frozen=True)
class Bundle:
    """An encrypted history. `batches` are the pieces in which libxmtp's exporter passes it on."""

    history: History
    key: bytes
    batches: tuple[bytes, ...]

    def decrypt(self, data: bytes) -> History:
        if len(self.batches) == 1:
            return xmtp_formats.decrypt_jsonl_bundle(data, self.key)
        return xmtp_formats.decrypt_archive([data], self.key)


def encrypt_history(history: History, bundle_format: str = "archive") -> Bundle:
    rng = random.Random(11)
    key, nonce = rng.randbytes(32), rng.randbytes(12)
    if bundle_format == "archive":
        return Bundle(history, key, tuple(xmtp_formats.encrypt_archive(history, key, nonce)))
    history = History(history.groups, history.messages)
    return Bundle(history, key, (xmtp_formats.encrypt_jsonl_bundle(history, key, nonce),))


def send_request(
    connection: socket.socket, head: Sequence[str], body: Iterable[bytes] = ()
) -> HTTPResponse:
    """Send exactly this request. The response must be one that every client can read."""
    connection.sendall("\r\n".join([*head, "", ""]).encode())
    for piece in body:
        connection.sendall(piece)
    response = HTTPResponse(connection)
    response.begin()
    assert not 300 <= response.status < 400, "a redirect loses a streamed body"
    assert response.headers["Content-Encoding"] is None, "libxmtp never decompresses"
    assert response.headers["Content-Length"] is not None
    return response


def read_body(response: HTTPResponse) -> Iterator[bytes]:
    """Yield the body as it arrives. Raises `IncompleteRead` if the body ends early."""
    remaining = int(response.headers["Content-Length"])
    while remaining:
        piece = response.read1(min(remaining, 16_384))
        if not piece:
            raise IncompleteRead(b"", remaining)
        remaining -= len(piece)
        yield piece


def chunked(pieces: Iterable[bytes]) -> Iterator[bytes]:
    for piece in pieces:
        yield b"%X\r\n%b\r\n" % (len(piece), piece)
    yield b"0\r\n\r\n"


def host_and_path(url: str) -> tuple[str, str]:
    """Return the host and the path for a request, with every slash of the URL."""
    parts = urlsplit(url)
    return parts.netloc, parts.path


class Client(ABC):
    """`upload` returns the URL for the other device. Both methods raise `RequestFailed`."""

    name: ClassVar[str]
    """As in the table of examples/xmtp.md."""
    bundle_format: ClassVar[str] = "archive"
    sends_proof: ClassVar[bool] = False
    trailing_slash: ClassVar[str] = ""
    """The end of the URL that its apps are configured with: a slash or nothing."""

    @abstractmethod
    def upload(self, server: str, batches: Sequence[bytes]) -> str: ...

    @abstractmethod
    def download(self, url: str) -> bytes: ...
