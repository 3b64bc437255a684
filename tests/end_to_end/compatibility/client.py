"""What the clients of this folder have in common: how they ask, and how they take an answer."""

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
from tests.support.key_leaks import LEAKS

ORIGIN = "http://localhost:3000"
SIGNING_KEY = LEAKS.used("the-key-that-signed-this-bundle")


class Refused(Exception):
    """What the client takes for an error: it tries again, or gives up."""


@dataclass(frozen=True)
class Bundle:
    """A history, sealed; `batches` are the pieces in which an exporter hands it on."""

    history: History
    key: bytes
    batches: tuple[bytes, ...]

    def opened(self, sent: bytes) -> History:
        if len(self.batches) == 1:
            return xmtp_formats.open_jsonl_bundle(sent, self.key)
        return xmtp_formats.open_archive([sent], self.key)


def seal(history: History, form: str = "archive") -> Bundle:
    rng = random.Random(11)
    key, nonce = rng.randbytes(32), rng.randbytes(12)
    if form == "archive":
        return Bundle(history, key, tuple(xmtp_formats.archive(history, key, nonce)))
    history = History(history.groups, history.messages)
    return Bundle(history, key, (xmtp_formats.jsonl_bundle(history, key, nonce),))


def exchange(
    connection: socket.socket, head: Sequence[str], body: Iterable[bytes] = ()
) -> HTTPResponse:
    """Send a request as it stands here; the answer, if it is one that every client can read."""
    connection.sendall("\r\n".join([*head, "", ""]).encode())
    for piece in body:
        connection.sendall(piece)
    answer = HTTPResponse(connection)
    answer.begin()
    assert not 300 <= answer.status < 400, "a redirect loses a streamed body"
    assert answer.headers["Content-Encoding"] is None, "libxmtp never decompresses"
    assert answer.headers["Content-Length"] is not None
    return answer


def stream(answer: HTTPResponse) -> Iterator[bytes]:
    """A body as it comes; `IncompleteRead` where it ends early, as every client here finds it."""
    left = int(answer.headers["Content-Length"])
    while left:
        piece = answer.read1(min(left, 16_384))
        if not piece:
            raise IncompleteRead(b"", left)
        left -= len(piece)
        yield piece


def chunked(pieces: Iterable[bytes]) -> Iterator[bytes]:
    for piece in pieces:
        yield b"%X\r\n%b\r\n" % (len(piece), piece)
    yield b"0\r\n\r\n"


def place(url: str) -> tuple[str, str]:
    """The host and the path as they stand in a request, with every slash."""
    parts = urlsplit(url)
    return parts.netloc, parts.path


class Client(ABC):
    """`upload` returns where the other device is to look; both raise `Refused`."""

    name: ClassVar[str]
    """As in the table of examples/xmtp.md."""
    form: ClassVar[str] = "archive"
    signs: ClassVar[bool] = False
    slash: ClassVar[str] = ""
    """What ends the URL that its apps were configured with."""

    @abstractmethod
    def upload(self, server: str, batches: Sequence[bytes]) -> str: ...

    @abstractmethod
    def download(self, url: str) -> bytes: ...
