"""The fault proxy does what it says, in front of moto and of stores that follow a script."""

import asyncio
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from typing import Any

import aioboto3
import boto3
import httpx
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError, ConnectionClosedError

from tests.clients import dial, read_all, read_exactly, until
from tests.proxy import (
    Delay,
    Drip,
    Fault,
    Proxy,
    Reset,
    ResetRequest,
    Respond,
    Stall,
    Swallow,
    Truncate,
    operation_name,
)
from tests.stores import Store

OBJECT = bytes(range(256)) * 2_000
GET = b"GET /bucket/object HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
PUT = b"PUT /bucket/put HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: %d\r\n\r\n"
FOREVER = 3_600


def options(url: str) -> dict[str, Any]:
    """A client of S3 that sends every request once."""
    return {
        "service_name": "s3",
        "endpoint_url": url,
        "aws_access_key_id": "test",
        "aws_secret_access_key": "test",
        "region_name": "us-east-1",
        "config": Config(
            retries={"total_max_attempts": 1}, request_checksum_calculation="when_required"
        ),
    }


@pytest.fixture(scope="module")
def moto(get_store: Callable[[str], Store]) -> Store:
    return get_store("moto")


@pytest.fixture(scope="module")
def behind(moto: Store) -> Iterator[Any]:
    """A client past the proxy; it has put an object that everyone may read."""
    with closing(boto3.client(**options(moto.endpoint_url))) as s3:
        s3.create_bucket(Bucket="bucket", ACL="public-read-write")
        s3.put_object(Bucket="bucket", Key="object", Body=OBJECT, ACL="public-read")
        yield s3


@pytest.fixture
def proxy(moto: Store, behind: Any) -> Iterator[Proxy]:
    with Proxy(moto.endpoint_url) as running:
        yield running


@pytest.fixture
def s3(proxy: Proxy) -> Iterator[Any]:
    with closing(boto3.client(**options(proxy.url))) as client:
        yield client


def keys(s3: Any) -> list[str]:
    return [found["Key"] for found in s3.list_objects_v2(Bucket="bucket")["Contents"]]


@contextmanager
def scripted(script: Callable[[socket.socket], object]) -> Iterator[str]:
    """A store that follows the script on each of its connections, then closes it."""

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection, suppress(ConnectionError):
                connection.settimeout(10)
                script(connection)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield "http://{}:{}".format(*listener.getsockname())
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def read_head(connection: socket.socket) -> bytes:
    head = bytearray()
    while not head.endswith(b"\r\n\r\n"):
        head += connection.recv(1)
    return bytes(head)


@pytest.mark.parametrize(
    ("method", "target", "headers", "name"),
    [
        ("GET", "/", [], "ListBuckets"),
        ("PUT", "/b", [], "CreateBucket"),
        ("PUT", "/b/", [], "CreateBucket"),
        ("HEAD", "/b", [], "HeadBucket"),
        ("DELETE", "/b", [], "DeleteBucket"),
        ("GET", "/b?prefix=p", [], "ListObjects"),
        ("GET", "/b?list-type=2&prefix=p", [], "ListObjectsV2"),
        ("GET", "/b?uploads&prefix=p", [], "ListMultipartUploads"),
        ("POST", "/b?delete", [], "DeleteObjects"),
        ("GET", "/b?lifecycle", [], "GetBucketLifecycleConfiguration"),
        ("PUT", "/b?lifecycle", [], "PutBucketLifecycleConfiguration"),
        ("DELETE", "/b?lifecycle", [], "DeleteBucketLifecycle"),
        ("PUT", "/b?publicAccessBlock", [], "PutPublicAccessBlock"),
        ("PUT", "/b/k/x", [], "PutObject"),
        ("PUT", "/b/k", ["x-amz-copy-source"], "CopyObject"),
        ("GET", "/b/k", ["range"], "GetObject"),
        ("HEAD", "/b/k", [], "HeadObject"),
        ("DELETE", "/b/k", [], "DeleteObject"),
        ("GET", "/b/k?tagging", [], "GetObjectTagging"),
        ("PUT", "/b/k?tagging=", [], "PutObjectTagging"),
        ("POST", "/b/k?uploads", [], "CreateMultipartUpload"),
        ("PUT", "/b/k?partNumber=1&uploadId=u", [], "UploadPart"),
        ("PUT", "/b/k?partNumber=1&uploadId=u", ["x-amz-copy-source"], "UploadPartCopy"),
        ("GET", "/b/k?uploadId=u", [], "ListParts"),
        ("POST", "/b/k?uploadId=u", [], "CompleteMultipartUpload"),
        ("DELETE", "/b/k?uploadId=u", [], "AbortMultipartUpload"),
        ("PATCH", "/b/k", [], "Unknown"),
    ],
)
def test_operations_have_s3s_own_names(
    method: str, target: str, headers: list[str], name: str
) -> None:
    assert operation_name(method, target, headers) == name


