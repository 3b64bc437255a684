"""Single transfers by clients that behave well or badly, each on its own connection.

An `Upload`, `Download` or `Delete` is a plain value. `run` does it and returns the response.
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
from tests.support.clients.sockets import connect_to

CHUNK_SIZE = 64 * 1024

Kind = Literal["good", "slow", "leaves", "resets", "half-closes"]
Framing = Literal["length", "chunked", "form"]
Claims = Literal["nothing", "hmac", "key", "digest", "wrong hmac", "wrong digest"]
Proof = Literal["right", "other key", "other hmac", "half", "none"]
Method = Literal["GET", "HEAD"]


@dataclass(frozen=True)
class Behaviour:
    """How a client behaves. "good" completes the transfer, "slow" too, with pauses between chunks.

    The others stop after the fraction `stop_at` (0 … 1) of a body. "leaves" closes the connection,
    "resets" resets it, and "half-closes" sends nothing more but reads the response.
    """

    kind: Kind = "good"
    stop_at: float = 1.0

    @property
    def reads_response(self) -> bool:
        return self.kind not in ("leaves", "resets")


@dataclass(frozen=True)
class Bundle:
    """A bundle of pseudo-random bytes, defined by their seed and number."""

    seed: int
    size: int

    @property
    def content(self) -> bytes:
        return random_bytes(self.seed, self.size)

    @property
    def key(self) -> str:
        return f"key {self.seed}"


@dataclass(frozen=True)
class Response:
    """What a client received. `status` is 0 if there was no response.

    `complete` means that the body has the declared length. `sent_all` means that the client sent
    its whole request.
    """

    status: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = field(default=b"", repr=False)
    complete: bool = False
    sent_all: bool = False

    @property
    def text(self) -> str:
        return self.body.decode()


@dataclass(frozen=True)
class Upload:
    bundle: Bundle
    framing: Framing = "length"
    claims: Claims = "nothing"
    behaviour: Behaviour = Behaviour()

    @property
    def has_true_claims(self) -> bool:
        return not self.claims.startswith("wrong")

    def run(self, url: str) -> Response:
        content = self.bundle.content
        headers = self._claim_headers(content)
        if self.framing == "form":
            content = FORM_HEAD + content + FORM_TAIL
            headers["Content-Type"] = f"multipart/form-data; boundary={BOUNDARY}"
        if self.framing == "chunked":
            content = _chunked(content)
            headers["Transfer-Encoding"] = "chunked"
        else:
            headers["Content-Length"] = str(len(content))
        return _Client(url, self.behaviour).send("POST", "/upload", headers, content)

    def _claim_headers(self, content: bytes) -> dict[str, str]:
        claimed = b"another bundle" if self.claims.startswith("wrong") else content
        proof = sign(self.bundle.key, claimed)
        if self.claims == "hmac":
            return {"X-HMAC": proof["X-HMAC"].upper()}
        if self.claims in ("key", "wrong hmac"):
            return proof
        if self.claims in ("digest", "wrong digest"):
            digest = base64.b64encode(hashlib.sha256(claimed).digest()).decode()
            return {"Content-Digest": f"sha-256=:{digest}:"}
        return {}


@dataclass(frozen=True)
class Download:
    """A download of a bundle, or of the bytes from first to last. HEAD transfers no bytes."""

    bundle_id: str
    bundle: Bundle
    proof: Proof = "right"
    byte_range: tuple[int, int] | None = None
    behaviour: Behaviour = Behaviour()
    method: Method = "GET"

    @property
    def expected_body(self) -> bytes:
        content = self.bundle.content
        if self.byte_range is None or self.method == "HEAD":
            return content
        first, last = self.byte_range
        return content[first : last + 1]

    def run(self, url: str) -> Response:
        headers = _proof_headers(self.bundle, self.proof)
        if self.byte_range is not None:
            headers["Range"] = "bytes={}-{}".format(*self.byte_range)
        return _Client(url, self.behaviour).send(self.method, f"/files/{self.bundle_id}", headers)


@dataclass(frozen=True)
class Delete:
    bundle_id: str
    bundle: Bundle
    proof: Proof = "right"
    behaviour: Behaviour = Behaviour()

    def run(self, url: str) -> Response:
        headers = _proof_headers(self.bundle, self.proof)
        return _Client(url, self.behaviour).send("DELETE", f"/files/{self.bundle_id}", headers)


Transfer = Upload | Download | Delete

BOUNDARY = "----a-boundary"
FORM_HEAD = (
    f"--{BOUNDARY}\r\n"
    'Content-Disposition: form-data; name="file"; filename="bundle"\r\n'
    "Content-Type: application/octet-stream\r\n\r\n"
).encode()
FORM_TAIL = f"\r\n--{BOUNDARY}--\r\n".encode()


def _chunked(content: bytes) -> bytes:
    """Encode in chunks of a size that is no multiple or fraction of any buffer's."""
    encoded = bytearray()
    for start in range(0, len(content), 50_021):
        chunk = content[start : start + 50_021]
        encoded += b"%x\r\n%b\r\n" % (len(chunk), chunk)
    return bytes(encoded + b"0\r\n\r\n")


