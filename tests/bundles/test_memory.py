"""The memory pool: limited, fair, and never blocked for good."""

import asyncio
import random
from collections.abc import Coroutine
from typing import Any

import pytest

from service.bundles.memory import SLOT_SIZE, Allocation, MemoryPool
from service.errors import Overloaded


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(test, 10))


async def let_tasks_run(steps: int = 5) -> None:
    """Let every task that is not blocked run for so many steps."""
    for _ in range(steps):
        await asyncio.sleep(0)


def test_released_memory_can_be_acquired_again() -> None:
    async def test() -> None:
        pool = MemoryPool(10, timeout=1)
        with await pool.acquire(6), await pool.acquire(4):
            assert pool.in_use == 10
            assert pool.try_acquire(1) is None
        assert pool.in_use == 0
        allocation = await pool.acquire(10)
        allocation.shrink(3)
        allocation.shrink(7)
        assert (pool.in_use, allocation.size) == (3, 3)
        allocation.release()
        allocation.release()
        assert pool.in_use == 0

    run(test())


def test_requests_are_served_in_order_whatever_their_size() -> None:
    async def test() -> None:
        pool = MemoryPool(10, timeout=1)
        first = await pool.acquire(8)
        served: list[int] = []

        async def acquire(size: int) -> Allocation:
            allocation = await pool.acquire(size)
            served.append(size)
            return allocation

        waiting = [asyncio.create_task(acquire(size)) for size in (9, 1, 2)]
        await let_tasks_run()
        assert pool.waiting == 3
        assert pool.try_acquire(1) is None, "a later request overtook the waiting ones"
        first.release()
        await let_tasks_run()
        assert served == [9, 1]
        (await waiting[0]).release()
        await asyncio.gather(*waiting)
        assert served == [9, 1, 2]

    run(test())


def test_request_that_times_out_does_not_block_the_next_one() -> None:
    async def test() -> None:
        pool = MemoryPool(10, timeout=0.4)
        with await pool.acquire(8):
            large = asyncio.create_task(pool.acquire(10))
            await asyncio.sleep(0.2)
            small = asyncio.create_task(pool.acquire(1))
            with pytest.raises(Overloaded):
                await large
            with await small:
                assert (pool.in_use, pool.waiting) == (9, 0)
        assert pool.in_use == 0

    run(test())


def test_request_cancelled_at_any_step_leaves_nothing_in_use() -> None:
    async def test() -> None:
        for steps in range(6):
            pool = MemoryPool(10, timeout=1)
            allocation = await pool.acquire(10)
            waiting = asyncio.create_task(pool.acquire(10))
            await let_tasks_run(2)
            allocation.release()
            await let_tasks_run(steps)
            waiting.cancel()
            await asyncio.wait([waiting])
            if not waiting.cancelled():
                waiting.result().release()
            assert (pool.in_use, pool.waiting) == (0, 0), steps

    run(test())


def test_pool_is_never_exceeded_or_blocked_under_random_load() -> None:
    async def test() -> None:
        rng = random.Random(5)
        pool = MemoryPool(20, timeout=5)

        async def client() -> None:
            for _ in range(20):
                with await pool.acquire(rng.randint(1, 20)) as allocation:
                    assert pool.in_use <= pool.total
                    await let_tasks_run(rng.randint(0, 3))
                    allocation.shrink(rng.randint(0, 20))
                    second = pool.try_acquire(rng.randint(1, 20))
                    await let_tasks_run(1)
                    if second:
                        second.release()

        clients = [asyncio.create_task(client()) for _ in range(50)]
        for cancelled in rng.sample(clients, 10):
            await let_tasks_run(3)
            cancelled.cancel()
        await asyncio.gather(*clients, return_exceptions=True)
        assert (pool.in_use, pool.waiting) == (0, 0)

    run(test())


def test_pages_are_reused_once_no_view_of_them_exists() -> None:
    async def test() -> None:
        pool = MemoryPool(4 * SLOT_SIZE, timeout=1)
        with await pool.acquire(SLOT_SIZE) as allocation:
            first = allocation.buffer()
            first[:4] = b"mine"
            view = first[1:3]
            del first
        assert (pool.in_use, pool.cached) == (0, 0)
        with await pool.acquire(SLOT_SIZE) as allocation:
            second = allocation.buffer()
            assert bytes(second[:4]) == bytes(4)
            second[:5] = b"other"
            del second
        assert (bytes(view), pool.cached) == (b"in", SLOT_SIZE)
        with await pool.acquire(SLOT_SIZE) as allocation:
            assert bytes(allocation.buffer()[:5]) == b"other", "the pages were not reused"
            assert pool.cached == 0

    run(test())


def test_buffer_is_not_reused_while_a_view_of_it_exists() -> None:
    async def test() -> None:
        with await MemoryPool(SLOT_SIZE, timeout=1).acquire(SLOT_SIZE) as allocation:
            view = allocation.buffer()[-3:]
            view[:] = b"one"
            allocation.buffer()[-3:] = b"two"
            assert bytes(view) == b"one"
            assert bytes(allocation.buffer()[-3:]) == b"two"

    run(test())