def test_everything_passes_and_is_on_record(proxy: Proxy, s3: Any) -> None:
    part = bytes(5 * 1024 * 1024)
    where = {"Bucket": "bucket", "Key": "passes"}
    upload = {**where, "UploadId": s3.create_multipart_upload(**where)["UploadId"]}
    etag = s3.upload_part(**upload, PartNumber=1, Body=part)["ETag"]
    s3.complete_multipart_upload(
        **upload, MultipartUpload={"Parts": [{"ETag": etag, "PartNumber": 1}]}
    )
    s3.head_object(**where)
    assert s3.get_object(**where)["Body"].read() == part
    s3.delete_object(**where)

    assert [(seen.operation, seen.status) for seen in proxy.requests] == [
        ("CreateMultipartUpload", 200),
        ("UploadPart", 200),
        ("CompleteMultipartUpload", 200),
        ("HeadObject", 200),
        ("GetObject", 200),
        ("DeleteObject", 204),
    ]
    assert all(seen.completed for seen in proxy.requests)
    assert proxy.requests[1].received == len(part)
    assert proxy.requests[3].sent == 0
    assert proxy.requests[4].sent == len(part)
    assert proxy.requests[4].target == "/bucket/passes"
    assert proxy.requests[4].headers["host"] == proxy.url.removeprefix("http://")


def test_a_client_that_waits_for_100_continue_gets_it(proxy: Proxy, behind: Any) -> None:
    async def put() -> None:
        async with aioboto3.Session().client(**options(proxy.url)) as s3:
            await s3.put_object(Bucket="bucket", Key="continued", Body=OBJECT, Tagging="a=b")
            with pytest.raises(ClientError, match="SlowDown"):
                await s3.put_object(Bucket="bucket", Key="refused", Body=OBJECT)

    proxy.faults.append(Fault("PutObject", Respond(503, "SlowDown"), after=1))
    asyncio.run(put())
    assert "continued" in keys(behind)
    assert "refused" not in keys(behind)
    for seen in proxy.requests:
        assert seen.headers["expect"] == "100-continue"
        assert seen.received >= len(OBJECT)


def test_heads_and_chunks_pass_as_they_are_for_as_long_as_the_store_keeps_a_connection() -> None:
    answer = b"HTTP/1.1 200 OK\r\nX-Case: Kept\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunks = b"3\r\nabc\r\n0\r\n\r\n"
    heads: list[bytes] = []

    def script(connection: socket.socket) -> None:
        heads.append(read_head(connection))
        connection.sendall(answer + chunks)

    with scripted(script) as url, Proxy(url) as proxy, dial(proxy.url) as connection:
        for _ in range(3):
            connection.sendall(GET)
            assert read_exactly(connection, len(answer + chunks)) == answer + chunks
        assert proxy.open_connections == 1
        assert all(seen.completed and seen.sent == 3 for seen in proxy.requests)
    assert heads == [GET] * 3


def test_an_answer_that_comes_before_the_bodys_end_arrives() -> None:
    def script(connection: socket.socket) -> None:
        read_head(connection)
        connection.sendall(b"HTTP/1.1 403 No\r\nContent-Length: 0\r\n\r\n")
        read_all(connection)

    with scripted(script) as url, Proxy(url) as proxy, dial(proxy.url) as connection:
        connection.sendall(PUT % 10 + b"early")
        assert read_head(connection).startswith(b"HTTP/1.1 403")
        connection.sendall(b" rest" + GET)
        assert read_head(connection).startswith(b"HTTP/1.1 403")
        assert [seen.received for seen in proxy.requests] == [10, 0]


def test_a_store_that_breaks_off_is_one_that_resets() -> None:
    def script(connection: socket.socket) -> None:
        read_head(connection)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nshort")

    with scripted(script) as url, Proxy(url) as proxy, dial(proxy.url) as connection:
        connection.sendall(GET)
        with pytest.raises(ConnectionResetError):
            read_all(connection)
        assert not proxy.requests[0].completed


