"""How much of a response the client reads ahead, with and without TLS."""

import asyncio
import ssl
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import uvloop

from service.bundles.memory import MAX_CHUNK
from service.s3 import reads
from service.s3.bodies import RequestBody
from service.s3.client import CLIENT_CONFIG, connect

SIZE = 8 << 20
READ_SIZES = (16 << 10, 256 << 10)
MAX_BUFFERED = 16 << 10
"""Bytes of a response after which nothing more is read."""


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with a certificate for localhost and its key."""
    path = tmp_path_factory.mktemp("tls") / "certificate.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 1 "
    command += "-subj /CN=localhost -addext subjectAltName=DNS:localhost "
    command += f"-keyout {path}.key -out {path}"
    subprocess.run(command.split(), check=True, capture_output=True)
    path.write_text(path.read_text() + Path(f"{path}.key").read_text())
    return path


@dataclass
class FixedChunks:
    size: int
    slow_transfers: int = 0

    def chunk_size(self) -> int:
        return self.size


async def serve_object(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b'HTTP/1.1 200 OK\r\nETag: "1"\r\nContent-Length: %d\r\n\r\n' % SIZE)
        writer.write(bytes(SIZE))
        await writer.drain()
    except ConnectionError:
        pass
    finally:
        writer.close()


async def read_object(read_size: int) -> tuple[list[int], int]:
    """Read an object slowly at first. Return the bytes read ahead each time, and its size."""
    async with connect("us-east-1", memory=FixedChunks(read_size)) as client:
        response = await client.get_object(Bucket="bucket", Key="key")
        content: Any = response["Body"].content
        received, read_ahead = 0, list[int]()
        for _ in range(10):
            await asyncio.sleep(0.05)
            read_ahead.append(content.total_bytes - received)
            received += len(await content.readany())
        while chunk := await content.readany():
            received += len(chunk)
        response["Body"].close()
    return read_ahead, received


@pytest.mark.parametrize("read_size", READ_SIZES)
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "TLS"])
@pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def test_little_of_a_body_is_read_ahead(
    certificate: Path,
    monkeypatch: pytest.MonkeyPatch,
    run: Callable[[Any], tuple[list[int], int]],
    read_size: int,
    *,
    tls: bool,
) -> None:
    """The test fails if aiohttp changes what `service.s3.reads` relies on."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    monkeypatch.setattr("aiobotocore.httpsession.get_cert_path", lambda _: str(certificate))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")

    async def test() -> tuple[list[int], int]:
        start = partial(asyncio.start_server, serve_object, "localhost", 0)
        async with await start(ssl=context if tls else None) as server:
            port = server.sockets[0].getsockname()[1]
            scheme = "https" if tls else "http"
            monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"{scheme}://localhost:{port}")
            return await asyncio.wait_for(read_object(read_size), 20)

    read_ahead, received = run(test())
    print([size // 1024 for size in read_ahead])
    assert received == SIZE
    assert 0 < max(read_ahead) <= MAX_BUFFERED + read_size


def test_client_is_slow_while_it_takes_small_chunks_slowly(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It counts as slow once it holds no large chunks. Later reads are large again."""
    monkeypatch.setattr(reads, "SLOW_AFTER", 0.05)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    memory = FixedChunks(MAX_CHUNK)

    async def test() -> None:
        async with await asyncio.start_server(serve_object, "localhost", 0) as server:
            port = server.sockets[0].getsockname()[1]
            monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://localhost:{port}")
            async with connect("us-east-1", memory=memory) as client:
                body = (await client.get_object(Bucket="bucket", Key="key"))["Body"]
                content: Any = body.content
                slow, sizes = list[int](), list[int]()
                for _ in range(8):
                    await asyncio.sleep(0.1)
                    slow.append(memory.slow_transfers)
                    sizes.append(len(await content.readany()))
                assert slow[0] == 0, "it still holds a large chunk"
                assert slow[-1] == 1
                assert sizes[0] > reads.SLOW_READ
                assert max(sizes[-3:]) <= reads.SLOW_READ
                assert memory.slow_transfers == 0, "it does not wait now"
                while chunk := await content.readany():
                    sizes.append(len(chunk))
                assert max(sizes[-20:]) > reads.SLOW_READ
                assert memory.slow_transfers == 0

                response = await client.get_object(Bucket="bucket", Key="key")
                for _ in range(8):
                    await asyncio.sleep(0.1)
                    await response["Body"].content.readany()
                await asyncio.sleep(0.1)
                assert memory.slow_transfers == 1
                response["Body"].close()
                await asyncio.sleep(0)
                assert memory.slow_transfers == 0

    uvloop.run(asyncio.wait_for(test(), 20))


class KeepAliveServer:
    """Sends an object of `SIZE` bytes for each GET, and takes a body for each PUT."""

    def __init__(self) -> None:
        self.methods: list[list[str]] = []
        """The methods of the requests on each connection."""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        methods: list[str] = []
        self.methods.append(methods)
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
                methods.append(head.split()[0])
                if methods[-1] == "put":
                    _, _, length = head.partition("\r\ncontent-length: ")
                    await reader.readexactly(int(length.split()[0]))
                    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
                else:
                    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % SIZE)
                    writer.write(bytes(SIZE))
        writer.close()


@dataclass
class SlowBody:
    """A request body that arrives one byte at a time."""

    size: int
    interval: float

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for _ in range(self.size):
            await asyncio.sleep(self.interval)
            yield b"a"

    def rewind(self) -> None: ...

    def on_arrival(self, callback: Callable[[int], None]) -> None: ...


def test_timeout_of_a_download_does_not_end_a_later_upload(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The upload uses the same connection, and waits longer than the timeout for its client.

    aiohttp starts the timeout when it reads on. If it has paused in the last chunk, the body is at
    its end then, and the connection is free for other requests.
    """
    timeout = 1
    monkeypatch.setitem(CLIENT_CONFIG, "read_timeout", timeout)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    s3 = KeepAliveServer()

    async def test() -> int:
        async with await asyncio.start_server(s3.serve, "localhost", 0) as server:
            port = server.sockets[0].getsockname()[1]
            monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://localhost:{port}")
            async with connect("us-east-1", memory=FixedChunks(SIZE)) as client:
                body = (await client.get_object(Bucket="bucket", Key="key"))["Body"]
                content: Any = body.content
                received = size = 0
                while received < SIZE:
                    await asyncio.sleep(0.05)  # So the chunks are large.
                    size = len(await content.readany())
                    received += size
                assert size > MAX_BUFFERED, "aiohttp has paused in the last chunk"
                body.close()
                upload = SlowBody(20, timeout / 10)
                request_body: Any = RequestBody(upload)
                stored = await client.put_object(
                    Bucket="bucket", Key="key", Body=request_body, ContentLength=upload.size
                )
        return stored["ResponseMetadata"]["RetryAttempts"]

    assert uvloop.run(test()) == 0
    assert s3.methods == [["get", "put"]]
