"""Many well-behaved clients: uploads and downloads as coroutines, each with its own duration."""

import asyncio
import os
import socket
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Self
from urllib.parse import urlsplit

import httpx

from tests.support.clients.signing import sign
from tests.support.clients.sockets import SEGMENT_SIZE

KEY = "a signing key"
CHUNK_SIZE = 64 * 1024
MIB = 1 << 20
TIMEOUT = 280.0
"""Seconds that a transfer may take."""

INCOMPLETE = 0
"""The status of a transfer whose response did not arrive, or not completely."""


@dataclass(frozen=True)
class Response:
    """A complete response, with as many bytes as its head declares, or the status `INCOMPLETE`."""

    status: int
    head: bytes = b""
    body: bytes = b""

    @classmethod
    async def read(cls, reader: asyncio.StreamReader, *, duration: float = 0) -> Self:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().split(b"content-length: ")[1].split()[0])
            body = bytearray()
            throttle = _Throttle(length, duration)
            while len(body) < length:
                body += await reader.readexactly(min(CHUNK_SIZE, length - len(body)))
                await throttle.wait(len(body))
        except (ConnectionError, asyncio.IncompleteReadError):
            return cls(INCOMPLETE)
        return cls(int(head.split()[1]), head, bytes(body))


async def upload(
    url: str,
    bundle: bytes,
    *,
    duration: float = 0,
    chunked: bool = True,
    chunk_size: int = CHUNK_SIZE,
) -> Response:
    """Upload in chunks, or with a length. Stop when a response arrives, as good clients do."""
    async with asyncio.timeout(TIMEOUT):
        reader, writer = await _connect(url, slow=duration > 0)
        response = asyncio.create_task(Response.read(reader))
        throttle = _Throttle(len(bundle), duration)
        body = _chunks(bundle, chunk_size, throttle, chunked=chunked)
        sending = asyncio.create_task(
            _send(writer, b"Transfer-Encoding: chunked", body)
            if chunked
            else _send(writer, b"Content-Length: %d" % len(bundle), body)
        )
        try:
            await asyncio.wait((response, sending), return_when=asyncio.FIRST_COMPLETED)
            return await response
        finally:
            response.cancel()
            sending.cancel()
            writer.close()


async def _send(writer: asyncio.StreamWriter, framing: bytes, body: AsyncIterator[bytes]) -> None:
    with suppress(ConnectionError):
        writer.write(b"POST /upload HTTP/1.1\r\nHost: x\r\n%b\r\n\r\n" % framing)
        async for piece in body:
            writer.write(piece)
            await writer.drain()


async def _chunks(
    bundle: bytes, size: int, throttle: "_Throttle", *, chunked: bool
) -> AsyncIterator[bytes]:
    for start in range(0, len(bundle), size):
        chunk = bundle[start : start + size]
        yield b"%x\r\n%b\r\n" % (len(chunk), chunk) if chunked else chunk
        await throttle.wait(start + len(chunk))
    if chunked:
        yield b"0\r\n\r\n"


async def download(
    url: str, bundle_id: str, bundle: bytes | None = None, *, duration: float = 0
) -> Response:
    """Download with the proof of `bundle`, or without one.

    If it is slow, the receive buffer is small, so that the kernel reads little ahead of it.
    """
    headers = {} if bundle is None else sign(KEY, bundle)
    proof = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    async with asyncio.timeout(TIMEOUT):
        reader, writer = await _connect(url, slow=duration > 0)
        try:
            writer.write(f"GET /files/{bundle_id} HTTP/1.1\r\nHost: x\r\n{proof}\r\n".encode())
            return await Response.read(reader, duration=duration)
        finally:
            writer.close()


async def _connect(url: str, *, slow: bool) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    address = urlsplit(url)
    connection = socket.socket()
    connection.settimeout(0)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, SEGMENT_SIZE)
    if slow:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, CHUNK_SIZE)
    await asyncio.get_running_loop().sock_connect(connection, ("127.0.0.1", address.port))
    return await asyncio.open_connection(sock=connection)


class _Throttle:
    """Spreads the transfer of `length` bytes over `duration` seconds."""

    def __init__(self, length: int, duration: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._started = self._loop.time()
        self._seconds_per_byte = duration / max(length, 1)

    async def wait(self, transferred: int) -> None:
        """Wait until this number of bytes is due."""
        due = self._started + transferred * self._seconds_per_byte
        await asyncio.sleep(max(0, due - self._loop.time()))


async def send_burst(url: str) -> Counter[str]:
    """Send 200 uploads of 12 MiB and 200 first downloads of 7 MiB at once; count the results."""
    results: Counter[str] = Counter()
    small, large = os.urandom(7 * MIB), os.urandom(12 * MIB)
    proof = sign(KEY, small)
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=280, trust_env=False, limits=limits) as http:
        headers = {"X-HMAC": proof["X-HMAC"]}
        uploads = [await http.post("/upload", content=small, headers=headers) for _ in range(200)]

        async def send_upload() -> None:
            response = await upload(url, large)
            refused = response.status == 503 and b"\r\nretry-after: " in response.head
            expected = response.status == 200 or refused
            results[f"upload {response.status}" if expected else "other"] += 1

        async def send_download(bundle_id: str) -> None:
            response = await http.get(f"/files/{bundle_id}", headers=proof)
            complete = response.status_code == 200 and response.content == small
            refused = response.status_code == 503 and "Retry-After" in response.headers
            expected = complete or refused
            results[f"download {response.status_code}" if expected else "other"] += 1

        await asyncio.gather(
            *(send_upload() for _ in range(200)),
            *(send_download(response.text) for response in uploads),
        )
    return results