def _proof_headers(bundle: Bundle, proof: Proof) -> dict[str, str]:
    right = sign(bundle.key, bundle.content)
    match proof:
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
    """A client that sends one request. Each operation on its socket may take a minute at most."""

    def __init__(self, url: str, behaviour: Behaviour) -> None:
        self._url = url
        self._behaviour = behaviour

    def send(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes = b""
    ) -> Response:
        lines = [f"{method} {path} HTTP/1.1", "Host: x"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        head = "\r\n".join([*lines, "", ""]).encode()
        try:
            connection = connect_to(self._url)
        except ConnectionError:
            return Response()
        with connection:
            connection.settimeout(60)
            response = self._exchange(connection, method, head, body)
            if self._behaviour.kind == "resets":
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        return response

    def _exchange(
        self, connection: socket.socket, method: str, head: bytes, body: bytes
    ) -> Response:
        to_send = (
            body
            if self._behaviour.kind in ("good", "slow")
            else body[: self._stop_position(len(body))]
        )
        with suppress(ConnectionError):  # There may be an early response.
            connection.sendall(head)
            for start in range(0, len(to_send), CHUNK_SIZE):
                if select.select([connection], [], [], self._pause)[0]:
                    to_send = to_send[:start]
                    break
                connection.sendall(to_send[start : start + CHUNK_SIZE])
        if self._behaviour.kind == "half-closes":
            with suppress(OSError):
                connection.shutdown(socket.SHUT_WR)
        sent_all = len(to_send) == len(body)
        if not self._behaviour.reads_response and (body or method == "DELETE"):
            return Response(sent_all=sent_all)
        return self._receive(connection, method, sent_all=sent_all)

    def _receive(self, connection: socket.socket, method: str, *, sent_all: bool) -> Response:
        status, headers, received, complete = 0, dict[str, str](), bytearray(), False
        response = HTTPResponse(connection, method=method)
        with response, suppress(ConnectionError, HTTPException):
            response.begin()
            status = response.status
            headers = {name.lower(): value for name, value in response.headers.items()}
            for chunk in self._chunks(response):
                received += chunk
            complete = not response.length
        return Response(status, headers, bytes(received), complete, sent_all)

    def _chunks(self, response: HTTPResponse) -> Iterator[bytes]:
        remaining = response.length or 0
        if not self._behaviour.reads_response:
            remaining = self._stop_position(remaining)
        while remaining and (chunk := response.read1(min(remaining, CHUNK_SIZE))):
            remaining -= len(chunk)
            yield chunk
            time.sleep(self._pause)

    def _stop_position(self, size: int) -> int:
        return int(size * self._behaviour.stop_at)

    @property
    def _pause(self) -> float:
        return 0.002 if self._behaviour.kind == "slow" else 0
