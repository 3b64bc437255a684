"""The costs of a transfer: S3 requests, memory, and function calls compared to a plain S3 client.

No test measures time, so other load on the machine changes nothing. Each test has been seen to fail
when the optimization that it protects was removed.
"""

import logging
import threading
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from http.client import HTTPConnection
from types import FrameType
from typing import Any, Self
from urllib.parse import urlsplit
from uuid import uuid4

import pytest
import uvloop

from tests.bench.variants import plain_s3_client
from tests.support.clients.signing import random_bytes, sign
from tests.support.clients.sockets import connect_to
from tests.support.proxy import Proxy
from tests.support.services.thread import Service, StartService
from tests.support.stores import Store
from tests.support.stores.access import aws_environment

KEY = "a signing key"
MIB = 1 << 20
PART_SIZE = 8 * MIB
ONE_PART, TWO_PARTS = (random_bytes(size, size) for size in (PART_SIZE, 12 * MIB))
"""The largest bundle that is one part with the default part size, and a bundle of two parts."""


@pytest.fixture
def proxy(store: Store) -> Iterator[Proxy]:
    with Proxy(store.endpoint_url) as proxy:
        yield proxy


@pytest.fixture
def proxied(proxy: Proxy, start_service: StartService) -> Service:
    """A service with the default part size, which reaches S3 through the proxy."""
    service = start_service(endpoint_url=proxy.url)
    proxy.requests.clear()
    return service


def take_operations(proxy: Proxy) -> list[str]:
    """Return the S3 operations since the last call, and forget them.

    They are sorted, because a receipt is written while other requests are made.
    """
    operations = sorted(request.operation for request in proxy.requests)
    proxy.requests.clear()
    return operations


MULTIPART = [
    *("CompleteMultipartUpload", "CreateMultipartUpload", "PutObjectTagging"),
    *["UploadPart"] * 2,
]


@pytest.mark.parametrize(
    ("bundle", "uploaded", "reads"),
    [(ONE_PART, ["PutObject"], 1), (TWO_PARTS, MULTIPART, 2)],
    ids=["8 MiB", "12 MiB"],
)
def test_each_request_makes_only_the_necessary_s3_requests(
    proxied: Service, proxy: Proxy, bundle: bytes, uploaded: list[str], reads: int
) -> None:
    """A bundle of more than one part is read twice, until it has a receipt."""
    proof = sign(KEY, bundle)
    bundle_id = proxied.upload(bundle, proof["X-HMAC"])
    assert not any("expect" in request.headers for request in proxy.requests)
    uploads = [
        request for request in proxy.requests if request.operation in {"PutObject", "UploadPart"}
    ]
    digests = {request.headers["x-amz-content-sha256"] for request in uploads}
    assert digests == {"UNSIGNED-PAYLOAD"}
    assert take_operations(proxy) == uploaded
    assert proxied.http.post("/upload", files={"file": bundle}).status_code == 200
    assert take_operations(proxy) == uploaded
    assert proxied.fetch(str(uuid4()), proof).status_code == 404
    assert take_operations(proxy) == ["GetObjectTagging"]

    assert proxied.fetch(bundle_id, proof).content == bundle
    gets = [request for request in proxy.requests if request.operation == "GetObject"]
    assert ["if-match" in get.headers for get in gets] == [False, True][:reads]
    assert take_operations(proxy) == (
        ["GetObject"] * reads + ["GetObjectTagging", "PutObjectTagging"]
    )
    assert proxied.fetch(bundle_id, proof).content == bundle
    assert take_operations(proxy) == ["GetObject", "GetObjectTagging"]
    assert proxied.fetch(bundle_id, {**proof, "X-SIGNING-KEY": "another key"}).status_code == 401
    assert take_operations(proxy) == ["GetObjectTagging"]
    assert proxied.fetch(bundle_id, {**proof, "Range": "bytes=5-9"}).content == bundle[5:10]
    assert [request.sent for request in proxy.requests if request.operation == "GetObject"] == [5]
    assert take_operations(proxy) == ["GetObject", "GetObjectTagging", "HeadObject"]
    assert proxied.head(bundle_id, proof).status_code == 200
    assert take_operations(proxy) == ["GetObjectTagging", "HeadObject"]
    assert proxied.http.delete(f"/files/{bundle_id}", headers=proof).status_code == 204
    assert take_operations(proxy) == ["DeleteObject", "GetObjectTagging", "HeadObject"]


def test_upload_with_a_key_makes_the_first_download_as_cheap_as_later_ones(
    proxied: Service, proxy: Proxy
) -> None:
    """The service can then create the receipt during the upload."""
    proof = sign(KEY, ONE_PART)
    response = proxied.http.post("/upload", content=ONE_PART, headers=proof)
    assert take_operations(proxy) == ["PutObject"]
    assert proxied.fetch(response.text, proof).content == ONE_PART
    assert take_operations(proxy) == ["GetObject", "GetObjectTagging"]
    wrong_proof = {**proof, "X-HMAC": "0" * 64}
    response = proxied.http.post("/upload", content=ONE_PART, headers=wrong_proof)
    assert response.status_code == 422
    assert take_operations(proxy) == []


def test_bundle_one_byte_larger_than_a_part_is_uploaded_in_two_parts(
    proxied: Service, proxy: Proxy
) -> None:
    proxied.upload(ONE_PART + b"1")
    assert take_operations(proxy) == MULTIPART


def post(connection: HTTPConnection, bundle: bytes) -> str:
    connection.request("POST", "/upload", bundle)
    response = connection.getresponse()
    assert response.status == 200
    return response.read().decode()