def test_a_client_that_goes_has_gone_for_the_store() -> None:
    gone = threading.Event()

    def script(connection: socket.socket) -> None:
        read_head(connection)
        with suppress(ConnectionError):
            assert read_all(connection) == b""
        gone.set()

    with scripted(script) as url, Proxy(url) as proxy:
        with dial(proxy.url) as connection:
            connection.sendall(GET)
            until(lambda: proxy.open_connections == 1)
        assert gone.wait(5)
        until(lambda: proxy.open_connections == 0)
        assert proxy.requests[0].status is None


def test_who_does_not_read_is_not_read_for() -> None:
    size = 32 * 1024 * 1024
    taken: list[int] = []

    def script(connection: socket.socket) -> None:
        read_head(connection)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        sent = 0
        while sent < size and select.select([], [connection], [], 0.1)[1]:
            sent += connection.send(bytes(min(65_536, size - sent)))
        taken.append(sent)
        connection.sendall(bytes(size - sent))

    with scripted(script) as url, Proxy(url) as proxy, dial(proxy.url) as connection:
        connection.sendall(GET)
        until(lambda: bool(taken))
        assert taken[0] < size / 2
        read_head(connection)
        assert len(read_exactly(connection, size)) == size


def test_a_fault_strikes_when_it_is_due(proxy: Proxy) -> None:
    proxy.faults += [
        Fault("HeadObject", Respond(503), after=1, every=2, times=2),
        Fault("GetObject", Respond(500, "InternalError"), times=None),
        Fault(None, Respond(501), after=7),
    ]
    with httpx.Client(base_url=proxy.url) as client:
        heads = [client.head("/bucket/object").status_code for _ in range(7)]
        gets = [client.get("/bucket/object").status_code for _ in range(3)]
    assert heads == [200, 503, 200, 503, 200, 200, 200]
    assert gets == [500, 500, 500]
    assert [fault.struck for fault in proxy.faults] == [2, 3, 0]


def test_respond(proxy: Proxy, s3: Any, behind: Any) -> None:
    proxy.faults.append(Fault("PutObject", Respond(503, "SlowDown")))
    with pytest.raises(ClientError, match="SlowDown") as refused:
        s3.put_object(Bucket="bucket", Key="respond", Body=OBJECT)
    assert refused.value.response["ResponseMetadata"]["HTTPStatusCode"] == 503
    assert "respond" not in keys(behind)
    assert proxy.requests[0].received == len(OBJECT)
    assert proxy.requests[0].completed


def test_reset_of_a_request(proxy: Proxy, behind: Any) -> None:
    proxy.faults.append(Fault("PutObject", ResetRequest(after_bytes=1_000)))
    with dial(proxy.url) as connection:
        connection.sendall(PUT % 2_000 + bytes(1_000))
        with pytest.raises(ConnectionResetError):
            connection.recv(1)
    assert proxy.requests[0].received == 1_000
    assert proxy.requests[0].status is None
    assert "put" not in keys(behind)


@pytest.mark.parametrize("after_bytes", [0, 1, 100_000, len(OBJECT), len(OBJECT) + 1])
def test_reset_of_an_answer(proxy: Proxy, after_bytes: int) -> None:
    proxy.faults.append(Fault("GetObject", Reset(after_bytes)))
    with dial(proxy.url) as connection:
        connection.sendall(GET)
        assert read_head(connection).startswith(b"HTTP/1.1 200")
        with pytest.raises(ConnectionResetError):
            read_all(connection)
    assert proxy.requests[0].sent == min(after_bytes, len(OBJECT))
    assert not proxy.requests[0].completed


@pytest.mark.parametrize("after_bytes", [0, 1, 100_000, len(OBJECT), len(OBJECT) + 1])
def test_truncated_answer(proxy: Proxy, after_bytes: int) -> None:
    proxy.faults.append(Fault("GetObject", Truncate(after_bytes)))
    with dial(proxy.url) as connection:
        connection.sendall(GET)
        assert read_head(connection).startswith(b"HTTP/1.1 200")
        assert read_all(connection) == OBJECT[:after_bytes]
    assert not proxy.requests[0].completed


