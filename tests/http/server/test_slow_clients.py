"""Timeouts for slow clients: the time left for the next byte, and the timeout of each wait."""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import aclosing
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.requests import Request
from starlette.types import Message

from service.bundles.memory import MAX_CHUNK, MIN_CHUNK, Memory
from service.errors import UploadTimeout
from service.http import routes
from service.http.slow_clients import (
    GRACE_PERIOD,
    MAX_READ_DELAY,
    MIN_RATE,
    SLOW_AFTER,
    SLOW_RATE,
    SMALL_READ,
    ClientRate,
)
from tests.bundles.simulated_loop import simulate

KIB = 1024

Receive = Callable[[], Coroutine[Any, Any, Message]]


@pytest.mark.parametrize(
    ("waits", "time_left"),
    [
        ([], GRACE_PERIOD),
        ([(4, 0)], 6),  # The minimum rate applies after 10 s of waiting.
        ([(9, 100 * MIN_RATE)], 30),  # Enough bytes for 100 s, but the timeout is 30 s.
        ([(9, 100 * MIN_RATE), (29, 0)], 1),
        ([(9, 100 * MIN_RATE), (29, 0), (0, 1)], 30),
        ([(11, 11 * MIN_RATE)], 0),
        ([(20, 25 * MIN_RATE)], 5),
        ([(30, 0)], -20),
    ],
)
def test_time_left_depends_on_the_timeout_and_the_average_rate(
    waits: list[tuple[float, int]], time_left: float
) -> None:
    rate = ClientRate(30)
    for seconds, transferred in waits:
        rate.record(seconds, transferred)
    assert rate.time_left == pytest.approx(time_left, abs=0.001)


def test_short_timeout_limits_even_the_first_wait() -> None:
    assert ClientRate(1).time_left == 1


@pytest.mark.parametrize(
    ("waits", "delay"),
    [
        ([], 0),
        ([(SLOW_AFTER, 1)], 0),
        ([(SLOW_AFTER + 1, 0)], MAX_READ_DELAY),
        ([(SLOW_AFTER + 1, 1)], MAX_READ_DELAY),
        ([(10, 10 * SLOW_RATE)], 0),
        ([(10, 10 * SLOW_RATE - 1)], 0.109),
        ([(8, 8 * 64 * 1024), (2, 2 * 64 * 1024)], 0.4375),
        ([(20, 20 * 20 * 1024)], 1.4),
        ([(8, 10 * 20 * 1024), (2, 0)], 1.25),  # Half of the time left.
        ([(29, 1)], 0),
        ([(10, SLOW_RATE), (1, 10 * SLOW_RATE)], 0),
    ],
)
def test_read_delay_depends_on_the_average_rate(
    waits: list[tuple[float, int]], delay: float
) -> None:
    rate = ClientRate(30)
    for seconds, transferred in waits:
        rate.record(seconds, transferred)
    assert rate.read_delay == pytest.approx(delay, abs=0.001)


def test_read_delay_is_halved_after_each_full_read() -> None:
    rate = ClientRate(30)
    rate.record(20, 20 * 20 * 1024)
    delays = [rate.read_delay]
    for _ in range(5_000):
        rate.record(0, MIN_CHUNK, MIN_CHUNK)
        delays.append(rate.read_delay)
    assert delays[1] < 0.6 * delays[0]
    assert delays[2] < 0.6 * delays[1]
    assert delays[-1] == 0, "the client is not slow any more"


@pytest.mark.parametrize("chunk_size", [MIN_CHUNK, 2 * MIN_CHUNK, MAX_CHUNK])
@pytest.mark.parametrize("sent_per_second", [20 * KIB, 100 * KIB, 250 * KIB])
def test_slow_client_is_read_as_fast_as_it_sends(
    monkeypatch: pytest.MonkeyPatch, chunk_size: int, sent_per_second: int
) -> None:
    size = 60 * sent_per_second
    seconds = upload_seconds(monkeypatch, size, chunk_size, sent_per_second, first_pause=0)
    assert seconds == pytest.approx(60, rel=0.05)


@pytest.mark.parametrize("chunk_size", [MIN_CHUNK, 2 * MIN_CHUNK, MAX_CHUNK])
def test_client_that_has_paused_is_read_on_and_gets_faster(
    monkeypatch: pytest.MonkeyPatch, chunk_size: int
) -> None:
    """After its pause, it has to send 16 KiB/s on average within 4 seconds."""
    seconds = upload_seconds(monkeypatch, 60 * 250 * KIB, chunk_size, 250 * KIB, first_pause=6)
    assert seconds < 2 * 60


def upload_seconds(
    monkeypatch: pytest.MonkeyPatch,
    size: int,
    chunk_size: int,
    sent_per_second: int,
    first_pause: float,
) -> float:
    """Return how long an upload takes with reads of up to `chunk_size` bytes. No time passes.

    The kernel holds up to 64 KiB of what the client has sent. Each read takes 10 ms.
    """

    async def test() -> float:
        loop = asyncio.get_running_loop()
        monkeypatch.setattr(routes, "time", SimpleNamespace(monotonic=loop.time))
        memory = new_memory()
        monkeypatch.setattr(memory, "chunk_size", lambda: chunk_size)
        arrived, received, arrived_at = 0.0, 0, first_pause

        async def receive() -> Message:
            nonlocal arrived, received, arrived_at
            await asyncio.sleep(max(0.01, first_pause - loop.time()))
            arrived += (loop.time() - arrived_at) * sent_per_second
            arrived, arrived_at = min(arrived, received + 64 * KIB, size), loop.time()
            chunk = bytes(min(int(arrived) - received, chunk_size))
            received += len(chunk)
            return {"type": "http.request", "body": chunk, "more_body": received < size}

        async for _ in body(receive, 30, memory):
            pass
        return loop.time()

    return simulate(test())


