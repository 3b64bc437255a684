"""Calls to S3: which failures are logged, and how a response body is read."""

import asyncio
import socket
import time
from typing import Any

import aiohttp
import pytest
import uvloop
from aiobotocore.response import StreamingBody
from botocore.exceptions import (
    ClientError,
    EndpointConnectionError,
    IncompleteReadError,
    NoCredentialsError,
)

from service import __version__
from service.bundles.buffers import MAX_REPLAY_SIZE
from service.bundles.memory import MAX_CHUNK, Memory
from service.s3.calls import BodyInterrupted, S3Calls
from service.s3.client import connect
from service.telemetry.metrics import Metrics
from tests.support.proxy import Fault, Proxy, Respond
from tests.support.services.thread import StartService
from tests.support.stores import Store
from tests.support.stores.access import aws_environment
from tests.support.stores.buckets import new_bucket


def client_error(code: str, status: int = 403) -> ClientError:
    metadata: Any = {"HTTPStatusCode": status}
    return ClientError({"Error": {"Code": code}, "ResponseMetadata": metadata}, "GetObject")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (client_error("AccessDenied"), "S3 refuses GetObject: AccessDenied; check the credentials"),
        (client_error("403"), "S3 refuses GetObject: AccessDenied; check the credentials"),
        (
            client_error("NoSuchBucket"),
            "S3 refuses GetObject: NoSuchBucket; create the bucket a-bucket",
        ),
        (client_error("404"), "S3 refuses GetObject: NoSuchBucket; create the bucket a-bucket"),
        (
            client_error("RequestTimeTooSkewed"),
            "S3 refuses GetObject: RequestTimeTooSkewed; set this",
        ),
        (client_error("SlowDown", 503), "S3 refuses GetObject: SlowDown; check the health"),
        (
            client_error("NotImplemented", 501),
            "S3 refuses GetObject: NotImplemented; this store does not offer it: run check",
        ),
        (
            NoCredentialsError(),
            "S3 client cannot send GetObject: NoCredentialsError; check the",
        ),
        (
            EndpointConnectionError(endpoint_url="http://a.example"),
            "S3 cannot be reached for GetObject: EndpointConnectionError; check AWS_ENDPOINT_URL",
        ),
        (
            IncompleteReadError(actual_bytes=1, expected_bytes=2),
            "S3 cannot be reached for GetObject: IncompleteReadError; check AWS_ENDPOINT_URL_S3",
        ),
        (
            TimeoutError(),
            "S3 cannot be reached for GetObject: TimeoutError; check AWS_ENDPOINT",
        ),
    ],
)
def test_failure_is_logged_with_its_cause_and_remedy(
    error: Exception, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    S3Calls("a-bucket", Metrics()).log_failure("GetObject", error)
    [logged] = caplog.messages
    assert logged.startswith(message)


def test_same_cause_is_logged_again_only_after_the_log_interval(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = S3Calls("a-bucket", Metrics())
    for operation in ("GetObject", "PutObject", "GetObject"):
        calls.log_failure(operation, TimeoutError())
    assert len(caplog.messages) == 1
    calls.log_failure("GetObject", client_error("AccessDenied"))
    assert len(caplog.messages) == 2
    monkeypatch.setattr("service.s3.calls.LOG_INTERVAL", -1.0)
    calls.log_failure("GetObject", client_error("SlowDown"))
    calls.log_failure("GetObject", client_error("SlowDown"))
    assert len(caplog.messages) == 4


def test_late_end_of_a_chunk_is_not_the_end_of_the_body() -> None:
    """The line end of a chunk may arrive later than its data."""
    chunk_read = [asyncio.Event(), asyncio.Event()]

    async def respond(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello")
        await chunk_read[0].wait()
        writer.write(b"\r\n5\r\nworld")
        await chunk_read[1].wait()
        writer.write(b"\r\n0\r\n\r\n")
        writer.close()

    async def test() -> None:
        calls = S3Calls("a-bucket", Metrics())
        async with await asyncio.start_server(respond, "127.0.0.1", 0) as server:
            host, port = server.sockets[0].getsockname()
            async with (
                aiohttp.ClientSession() as session,
                session.get(f"http://{host}:{port}") as response,
            ):
                body = StreamingBody(response, None)  # type: ignore[arg-type]
                for event, content in zip(chunk_read, (b"hello", b"world"), strict=True):
                    assert await calls.read_chunk(body) == content
                    event.set()
                with pytest.raises(BodyInterrupted):
                    await calls.read_chunk(body)

    asyncio.run(asyncio.wait_for(test(), 10))


def test_upload_that_cannot_be_sent_again_fails_with_the_error_of_s3(
    store: Store, start_service: StartService, caplog: pytest.LogCaptureFixture
) -> None:
    """It is larger than the replay buffer. The log must not blame the credentials."""
    with Proxy(store.endpoint_url) as proxy:
        service = start_service(endpoint_url=proxy.url)
        proxy.faults.append(Fault("PutObject", Respond(503, "SlowDown")))
        response = service.http.post("/upload", content=bytes(MAX_REPLAY_SIZE + (1 << 20)))
        assert response.json()["code"] == "storage_unavailable"
        assert [request.operation for request in proxy.requests].count("PutObject") == 1
    assert "S3 refuses PutObject: SlowDown" in caplog.text
    assert "UnseekableStreamError" not in caplog.text


def test_requests_to_s3_name_the_service(store: Store, start_service: StartService) -> None:
    """So an operator can tell them from others in S3's access log."""
    with Proxy(store.endpoint_url) as proxy:
        service = start_service(endpoint_url=proxy.url)
        service.upload(b"content")
        user_agents = {request.headers["user-agent"] for request in proxy.requests}
    assert {agent.split()[0] for agent in user_agents} == {f"message-history-server/{__version__}"}


def test_s3_client_reads_little_ahead(store: Store, s3: Any) -> None:
    """Otherwise slow downloads take more memory than their windows."""
    bucket = new_bucket(s3)
    s3.put_object(Bucket=bucket, Key="a", Body=bytes(4 << 20))
    memory = Memory(256 << 20, part_size=8 << 20, timeout=1)

    async def count_bytes_read_ahead() -> int:
        async with connect(memory=memory) as client:
            response = await client.get_object(Bucket=bucket, Key="a")
            body: Any = response["Body"]
            sizes = [-1, 0]
            while sizes[-1] != sizes[-2]:
                sizes.append(body.content.total_bytes)
                await asyncio.sleep(0.2)
            body.close()
        return sizes[-1]

    with aws_environment(store):
        assert uvloop.run(count_bytes_read_ahead()) <= MAX_CHUNK + (32 << 10)


def test_client_closes_although_the_store_does_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """An upload is still being sent then, as at the end of a shutdown."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{port}")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")

        async def main() -> float:
            async with connect("us-east-1") as client:
                put = asyncio.create_task(
                    client.put_object(Bucket="bucket", Key="key", Body=bytes(32 << 20))
                )
                await asyncio.sleep(1)
                assert not put.done()
                started = time.monotonic()
            seconds = time.monotonic() - started
            put.cancel()
            await asyncio.gather(put, return_exceptions=True)
            return seconds

        assert uvloop.run(main()) < 5
