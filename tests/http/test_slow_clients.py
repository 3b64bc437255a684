"""Timeouts for slow clients: the time left for the next byte, and the timeout of each wait."""

import asyncio
import gc
import time
import weakref
from collections.abc import AsyncGenerator, Coroutine
from contextlib import closing, suppress
from typing import Any

import pytest

from service.http.slow_clients import GRACE_PERIOD, MIN_RATE, ClientRate, ClientTimeout


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


def run(test: Coroutine[Any, Any, None]) -> None:
    """Run an asynchronous test, for 10 seconds at most."""
    asyncio.run(asyncio.wait_for(test, 10))


def pending_cancellations() -> int:
    task = asyncio.current_task()
    assert task is not None
    return task.cancelling()


async def wait_forever() -> None:
    await asyncio.Event().wait()


def test_wait_times_out_if_the_client_sends_nothing() -> None:
    async def test() -> None:
        with closing(ClientTimeout(ClientRate(0.2))) as timeout:
            for _ in range(2):
                started = time.monotonic()
                with pytest.raises(TimeoutError), timeout:
                    await wait_forever()
                assert 0.19 < time.monotonic() - started < 5
                assert pending_cancellations() == 0

    run(test())


def test_wait_times_out_at_once_if_no_time_is_left() -> None:
    async def test() -> None:
        rate = ClientRate(10)
        rate.record(10, 0)
        with closing(ClientTimeout(rate)) as timeout:
            with timeout:
                pass  # Data that has already arrived is still read.
            started = time.monotonic()
            with pytest.raises(TimeoutError), timeout:
                await wait_forever()
            assert time.monotonic() - started < 5

    run(test())


def test_each_byte_restarts_the_timeout_and_pauses_do_not_count() -> None:
    """The waits together, and the pauses between them, are longer than the timeout."""

    async def test() -> None:
        rate = ClientRate(0.3)
        with closing(ClientTimeout(rate)) as timeout:
            for seconds in (0.2, 0.2, 0.2):
                started = time.monotonic()
                with timeout:
                    await asyncio.sleep(seconds)
                rate.record(time.monotonic() - started, 1)
                await asyncio.sleep(0.4)
        assert pending_cancellations() == 0

    run(test())


def test_cancellation_does_not_become_a_timeout() -> None:
    async def test() -> None:
        async def wait() -> None:
            with closing(ClientTimeout(ClientRate(10))) as timeout, timeout:
                await wait_forever()

        task = asyncio.create_task(wait())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert task.cancelled()

    run(test())


@pytest.mark.parametrize("first", ["timeout", "cancellation"])
def test_cancellation_at_the_moment_of_the_timeout_is_not_lost(first: str) -> None:
    """Otherwise a server that cancels its tasks at shutdown would wait forever for this one."""

    async def test() -> None:
        async def wait() -> None:
            with closing(ClientTimeout(ClientRate(0.05))) as timeout, timeout:
                try:
                    await wait_forever()
                except asyncio.CancelledError:
                    if first == "timeout":
                        task.cancel()
                    else:
                        await wait_forever()
                    raise

        task = asyncio.create_task(wait())
        await asyncio.sleep(0)
        if first == "cancellation":
            task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert task.cancelling() == 1

    run(test())


def test_suppressed_timeout_does_not_affect_the_next_wait() -> None:
    async def test() -> None:
        async def wait() -> None:
            with closing(ClientTimeout(ClientRate(0.05))) as timeout:
                with timeout, suppress(asyncio.CancelledError):
                    await wait_forever()
                assert pending_cancellations() == 0
                task.cancel()
                with timeout:
                    await wait_forever()

        task = asyncio.create_task(wait())
        with pytest.raises(asyncio.CancelledError):
            await task
        assert task.cancelling() == 1

    run(test())


def test_closing_a_generator_early_leaves_no_timer_and_no_wait() -> None:
    """A timer would keep the `ClientTimeout` in memory."""

    async def test() -> None:
        references = list[weakref.ref[ClientTimeout]]()

        async def chunks() -> AsyncGenerator[int, None]:
            with closing(ClientTimeout(ClientRate(0.1))) as timeout:
                references.append(weakref.ref(timeout))
                for number in range(3):
                    with timeout:
                        await asyncio.sleep(0)
                    yield number

        body = chunks()
        assert [await anext(body), await anext(body)] == [0, 1]
        await body.aclose()
        gc.collect()
        assert references[0]() is None
        await asyncio.sleep(0.2)
        assert pending_cancellations() == 0

    run(test())


def test_one_timer_serves_all_waits() -> None:
    async def test() -> None:
        reads = 0

        class CountingRate(ClientRate):
            @property
            def time_left(self) -> float:
                nonlocal reads
                reads += 1
                return super().time_left

        with closing(ClientTimeout(CountingRate(10))) as timeout:
            for _ in range(100):
                with timeout:
                    await asyncio.sleep(0)
        assert reads == 1

    run(test())