def test_an_answer_without_a_body_can_be_cut(proxy: Proxy) -> None:
    proxy.faults.append(Fault("HeadObject", Reset()))
    with dial(proxy.url) as connection:
        connection.sendall(GET.replace(b"GET", b"HEAD"))
        assert read_head(connection).startswith(b"HTTP/1.1 200")
        with pytest.raises(ConnectionResetError):
            connection.recv(1)


@pytest.mark.parametrize("after_bytes", [0, 100_000])
def test_stall(proxy: Proxy, after_bytes: int) -> None:
    proxy.faults.append(Fault("GetObject", Stall(0.1, after_bytes)))
    started = time.monotonic()
    assert httpx.get(f"{proxy.url}/bucket/object").content == OBJECT
    assert time.monotonic() - started > 0.1
    assert proxy.requests[0].completed


def test_a_stall_ends_with_the_proxy(moto: Store, behind: Any) -> None:
    with Proxy(moto.endpoint_url) as proxy:
        proxy.faults.append(Fault("GetObject", Stall(FOREVER, 1_000)))
        connection = dial(proxy.url)
        connection.sendall(GET)
        read_head(connection)
        assert read_exactly(connection, 1_000) == OBJECT[:1_000]
        assert proxy.requests[0].sent == 1_000
        assert not proxy.requests[0].completed
    with connection, pytest.raises(ConnectionResetError):
        connection.recv(1)


def test_a_stall_ends_with_its_client(proxy: Proxy) -> None:
    proxy.faults.append(Fault("GetObject", Stall(FOREVER)))
    with dial(proxy.url) as connection:
        connection.sendall(GET)
        read_head(connection)
    until(lambda: proxy.open_connections == 0)


def test_drip(proxy: Proxy) -> None:
    proxy.faults.append(Fault("GetObject", Drip(bytes_per_second=10 * len(OBJECT))))
    started = time.monotonic()
    assert httpx.get(f"{proxy.url}/bucket/object").content == OBJECT
    assert time.monotonic() - started > 0.1


def test_delay(proxy: Proxy, behind: Any) -> None:
    proxy.faults += [
        Fault("PutObject", Delay(0.1)),
        Fault("PutObject", Delay(FOREVER), after=1),
    ]
    started = time.monotonic()
    httpx.put(f"{proxy.url}/bucket/delayed", content=OBJECT).raise_for_status()
    assert time.monotonic() - started > 0.1
    with dial(proxy.url) as connection:
        connection.sendall(PUT % 10 + bytes(10))
        until(lambda: proxy.open_connections == 1)
    until(lambda: proxy.open_connections == 0)
    assert "put" not in keys(behind)


def test_swallow(proxy: Proxy, s3: Any, behind: Any) -> None:
    proxy.faults.append(Fault("PutObject", Swallow()))
    with pytest.raises(ConnectionClosedError):
        s3.put_object(Bucket="bucket", Key="swallowed", Body=OBJECT)
    assert "swallowed" in keys(behind)
    assert proxy.requests[0].status is None
    assert not proxy.requests[0].completed


def test_unplugged_it_refuses_and_cuts(proxy: Proxy) -> None:
    proxy.faults.append(Fault("GetObject", Stall(FOREVER)))
    url = proxy.url
    with dial(url) as stalled, dial(url) as idle:
        stalled.sendall(GET)
        read_head(stalled)
        until(lambda: proxy.open_connections == 2)
        proxy.unplug()
        assert proxy.open_connections == 0
        for connection in (stalled, idle):
            with pytest.raises(ConnectionResetError):
                connection.recv(1)
    for _ in range(3):
        with pytest.raises(ConnectionRefusedError):
            dial(url)
    proxy.plug()
    assert proxy.url == url
    assert httpx.get(f"{url}/bucket/object").content == OBJECT


def test_a_store_that_is_down_is_one_that_resets(proxy: Proxy) -> None:
    with Proxy(proxy.url) as outer, dial(outer.url) as connection:
        proxy.unplug()
        connection.sendall(GET)
        with pytest.raises(ConnectionResetError):
            connection.recv(1)


def test_closed_it_leaves_nothing(moto: Store) -> None:
    for _ in range(20):
        with Proxy(moto.endpoint_url) as proxy:
            url = proxy.url
            connection = dial(url)
        connection.close()
        with pytest.raises(ConnectionRefusedError):
            dial(url)
        assert "proxy" not in {thread.name for thread in threading.enumerate()}