@pytest.mark.parametrize("size", [0, 1, 4097, SLOT_SIZE - 1, SLOT_SIZE, SLOT_SIZE + 1])
def test_buffer_is_as_long_as_its_allocation(size: int) -> None:
    """The pages may be reused ones, and the allocation may have been shrunk."""

    async def test() -> None:
        pool = MemoryPool(2 * SLOT_SIZE, timeout=1)
        for _ in range(2):
            with await pool.acquire(size) as allocation:
                assert len(allocation.buffer()) == size
                allocation.shrink(size // 2)
                assert len(allocation.buffer()) == size // 2
        assert pool.in_use == 0

    run(test())


async def full_pool() -> tuple[MemoryPool, Allocation, asyncio.Task[Allocation]]:
    """Return a pool with one allocation that fills it, and a request that waits for memory."""
    pool = MemoryPool(SLOT_SIZE, timeout=1)
    first = await pool.acquire(SLOT_SIZE)
    first.buffer()[:5] = b"first"
    waiting = asyncio.create_task(pool.acquire(SLOT_SIZE))
    await let_tasks_run()
    return pool, first, waiting


def test_waiting_request_gets_the_pages_that_are_released() -> None:
    async def test() -> None:
        pool, first, waiting = await full_pool()
        first.release()
        assert (pool.in_use, pool.cached) == (SLOT_SIZE, 0)
        second = await waiting
        assert bytes(second.buffer()[:5]) == b"first"
        first.release()
        assert len(first.buffer()) == 0
        assert pool.in_use == SLOT_SIZE

    run(test())


def test_pages_for_a_request_that_is_cancelled_are_cached() -> None:
    async def test() -> None:
        pool, first, waiting = await full_pool()
        first.release()
        waiting.cancel()
        await asyncio.wait([waiting])
        assert (pool.in_use, pool.cached) == (0, SLOT_SIZE)

    run(test())


def test_small_pages_are_never_cached() -> None:
    """The kernel rounds them up, so they would occupy more memory than the pool counts."""

    async def test() -> None:
        pool = MemoryPool(100 * SLOT_SIZE, timeout=1)
        allocations = [await pool.acquire(1 + number % 10) for number in range(100)]
        for allocation in allocations:
            allocation.buffer()
        for allocation in allocations:
            allocation.release()
        assert (pool.in_use, pool.cached) == (0, 0)

    run(test())


def test_oldest_cached_pages_are_dropped_first() -> None:
    async def test() -> None:
        pool = MemoryPool(4 * SLOT_SIZE, timeout=1)
        for number in range(5):
            with await pool.acquire(SLOT_SIZE + number) as allocation:
                allocation.buffer()[0] = number + 1
        assert pool.cached == 3 * SLOT_SIZE + 2 + 3 + 4
        with (
            await pool.acquire(SLOT_SIZE + 1) as dropped,
            await pool.acquire(SLOT_SIZE + 4) as cached,
        ):
            assert (dropped.buffer()[0], cached.buffer()[0]) == (0, 5)

    run(test())


@pytest.mark.parametrize("seed", range(5))
def test_buffers_are_never_shared_and_the_cache_stays_within_the_limit(seed: int) -> None:
    """Under random load, with views that outlive their allocation as a connection's views do."""

    async def test() -> None:
        rng = random.Random(seed)
        pool = MemoryPool(8 * SLOT_SIZE, timeout=5)
        views = dict[int, memoryview]()
        reuses = 0

        def is_stamped(view: memoryview, stamp: int) -> bool:
            return bytes(view[:8]) == bytes(view[-8:]) == stamp.to_bytes(8)

        async def client(first_stamp: int) -> None:
            nonlocal reuses
            for stamp in range(first_stamp, first_stamp + 20):
                with await pool.acquire(
                    rng.choice((SLOT_SIZE, SLOT_SIZE + 1, 2 * SLOT_SIZE, 100))
                ) as allocation:
                    view = allocation.buffer()
                    reuses += any(view[:8])
                    view[:8] = view[-8:] = stamp.to_bytes(8)
                    await let_tasks_run(rng.randint(0, 3))
                    assert is_stamped(view, stamp)
                    if rng.random() < 0.3:
                        views[stamp] = view[:]
                    del view
                    allocation.shrink(rng.choice((allocation.size, allocation.size // 2)))
                    assert pool.in_use + pool.cached <= pool.total
                assert pool.in_use + pool.cached <= pool.total
                if len(views) > 20:
                    del views[rng.choice(list(views))]
                assert all(is_stamped(view, stamp) for stamp, view in views.items())

        await asyncio.gather(*(client(1 + 1000 * number) for number in range(8)))
        assert reuses, "no pages were reused"
        assert pool.in_use == 0

    run(test())
