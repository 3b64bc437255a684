"""The fault proxy without a fault: it forwards requests and responses unchanged."""

import asyncio
import select
import socket
import threading
from contextlib import suppress
from typing import Any

import aioboto3
import pytest
from botocore.exceptions import ClientError

from tests.s3.fault_proxy.scripted_store import (
    GET,
    OBJECT,
    PUT,
    client_options,
    object_keys,
    read_head,
    scripted_store,
)
from tests.support.clients.sockets import connect_to, read_exactly, read_until_closed
from tests.support.polling import wait_until
from tests.support.proxy import (
    Fault,
    Proxy,
    Respond,
    operation_name,
)


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
def test_operations_have_the_names_of_the_s3_api(
    method: str, target: str, headers: list[str], name: str
) -> None:
    assert operation_name(method, target, headers) == name


def test_all_requests_are_forwarded_and_recorded(proxy: Proxy, s3: Any) -> None:
    part = bytes(5 * 1024 * 1024)
    location = {"Bucket": "bucket", "Key": "forwarded"}
    upload = {**location, "UploadId": s3.create_multipart_upload(**location)["UploadId"]}
    etag = s3.upload_part(**upload, PartNumber=1, Body=part)["ETag"]
    s3.complete_multipart_upload(
        **upload, MultipartUpload={"Parts": [{"ETag": etag, "PartNumber": 1}]}
    )
    s3.head_object(**location)
    assert s3.get_object(**location)["Body"].read() == part
    s3.delete_object(**location)

    assert [(request.operation, request.status) for request in proxy.requests] == [
        ("CreateMultipartUpload", 200),
        ("UploadPart", 200),
        ("CompleteMultipartUpload", 200),
        ("HeadObject", 200),
        ("GetObject", 200),
        ("DeleteObject", 204),
    ]
    assert all(request.completed for request in proxy.requests)
    assert proxy.requests[1].received == len(part)
    assert proxy.requests[3].sent == 0
    assert proxy.requests[4].sent == len(part)
    assert proxy.requests[4].target == "/bucket/forwarded"
    assert proxy.requests[4].headers["host"] == proxy.url.removeprefix("http://")


def test_client_that_waits_for_100_continue_receives_it(proxy: Proxy, direct_s3: Any) -> None:
    async def put() -> None:
        async with aioboto3.Session().client(**client_options(proxy.url)) as s3:
            await s3.put_object(Bucket="bucket", Key="continued", Body=OBJECT, Tagging="a=b")
            with pytest.raises(ClientError, match="SlowDown"):
                await s3.put_object(Bucket="bucket", Key="refused", Body=OBJECT)

    proxy.faults.append(Fault("PutObject", Respond(503, "SlowDown"), after=1))
    asyncio.run(put())
    assert "continued" in object_keys(direct_s3)
    assert "refused" not in object_keys(direct_s3)
    for request in proxy.requests:
        assert request.headers["expect"] == "100-continue"
        assert request.received >= len(OBJECT)


def test_heads_and_chunks_are_forwarded_unchanged_when_the_store_closes_connections() -> None:
    response_head = b"HTTP/1.1 200 OK\r\nX-Case: Kept\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunks = b"3\r\nabc\r\n0\r\n\r\n"
    request_heads: list[bytes] = []

    def script(connection: socket.socket) -> None:
        request_heads.append(read_head(connection))
        connection.sendall(response_head + chunks)

    with scripted_store(script) as url, Proxy(url) as proxy, connect_to(proxy.url) as connection:
        for _ in range(3):
            connection.sendall(GET)
            assert read_exactly(connection, len(response_head + chunks)) == response_head + chunks
        assert proxy.open_connections == 1
        assert all(request.completed and request.sent == 3 for request in proxy.requests)
    assert request_heads == [GET] * 3


def test_response_before_the_end_of_the_request_is_forwarded() -> None:
    def script(connection: socket.socket) -> None:
        read_head(connection)
        connection.sendall(b"HTTP/1.1 403 No\r\nContent-Length: 0\r\n\r\n")
        read_until_closed(connection)

    with scripted_store(script) as url, Proxy(url) as proxy, connect_to(proxy.url) as connection:
        connection.sendall(PUT % 10 + b"early")
        assert read_head(connection).startswith(b"HTTP/1.1 403")
        connection.sendall(b" rest" + GET)
        assert read_head(connection).startswith(b"HTTP/1.1 403")
        assert [request.received for request in proxy.requests] == [10, 0]


def test_response_that_the_store_cuts_off_is_reset() -> None:
    def script(connection: socket.socket) -> None:
        read_head(connection)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nshort")

    with scripted_store(script) as url, Proxy(url) as proxy, connect_to(proxy.url) as connection:
        connection.sendall(GET)
        with pytest.raises(ConnectionResetError):
            read_until_closed(connection)
        assert not proxy.requests[0].completed


def test_connection_to_the_store_is_closed_when_the_client_closes() -> None:
    closed = threading.Event()

    def script(connection: socket.socket) -> None:
        read_head(connection)
        with suppress(ConnectionError):
            assert read_until_closed(connection) == b""
        closed.set()

    with scripted_store(script) as url, Proxy(url) as proxy:
        with connect_to(proxy.url) as connection:
            connection.sendall(GET)
            wait_until(lambda: proxy.open_connections == 1)
        assert closed.wait(5)
        wait_until(lambda: proxy.open_connections == 0)
        assert proxy.requests[0].status is None


def test_proxy_stops_reading_from_the_store_while_the_client_does_not_read() -> None:
    size = 32 * 1024 * 1024
    accepted: list[int] = []

    def script(connection: socket.socket) -> None:
        read_head(connection)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        sent = 0
        while sent < size and select.select([], [connection], [], 0.1)[1]:
            sent += connection.send(bytes(min(65_536, size - sent)))
        accepted.append(sent)
        connection.sendall(bytes(size - sent))

    with scripted_store(script) as url, Proxy(url) as proxy, connect_to(proxy.url) as connection:
        connection.sendall(GET)
        wait_until(lambda: bool(accepted))
        assert accepted[0] < size / 2
        read_head(connection)
        assert len(read_exactly(connection, size)) == size
