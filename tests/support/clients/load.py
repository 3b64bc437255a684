"""Honest clients by the dozen: uploads and downloads as coroutines, each at a pace of its own."""

import asyncio
import os
import socket
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from typing import Self
from urllib.parse import urlsplit

import httpx

from tests.support.clients.signing import sign

KEY = "a signing key"
PIECE = 64 * 1024
MIB = 1 << 20
PATIENCE = 280.0
"""Seconds after which a transfer is given up."""

BROKEN = 0
"""The status of a transfer whose answer did not arrive whole."""


@dataclass(frozen=True)
class Answer:
    """What came of a transfer; `body` is as long as its head said, or the status `BROKEN`."""

    status: int
    head: bytes = b""
    body: bytes = b""

    @classmethod
    async def read(cls, reader: asyncio.StreamReader, *, seconds: float = 0) -> Self:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().split(b"content-length: ")[1].split()[0])
            body = bytearray()
            pace = _Pace(length, seconds)
            while len(body) < length:
                body += await reader.readexactly(min(PIECE, length - len(body)))
                await pace.keep(len(body))
        except (ConnectionError, asyncio.IncompleteReadError):
            return cls(BROKEN)
        return cls(int(head.split()[1]), head, bytes(body))


async def upload(url: str, bundle: bytes, *, seconds: float = 0) -> Answer:
    """Upload in chunks, but stop where the answer comes first, as good clients do."""
    async with asyncio.timeout(PATIENCE):
        reader, writer = await _connect(url)
        answer = asyncio.create_task(Answer.read(reader))
        sending = asyncio.create_task(_send(writer, bundle, _Pace(len(bundle), seconds)))
        try:
            await asyncio.wait((answer, sending), return_when=asyncio.FIRST_COMPLETED)
            return await answer
        finally:
            answer.cancel()
            sending.cancel()
            writer.close()


async def _send(writer: asyncio.StreamWriter, bundle: bytes, pace: "_Pace") -> None:
    with suppress(ConnectionError):
        writer.write(b"POST /upload HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        for at in range(0, len(bundle), PIECE):
            piece = bundle[at : at + PIECE]
            writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
            await writer.drain()
            await pace.keep(at + len(piece))
        writer.write(b"0\r\n\r\n")
        await writer.drain()


async def download(url: str, bundle_id: str, bundle: bytes, *, seconds: float = 0) -> Answer:
    """Fetch with the proof of `bundle`, and no faster than at this pace also into the kernel."""
    proof = "".join(f"{name}: {value}\r\n" for name, value in sign(KEY, bundle).items())
    async with asyncio.timeout(PATIENCE):
        reader, writer = await _connect(url)
        try:
            writer.write(f"GET /files/{bundle_id} HTTP/1.1\r\nHost: x\r\n{proof}\r\n".encode())
            return await Answer.read(reader, seconds=seconds)
        finally:
            writer.close()


async def _connect(url: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    address = urlsplit(url)
    connection = socket.socket()
    connection.settimeout(0)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, PIECE)
    await asyncio.get_running_loop().sock_connect(connection, ("127.0.0.1", address.port))
    return await asyncio.open_connection(sock=connection)


class _Pace:
    """Spreads `length` bytes over so many seconds."""

    def __init__(self, length: int, seconds: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._began = self._loop.time()
        self._each = seconds / max(length, 1)

    async def keep(self, moved: int) -> None:
        """Wait until it is time to have moved so much."""
        await asyncio.sleep(max(0, self._began + moved * self._each - self._loop.time()))


async def rush(url: str) -> Counter[str]:
    """Send 200 uploads of 12 MiB and 200 first downloads of 7 MiB at once; count the outcomes."""
    outcomes: Counter[str] = Counter()
    small, large = os.urandom(7 * MIB), os.urandom(12 * MIB)
    proof = sign(KEY, small)
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=280, trust_env=False, limits=limits) as http:
        headers = {"X-HMAC": proof["X-HMAC"]}
        answers = [await http.post("/upload", content=small, headers=headers) for _ in range(200)]

        async def up() -> None:
            answer = await upload(url, large)
            refused = answer.status == 503 and b"\r\nretry-after: " in answer.head
            known = answer.status == 200 or refused
            outcomes[f"upload {answer.status}" if known else "other"] += 1

        async def down(bundle_id: str) -> None:
            answer = await http.get(f"/files/{bundle_id}", headers=proof)
            whole = answer.status_code == 200 and answer.content == small
            known = whole or (answer.status_code == 503 and "Retry-After" in answer.headers)
            outcomes[f"download {answer.status_code}" if known else "other"] += 1

        await asyncio.gather(
            *(up() for _ in range(200)), *(down(answer.text) for answer in answers)
        )
    return outcomes
