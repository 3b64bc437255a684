"""The costs of a transfer: memory, and function calls compared to a plain S3 client.

No test measures time, so other load on the machine changes nothing. Each test has been seen to fail
when the optimization that it protects was removed.
"""

import gc
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

from service.bundles.buffers import MAX_REPLAY_SIZE
from service.bundles.memory import MAX_CHUNK
from tests.bench.variants import plain_s3_client
from tests.support.clients.signing import random_bytes, sign
from tests.support.clients.sockets import connect_to
from tests.support.services.thread import Service, StartService
from tests.support.stores import Store
from tests.support.stores.access import aws_environment

KEY = "a signing key"
MIB = 1 << 20
PART_SIZE = 8 * MIB
TWO_PARTS = random_bytes(1, 12 * MIB)
"""A bundle that is larger than a part and than a replay buffer."""


def post(connection: HTTPConnection, bundle: bytes | Iterator[bytes]) -> str:
    connection.request("POST", "/upload", bundle)
    response = connection.getresponse()
    assert response.status == 200
    return response.read().decode()


def peak_memory(action: Callable[[], object]) -> float:
    """Return how many MiB Python allocates at most during a second run of this action.

    This does not include what the first run loads.
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


BUFFERS = {
    "upload": MAX_REPLAY_SIZE / MIB,
    "chunked upload": 12,
    "first download": 12,
    "later download": 0,
}
"""MiB that the service keeps during a transfer of 12 MiB: what was sent, parts, or the bundle."""

CHUNKS = 4 * MAX_CHUNK / MIB
"""MiB of chunks in transit, at most."""


def test_transfer_allocates_little_memory_beside_its_buffers(start_service: StartService) -> None:
    """A transfer holds up to four chunks, which are large because it is alone.

    A copy of a buffer would take 8 MiB or more. Parts of a chunked upload are sent before both are
    full, so it needs 1.4 MiB less than its size.

    A bundle without an HMAC never gets a receipt, so each of its downloads is a first one.
    """
    service = start_service()
    with closing(HTTPConnection(urlsplit(service.url).netloc)) as connection:
        bundle_id = post(connection, TWO_PARTS)
    proof = sign(KEY, TWO_PARTS)
    response = service.http.post("/upload", content=TWO_PARTS, headers=proof)
    received = bytearray(13 * MIB)

    def upload(*, chunked: bool) -> None:
        chunks = (TWO_PARTS[start : start + 8192] for start in range(0, len(TWO_PARTS), 8192))
        with closing(HTTPConnection(urlsplit(service.url).netloc)) as connection:
            post(connection, chunks if chunked else TWO_PARTS)

    def download(bundle_id: str) -> None:
        free_space = memoryview(received)
        headers = "".join(f"{name}: {value}\r\n" for name, value in proof.items())
        with connect_to(service.url) as connection:
            head = f"GET /files/{bundle_id} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
            connection.sendall(f"{head}{headers}\r\n".encode())
            while size := connection.recv_into(free_space):
                free_space = free_space[size:]
        assert TWO_PARTS in received

    peaks = {
        "upload": peak_memory(partial(upload, chunked=False)),
        "chunked upload": peak_memory(partial(upload, chunked=True)),
        "first download": peak_memory(partial(download, bundle_id)),
        "later download": peak_memory(partial(download, response.text)),
    }
    beside_buffers = {name: round(peak - BUFFERS[name], 2) for name, peak in peaks.items()}
    print(beside_buffers)
    assert {name: mib for name, mib in beside_buffers.items() if mib > CHUNKS + 0.5} == {}


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


@pytest.fixture
def no_garbage_collection() -> Iterator[None]:
    """Disable the garbage collector. It calls finalizers of other tests' objects at any time."""
    gc.disable()
    yield
    gc.enable()


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
    "small upload / plain call": 0.92,
    "small download / plain call": 1.5,
    "uploaded MiB": 900,
    "downloaded MiB": 650,
}
"""Measured: 0.85, 1.39, 767 and 453. Beside other load, more reads find less than a whole chunk.

These changes raise the numbers: botocore's own User-Agent, resolving the endpoint for each key,
passing the body through the parser, and chunks of 64 KiB instead of 256.
"""


@pytest.mark.usefixtures("no_debug_logs", "no_garbage_collection")
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
        "uploaded MiB": calls_per_mib(uploads),
        "downloaded MiB": calls_per_mib(downloads),
    }
    print(costs)
    assert {name: cost for name, cost in costs.items() if cost > LIMITS[name]} == {}


def calls_per_mib(transfers: list[Counter[str]]) -> float:
    """Return the calls for each MiB, from the difference of a small and a large transfer."""
    small, large = transfers
    return (large.total() - small.total()) / (PART_SIZE - SMALL_SIZE) * MIB