def peak_memory(action: Callable[[], None]) -> float:
    """Return how many MiB Python allocates at most during a second run of this action.

    This includes neither what the first run loads nor the memory pages that hold bundles.
    """
    action()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        action()
        return (tracemalloc.get_traced_memory()[1] - before) / MIB
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("bundle", [ONE_PART, TWO_PARTS], ids=["8 MiB", "12 MiB"])
def test_transfer_allocates_little_memory_beside_its_parts(
    start_service: StartService, bundle: bytes
) -> None:
    """Chunks in transit take 0.9 MiB in uploads and 1.8 MiB in downloads, as measured.

    A copy of a part would take 8 MiB.
    """
    service = start_service()
    proof = "".join(f"{name}: {value}\r\n" for name, value in sign(KEY, bundle).items())
    ids, received = list[str](), bytearray(13 * MIB)

    def upload() -> None:
        with closing(HTTPConnection(urlsplit(service.url).netloc)) as connection:
            ids.append(post(connection, bundle))

    def download() -> None:
        free_space = memoryview(received)
        with connect_to(service.url) as connection:
            head = f"GET /files/{ids[-1]} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{proof}"
            connection.sendall(f"{head}\r\n".encode())
            while size := connection.recv_into(free_space):
                free_space = free_space[size:]

    upload_peak, download_peak = peak_memory(upload), peak_memory(download)
    assert bundle in received
    print(f"upload {upload_peak:.2f} MiB, download {download_peak:.2f} MiB")
    assert upload_peak <= 2
    assert download_peak <= 3


class CallCounter:
    """Counts function calls, also of functions in C, in threads that start inside its context."""

    def __init__(self) -> None:
        self._calls = Counter[str]()

    def __enter__(self) -> Self:
        threading.setprofile(self._count)
        return self

    def __exit__(self, *_: object) -> None:
        threading.setprofile(None)

    def _count(self, frame: FrameType, event: str, function: Any) -> None:
        if event == "call":
            self._calls[frame.f_code.co_qualname] += 1
        elif event == "c_call":
            self._calls[function.__qualname__] += 1

    def take_average(self, actions: int) -> Counter[str]:
        """Return the calls since the last time, divided by the number of actions."""
        calls, self._calls = self._calls, Counter[str]()
        return Counter({name: round(count / actions) for name, count in calls.items()})


@pytest.fixture
def no_debug_logs() -> Iterator[None]:
    """Disable debug logs, as in production.

    The tests search botocore's debug logs, which take a third of all calls.
    """
    logging.disable(logging.DEBUG)
    yield
    logging.disable(logging.NOTSET)


def count_calls_of_plain_client(service: Service, store: Store) -> int:
    """Return how many function calls PutObject takes with the same library, without the service."""

    async def main() -> None:
        async with plain_s3_client() as s3:
            for number in range(11):
                if number == 1:  # The first call loads modules, so it does not count.
                    counter.take_average(1)
                await s3.put_object(Bucket=service.bucket, Key=str(uuid4()), Body=bytes(SMALL_SIZE))

    with aws_environment(store), ThreadPoolExecutor(1) as thread, CallCounter() as counter:
        thread.submit(uvloop.run, main()).result()
        return counter.take_average(10).total()


SMALL_SIZE = 4096

LIMITS = {
    "small upload / plain call": 1.05,
    "small download / plain call": 1.85,
    "uploaded chunk": 130,
    "downloaded chunk": 75,
}
"""Measured: 0.95, 1.69, 119 and 69. Ten runs differed by 3 % at most.

These changes raise the numbers: resolving the endpoint for each key (1.26 instead of 0.95), passing
the body through the parser (160), and sending a part in small pieces.
"""


@pytest.mark.usefixtures("no_debug_logs")
def test_transfer_makes_few_function_calls_compared_to_a_plain_client(
    start_service: StartService, store: Store
) -> None:
    """The number of calls depends neither on the machine nor on its load."""
    with CallCounter() as counter:
        service = start_service()

    def calls_per_transfer(transfer: Callable[[], object]) -> Counter[str]:
        transfer()
        counter.take_average(1)
        for _ in range(10):
            transfer()
        return counter.take_average(10)

    plain_calls = count_calls_of_plain_client(service, store)
    uploads, downloads = list[Counter[str]](), list[Counter[str]]()
    with closing(HTTPConnection(urlsplit(service.url).netloc)) as connection:
        for size in (SMALL_SIZE, PART_SIZE - 1):
            bundle, proof = bytes(size), sign(KEY, bytes(size))
            uploads.append(calls_per_transfer(partial(post, connection, bundle)))
            bundle_id = service.upload(bundle, proof["X-HMAC"])
            downloads.append(calls_per_transfer(partial(service.fetch, bundle_id, proof)))
    costs = {
        "small upload / plain call": uploads[0].total() / plain_calls,
        "small download / plain call": downloads[0].total() / plain_calls,
        "uploaded chunk": calls_per_chunk(uploads, "BufferedReader.buffer_updated"),
        "downloaded chunk": calls_per_chunk(downloads, "S3Calls.read_chunk"),
    }
    print(costs)
    assert {name: cost for name, cost in costs.items() if cost > LIMITS[name]} == {}


def calls_per_chunk(transfers: list[Counter[str]], chunk_function: str) -> float:
    """Return the calls for each chunk, from the difference of a small and a large transfer.

    `chunk_function` is called once for each chunk.
    """
    small, large = transfers
    return (large.total() - small.total()) / (large[chunk_function] - small[chunk_function])
