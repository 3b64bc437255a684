"""What the fault proxy passes on unchanged."""

import asyncio
import select
import socket
import threading
from contextlib import suppress
from typing import Any

import aioboto3
import pytest
from botocore.exceptions import ClientError

from tests.s3.fault_proxy.scripted_store import GET, OBJECT, PUT, keys, options, read_head, scripted
from tests.support.clients.sockets import dial, read_all, read_exactly
from tests.support.polling import until
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
