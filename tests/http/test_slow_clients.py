"""How slow a client may be."""

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
    ("waits", "left"),
    [
        ([], GRACE_PERIOD),
        ([(4, 0)], 6),  # nothing for 4 s, and 0 B/s on average from 10 s on
        ([(9, 100 * MIN_RATE)], 30),  # what came buys time: 100 s in all, 30 at a stretch
        ([(9, 100 * MIN_RATE), (29, 0)], 1),
        ([(9, 100 * MIN_RATE), (29, 0), (0, 1)], 30),
        ([(11, 11 * MIN_RATE)], 0),
        ([(20, 25 * MIN_RATE)], 5),
        ([(30, 0)], -20),
    ],
)
def test_what_is_left(waits: list[tuple[float, int]], left: float) -> None:
    pace = ClientRate(30)
    for seconds, moved in waits:
        pace.record(seconds, moved)
    assert pace.time_left == pytest.approx(left, abs=0.001)


def test_little_patience_bounds_even_the_first_wait() -> None:
    assert ClientRate(1).time_left == 1


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(test, 10))


def cancellations() -> int:
    task = asyncio.current_task()
    assert task is not None
    return task.cancelling()


async def for_ever() -> None:
    await asyncio.Event().wait()


def test_who_sends_nothing_is_waited_for_so_long() -> None:
    async def test() -> None:
        with closing(ClientTimeout(ClientRate(0.2))) as patience:
            for _ in range(2):
                began = time.monotonic()
                with pytest.raises(TimeoutError), patience:
                    await for_ever()
                assert 0.19 < time.monotonic() - began < 5
                assert cancellations() == 0

    run(test())


def test_time_that_is_over_leaves_none_for_the_next_wait() -> None:
    async def test() -> None:
        pace = ClientRate(10)
        pace.record(10, 0)
        with closing(ClientTimeout(pace)) as patience:
            with patience:
                pass  # What is there already is taken.
            began = time.monotonic()
            with pytest.raises(TimeoutError), patience:
                await for_ever()
            assert time.monotonic() - began < 5

    run(test())


def test_only_waiting_counts_and_what_comes_buys_time() -> None:
    """Longer than it has patience, in waits and in pauses between them."""

    async def test() -> None:
        pace = ClientRate(0.3)
        with closing(ClientTimeout(pace)) as patience:
            for seconds in (0.2, 0.2, 0.2):
                began = time.monotonic()
                with patience:
                    await asyncio.sleep(seconds)
                pace.record(time.monotonic() - began, 1)
                await asyncio.sleep(0.4)
        assert cancellations() == 0

    run(test())


def test_a_cancellation_stays_one() -> None:
    async def test() -> None:
        async def wait() -> None:
            with closing(ClientTimeout(ClientRate(10))) as patience, patience:
                await for_ever()

        task = asyncio.create_task(wait())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert task.cancelled()

    run(test())


@pytest.mark.parametrize("first", ["patience", "cancellation"])
def test_a_cancellation_at_the_same_moment_stays_one(first: str) -> None:
    """As at the end of a server, which would wait for this task for ever."""

    async def test() -> None:
        async def wait() -> None:
            with closing(ClientTimeout(ClientRate(0.05))) as patience, patience:
                try:
                    await for_ever()
                except asyncio.CancelledError:
                    if first == "patience":
                        task.cancel()
                    else:
                        await for_ever()
                    raise

        task = asyncio.create_task(wait())
        await asyncio.sleep(0)
        if first == "cancellation":
            task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert task.cancelling() == 1

    run(test())


def test_a_time_out_that_was_ignored_is_over() -> None:
    async def test() -> None:
        async def wait() -> None:
            with closing(ClientTimeout(ClientRate(0.05))) as patience:
                with patience, suppress(asyncio.CancelledError):
                    await for_ever()
                assert cancellations() == 0
                task.cancel()
                with patience:
                    await for_ever()

        task = asyncio.create_task(wait())
        with pytest.raises(asyncio.CancelledError):
            await task
        assert task.cancelling() == 1

    run(test())


def test_nothing_is_left_of_it_where_its_generator_is_closed_in_the_middle() -> None:
    """Neither a timer, which would hold it, nor a wait that goes on."""

    async def test() -> None:
        kept = list[weakref.ref[ClientTimeout]]()

        async def chunks() -> AsyncGenerator[int, None]:
            with closing(ClientTimeout(ClientRate(0.1))) as patience:
                kept.append(weakref.ref(patience))
                for number in range(3):
                    with patience:
                        await asyncio.sleep(0)
                    yield number

        body = chunks()
        assert [await anext(body), await anext(body)] == [0, 1]
        await body.aclose()
        gc.collect()
        assert kept[0]() is None
        await asyncio.sleep(0.2)
        assert cancellations() == 0

    run(test())


def test_one_timer_serves_all_waits() -> None:
    async def test() -> None:
        set_off = 0

        class Counting(ClientRate):
            @property
            def time_left(self) -> float:
                nonlocal set_off
                set_off += 1
                return super().time_left

        with closing(ClientTimeout(Counting(10))) as patience:
            for _ in range(100):
                with patience:
                    await asyncio.sleep(0)
        assert set_off == 1

    run(test())