def run(test: Coroutine[Any, Any, None]) -> None:
    """Run an asynchronous test, for 10 seconds at most."""
    asyncio.run(asyncio.wait_for(test, 10))


def new_memory() -> Memory:
    return Memory(16 << 20, part_size=5 << 20, timeout=1)


def body(
    receive: Receive, read_timeout: float, memory: Memory | None = None
) -> AsyncGenerator[bytes, None]:
    memory = memory or new_memory()
    scope = {"type": "http", "state": {"read_timeout": read_timeout, "memory": memory}}
    return routes._body(Request[routes.State](scope, receive))  # noqa: SLF001


def pending_cancellations() -> int:
    task = asyncio.current_task()
    assert task is not None
    return task.cancelling()


async def wait_forever() -> Message:
    await asyncio.Event().wait()
    raise AssertionError


def test_upload_times_out_if_the_client_sends_nothing() -> None:
    async def test() -> None:
        started = time.monotonic()
        with pytest.raises(UploadTimeout):
            await anext(body(wait_forever, 0.2))
        assert 0.19 < time.monotonic() - started < 5
        assert pending_cancellations() == 0

    run(test())


def test_each_byte_restarts_the_timeout_and_pauses_do_not_count() -> None:
    """The waits together, and the pauses between them, are longer than the timeout."""

    async def receive() -> Message:
        await asyncio.sleep(0.2)
        return {"type": "http.request", "body": b"x", "more_body": True}

    async def test() -> None:
        async with aclosing(body(receive, 0.3)) as chunks:
            for _ in range(3):
                assert await anext(chunks) == b"x"
                await asyncio.sleep(0.4)
        assert pending_cancellations() == 0

    run(test())


def test_slow_upload_times_out_although_bytes_arrive() -> None:
    """Less than the minimum rate, after the grace period."""

    async def receive() -> Message:
        await asyncio.sleep(0.01)
        return {"type": "http.request", "body": b"x", "more_body": True}

    async def test(monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("service.http.slow_clients.GRACE_PERIOD", 0.2)
        started = time.monotonic()
        with pytest.raises(UploadTimeout):
            async for _ in body(receive, 5):
                pass
        assert 0.19 < time.monotonic() - started < 5

    with pytest.MonkeyPatch.context() as monkeypatch:
        run(test(monkeypatch))


@pytest.mark.parametrize(("size", "counts"), [(1, {0, 1}), (SMALL_READ + 1, {0})])
def test_slow_client_is_read_less_often(
    monkeypatch: pytest.MonkeyPatch, size: int, counts: set[int]
) -> None:
    """Nothing is received during the delay between two reads, so the kernel holds what arrives.

    While its upload holds large chunks, the client does not count as slow.
    """
    delay, reads, memory, slow_uploads = 0.2, list[float](), new_memory(), set[int]()
    monkeypatch.setattr("service.http.slow_clients.SLOW_AFTER", 0.1)
    monkeypatch.setattr("service.http.slow_clients.SLOW_RATE", 1 << 30)
    monkeypatch.setattr("service.http.slow_clients.EXPECTED_READ", 1 << 40)
    monkeypatch.setattr("service.http.slow_clients.MAX_READ_DELAY", delay)

    async def receive() -> Message:
        reads.append(time.monotonic())
        await asyncio.sleep(0.01)
        return {"type": "http.request", "body": bytes(size), "more_body": len(reads) < 15}

    async def watch() -> None:
        while True:
            slow_uploads.add(memory.slow_transfers)
            await asyncio.sleep(0.005)

    async def test() -> None:
        watching = asyncio.create_task(watch())
        assert [chunk async for chunk in body(receive, 30, memory)] == [bytes(size)] * 15
        watching.cancel()
        assert (slow_uploads, memory.slow_transfers) == (counts, 0)
        gaps = [later - earlier for earlier, later in pairwise(reads)]
        assert gaps[0] < delay <= min(gaps[-4:])

    run(test())


def test_read_delay_is_part_of_the_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.http.slow_clients.SLOW_AFTER", 0.05)
    received = list[float]()

    async def receive() -> Message:
        if received:
            await wait_forever()
        await asyncio.sleep(0.1)
        received.append(time.monotonic())
        return {"type": "http.request", "body": b"x", "more_body": True}

    async def test() -> None:
        with pytest.raises(UploadTimeout):
            async for _ in body(receive, 2):
                pass
        assert 1.9 < time.monotonic() - received[0] < 2.9

    run(test())


def test_cancellation_does_not_become_a_timeout() -> None:
    async def test() -> None:
        async def read() -> None:
            async for _ in body(wait_forever, 10):
                pass

        task = asyncio.create_task(read())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert task.cancelled()

    run(test())
