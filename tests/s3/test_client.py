"""What is said of S3's failures: once, with the cause and what to do; and what is read of it."""

import asyncio

import aiohttp
import pytest
from botocore.exceptions import (
    ClientError,
    EndpointConnectionError,
    IncompleteReadError,
    NoCredentialsError,
)

from service.s3.calls import BodyInterrupted, S3Calls
from service.telemetry.metrics import Metrics


def refusal(code: str) -> ClientError:
    return ClientError({"Error": {"Code": code}}, "GetObject")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (refusal("AccessDenied"), "S3 refuses GetObject: AccessDenied; check the credentials"),
        (refusal("403"), "S3 refuses GetObject: AccessDenied; check the credentials"),
        (refusal("NoSuchBucket"), "S3 refuses GetObject: NoSuchBucket; create the bucket a-bucket"),
        (refusal("404"), "S3 refuses GetObject: NoSuchBucket; create the bucket a-bucket"),
        (refusal("RequestTimeTooSkewed"), "S3 refuses GetObject: RequestTimeTooSkewed; set this"),
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
def test_a_cause_comes_with_what_to_do(
    error: Exception, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    S3Calls("a-bucket", Metrics()).log_failure("GetObject", error)
    [said] = caplog.messages
    assert said.startswith(words)


def test_a_cause_is_said_again_after_a_while(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = S3Calls("a-bucket", Metrics())
    for operation in ("GetObject", "PutObject", "GetObject"):
        calls.log_failure(operation, TimeoutError())
    assert len(caplog.messages) == 1
    calls.log_failure("GetObject", refusal("AccessDenied"))
    assert len(caplog.messages) == 2
    monkeypatch.setattr("service.s3.calls.LOG_INTERVAL", -1.0)
    calls.log_failure("GetObject", refusal("SlowDown"))
    calls.log_failure("GetObject", refusal("SlowDown"))
    assert len(caplog.messages) == 4


def test_a_chunk_that_ends_late_is_not_the_end() -> None:
    """Of a body that comes in chunks of HTTP's, whatever is read between a chunk and its end."""
    read = [asyncio.Event(), asyncio.Event()]

    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello")
        await read[0].wait()
        writer.write(b"\r\n5\r\nworld")
        await read[1].wait()
        writer.write(b"\r\n0\r\n\r\n")
        writer.close()

    async def test() -> None:
        calls = S3Calls("a-bucket", Metrics())
        async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
            host, port = server.sockets[0].getsockname()
            async with (
                aiohttp.ClientSession() as session,
                session.get(f"http://{host}:{port}") as body,
            ):
                for event, words in zip(read, (b"hello", b"world"), strict=True):
                    assert await calls.read_chunk(body) == words  # type: ignore[arg-type]
                    event.set()
                with pytest.raises(BodyInterrupted):
                    await calls.read_chunk(body)  # type: ignore[arg-type]

    asyncio.run(asyncio.wait_for(test(), 10))
