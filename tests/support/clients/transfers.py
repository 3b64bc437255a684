"""Single transfers by clients that behave well or badly, each on a connection of its own.

An `Upload`, `Download` or `Delete` is a plain value; `run` does it and says what the client saw.
"""

import base64
import hashlib
import select
import socket
import struct
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http.client import HTTPException, HTTPResponse
from typing import Literal

from tests.support.clients.signing import random_bytes, sign
from tests.support.clients.sockets import dial

PIECE = 64 * 1024

Kind = Literal["good", "slow", "leaves", "resets", "half-closes"]
Framing = Literal["length", "chunked", "form"]
Claimed = Literal["nothing", "hmac", "key", "digest", "wrong hmac", "wrong digest"]
Proven = Literal["right", "other key", "other hmac", "half", "none"]
Method = Literal["GET", "HEAD"]


@dataclass(frozen=True)
class Manner:
    """How a client behaves: good to the end, or until `at` (0 … 1) of a body has passed.

    "slow" pauses between pieces, "leaves" closes, "resets" resets, "half-closes" has no more to
    say but listens.
    """

    kind: Kind = "good"
    at: float = 1.0

    @property
    def listens(self) -> bool:
        return self.kind not in ("leaves", "resets")


@dataclass(frozen=True)
class Bundle:
    """A bundle, by what its bytes are made from."""

    seed: int
    size: int

    @property
    def content(self) -> bytes:
        return random_bytes(self.seed, self.size)

    @property
    def key(self) -> str:
        return f"key {self.seed}"


@dataclass(frozen=True)
class Answer:
    """What a client saw: `status` 0 is no answer; `whole` means as many bytes as were declared."""

    status: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = field(default=b"", repr=False)
    whole: bool = False
    sent_all: bool = False

    @property
    def text(self) -> str:
        return self.body.decode()


@dataclass(frozen=True)
class Upload:
    bundle: Bundle
    framing: Framing = "length"
    claimed: Claimed = "nothing"
    manner: Manner = Manner()

    @property
    def honest(self) -> bool:
        return not self.claimed.startswith("wrong")

    def run(self, url: str) -> Answer:
        content = self.bundle.content
        headers = self._claim(content)
        if self.framing == "form":
            content = FORM_HEAD + content + FORM_TAIL
            headers["Content-Type"] = f"multipart/form-data; boundary={BOUNDARY}"
        if self.framing == "chunked":
            content = _chunked(content)
            headers["Transfer-Encoding"] = "chunked"
        else:
            headers["Content-Length"] = str(len(content))
        return _Client(url, self.manner).ask("POST", "/upload", headers, content)

    def _claim(self, content: bytes) -> dict[str, str]:
        other = b"another bundle" if self.claimed.startswith("wrong") else content
        proof = sign(self.bundle.key, other)
        if self.claimed == "hmac":
            return {"X-HMAC": proof["X-HMAC"].upper()}
        if self.claimed in ("key", "wrong hmac"):
            return proof
        if self.claimed in ("digest", "wrong digest"):
            digest = base64.b64encode(hashlib.sha256(other).digest()).decode()
            return {"Content-Digest": f"sha-256=:{digest}:"}
        return {}


@dataclass(frozen=True)
class Download:
    """Of all of a bundle, or of the bytes from `first` to `last`; `method` HEAD of none."""

    bundle_id: str
    bundle: Bundle
    proven: Proven = "right"
    part: tuple[int, int] | None = None
    manner: Manner = Manner()
    method: Method = "GET"

    @property
    def wanted(self) -> bytes:
        content = self.bundle.content
        if self.part is None or self.method == "HEAD":
            return content
        first, last = self.part
        return content[first : last + 1]

    def run(self, url: str) -> Answer:
        headers = _proof(self.bundle, self.proven)
        if self.part is not None:
            headers["Range"] = "bytes={}-{}".format(*self.part)
        return _Client(url, self.manner).ask(self.method, f"/files/{self.bundle_id}", headers)


@dataclass(frozen=True)
class Delete:
    bundle_id: str
    bundle: Bundle
    proven: Proven = "right"
    manner: Manner = Manner()

    def run(self, url: str) -> Answer:
        headers = _proof(self.bundle, self.proven)
        return _Client(url, self.manner).ask("DELETE", f"/files/{self.bundle_id}", headers)


Transfer = Upload | Download | Delete

BOUNDARY = "----a-boundary"
FORM_HEAD = (
    f"--{BOUNDARY}\r\n"
    'Content-Disposition: form-data; name="file"; filename="bundle"\r\n'
    "Content-Type: application/octet-stream\r\n\r\n"
).encode()
FORM_TAIL = f"\r\n--{BOUNDARY}--\r\n".encode()


def _chunked(content: bytes) -> bytes:
    """In chunks of an odd size, which no buffer has."""
    encoded = bytearray()
    for at in range(0, len(content), 50_021):
        piece = content[at : at + 50_021]
        encoded += b"%x\r\n%b\r\n" % (len(piece), piece)
    return bytes(encoded + b"0\r\n\r\n")


def _proof(bundle: Bundle, proven: Proven) -> dict[str, str]:
    right = sign(bundle.key, bundle.content)
    match proven:
        case "right":
            return right
        case "other key":
            return {**right, "X-SIGNING-KEY": "another key"}
        case "other hmac":
            return sign(bundle.key, b"another bundle")
        case "half":
            return {"X-HMAC": right["X-HMAC"]}
        case "none":
            return {}


class _Client:
    """A client that asks once, in its manner; nothing it does takes longer than a minute."""

    def __init__(self, url: str, manner: Manner) -> None:
        self._url = url
        self._manner = manner

    def ask(self, method: str, path: str, headers: Mapping[str, str], body: bytes = b"") -> Answer:
        lines = [f"{method} {path} HTTP/1.1", "Host: x"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        head = "\r\n".join([*lines, "", ""]).encode()
        try:
            connection = dial(self._url)
        except ConnectionError:
            return Answer()
        with connection:
            connection.settimeout(60)
            answer = self._converse(connection, method, head, body)
            if self._manner.kind == "resets":
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        return answer

    def _converse(self, connection: socket.socket, method: str, head: bytes, body: bytes) -> Answer:
        enough = body if self._manner.kind in ("good", "slow") else body[: self._cut(len(body))]
        with suppress(ConnectionError):  # An answer may have come before.
            connection.sendall(head)
            for at in range(0, len(enough), PIECE):
                if select.select([connection], [], [], self._pause)[0]:
                    enough = enough[:at]
                    break
                connection.sendall(enough[at : at + PIECE])
        if self._manner.kind == "half-closes":
            with suppress(OSError):
                connection.shutdown(socket.SHUT_WR)
        sent_all = len(enough) == len(body)
        if not self._manner.listens and (body or method == "DELETE"):
            return Answer(sent_all=sent_all)
        return self._listen(connection, method, sent_all=sent_all)

    def _listen(self, connection: socket.socket, method: str, *, sent_all: bool) -> Answer:
        status, headers, received, whole = 0, dict[str, str](), bytearray(), False
        response = HTTPResponse(connection, method=method)
        with response, suppress(ConnectionError, HTTPException):
            response.begin()
            status = response.status
            headers = {name.lower(): value for name, value in response.headers.items()}
            for piece in self._pieces(response):
                received += piece
            whole = not response.length
        return Answer(status, headers, bytes(received), whole, sent_all)

    def _pieces(self, response: HTTPResponse) -> Iterator[bytes]:
        left = response.length or 0
        if not self._manner.listens:
            left = self._cut(left)
        while left and (piece := response.read1(min(left, PIECE))):
            left -= len(piece)
            yield piece
            time.sleep(self._pause)

    def _cut(self, size: int) -> int:
        return int(size * self._manner.at)

    @property
    def _pause(self) -> float:
        return 0.002 if self._manner.kind == "slow" else 0
