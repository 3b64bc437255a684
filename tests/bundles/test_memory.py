"""The memory budget: bounded, fair, and never stuck."""

import asyncio
import random
from collections.abc import Coroutine
from typing import Any

import pytest

from service.bundles.memory import SLOT_SIZE, Allocation, MemoryPool
from service.errors import Overloaded


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(test, 10))


async def turns(count: int = 5) -> None:
    """Let everybody who can go on do so."""
    for _ in range(count):
        await asyncio.sleep(0)


def test_what_is_given_back_can_be_taken_again() -> None:
    async def test() -> None:
        budget = MemoryPool(10, timeout=1)
        with await budget.acquire(6), await budget.acquire(4):
            assert budget.in_use == 10
            assert budget.try_acquire(1) is None
        assert budget.in_use == 0
        lease = await budget.acquire(10)
        lease.shrink(3)
        lease.shrink(7)
        assert (budget.in_use, lease.size) == (3, 3)
        lease.release()
        lease.release()
        assert budget.in_use == 0

    run(test())


def test_first_come_first_served_also_the_large_ones() -> None:
    async def test() -> None:
        budget = MemoryPool(10, timeout=1)
        first = await budget.acquire(8)
        served: list[int] = []

        async def wait(size: int) -> Allocation:
            lease = await budget.acquire(size)
            served.append(size)
            return lease

        waiting = [asyncio.create_task(wait(size)) for size in (9, 1, 2)]
        await turns()
        assert budget.waiting == 3
        assert budget.try_acquire(1) is None, "nobody overtakes"
        first.release()
        await turns()
        assert served == [9, 1]
        (await waiting[0]).release()
        await asyncio.gather(*waiting)
        assert served == [9, 1, 2]

    run(test())


def test_waiting_is_bounded_and_leaves_nothing() -> None:
    async def test() -> None:
        budget = MemoryPool(10, timeout=0.4)
        with await budget.acquire(8):
            large = asyncio.create_task(budget.acquire(10))
            await asyncio.sleep(0.2)
            behind = asyncio.create_task(budget.acquire(1))
            with pytest.raises(Overloaded):
                await large
            with await behind:
                assert (budget.in_use, budget.waiting) == (9, 0)
        assert budget.in_use == 0

    run(test())


def test_cancelled_at_every_point() -> None:
    async def test() -> None:
        for turn in range(6):
            budget = MemoryPool(10, timeout=1)
            lease = await budget.acquire(10)
            waiting = asyncio.create_task(budget.acquire(10))
            await turns(2)
            lease.release()
            await turns(turn)
            waiting.cancel()
            await asyncio.wait([waiting])
            if not waiting.cancelled():
                waiting.result().release()
            assert (budget.in_use, budget.waiting) == (0, 0), turn

    run(test())


def test_under_random_load_it_is_never_exceeded_nor_stuck() -> None:
    async def test() -> None:
        chance = random.Random(5)
        budget = MemoryPool(20, timeout=5)

        async def client() -> None:
            for _ in range(20):
                with await budget.acquire(chance.randint(1, 20)) as lease:
                    assert budget.in_use <= budget.total
                    await turns(chance.randint(0, 3))
                    lease.shrink(chance.randint(0, 20))
                    second = budget.try_acquire(chance.randint(1, 20))
                    await turns(1)
                    if second:
                        second.release()

        clients = [asyncio.create_task(client()) for _ in range(50)]
        for unlucky in chance.sample(clients, 10):
            await turns(3)
            unlucky.cancel()
        await asyncio.gather(*clients, return_exceptions=True)
        assert (budget.in_use, budget.waiting) == (0, 0)

    run(test())


def test_pages_are_used_again_as_soon_as_nobody_sees_them() -> None:
    async def test() -> None:
        budget = MemoryPool(4 * SLOT_SIZE, timeout=1)
        with await budget.acquire(SLOT_SIZE) as lease:
            mine = lease.buffer()
            mine[:4] = b"mine"
            seen = mine[1:3]
            del mine
        assert (budget.in_use, budget.cached) == (0, 0)
        with await budget.acquire(SLOT_SIZE) as lease:
            other = lease.buffer()
            assert bytes(other[:4]) == bytes(4)
            other[:5] = b"other"
            del other
        assert (bytes(seen), budget.cached) == (b"in", SLOT_SIZE)
        with await budget.acquire(SLOT_SIZE) as lease:
            assert bytes(lease.buffer()[:5]) == b"other", "these are its pages"
            assert budget.cached == 0

    run(test())


def test_a_buffer_that_somebody_sees_still_is_not_filled_again() -> None:
    async def test() -> None:
        with await MemoryPool(SLOT_SIZE, timeout=1).acquire(SLOT_SIZE) as lease:
            sent = lease.buffer()[-3:]
            sent[:] = b"one"
            lease.buffer()[-3:] = b"two"
            assert bytes(sent) == b"one"
            assert bytes(lease.buffer()[-3:]) == b"two"

    run(test())


@pytest.mark.parametrize("size", [0, 1, 4097, SLOT_SIZE - 1, SLOT_SIZE, SLOT_SIZE + 1])
def test_a_buffer_is_as_long_as_its_lease(size: int) -> None:
    """Also out of pages that were another's, and after some of it has been given back."""

    async def test() -> None:
        budget = MemoryPool(2 * SLOT_SIZE, timeout=1)
        for _ in range(2):
            with await budget.acquire(size) as lease:
                assert len(lease.buffer()) == size
                lease.shrink(size // 2)
                assert len(lease.buffer()) == size // 2
        assert budget.in_use == 0

    run(test())


async def one_taken_one_waiting() -> tuple[MemoryPool, Allocation, asyncio.Task[Allocation]]:
    """A budget that the first lease uses up, so that the second has to wait for it."""
    budget = MemoryPool(SLOT_SIZE, timeout=1)
    first = await budget.acquire(SLOT_SIZE)
    first.buffer()[:5] = b"first"
    waiting = asyncio.create_task(budget.acquire(SLOT_SIZE))
    await turns()
    return budget, first, waiting


def test_who_waits_gets_the_pages_of_who_gives_back() -> None:
    async def test() -> None:
        budget, first, waiting = await one_taken_one_waiting()
        first.release()
        assert (budget.in_use, budget.cached) == (SLOT_SIZE, 0)
        second = await waiting
        assert bytes(second.buffer()[:5]) == b"first"
        first.release()
        assert len(first.buffer()) == 0
        assert budget.in_use == SLOT_SIZE

    run(test())


def test_who_has_left_leaves_the_pages_that_were_for_him() -> None:
    async def test() -> None:
        budget, first, waiting = await one_taken_one_waiting()
        first.release()
        waiting.cancel()
        await asyncio.wait([waiting])
        assert (budget.in_use, budget.cached) == (0, SLOT_SIZE)

    run(test())


def test_small_pages_are_not_kept_however_many_there_are() -> None:
    """The kernel rounds them up, so that they would be more than the budget knows of."""

    async def test() -> None:
        budget = MemoryPool(100 * SLOT_SIZE, timeout=1)
        leases = [await budget.acquire(1 + number % 10) for number in range(100)]
        for lease in leases:
            lease.buffer()
        for lease in leases:
            lease.release()
        assert (budget.in_use, budget.cached) == (0, 0)

    run(test())


def test_the_oldest_pages_give_way() -> None:
    async def test() -> None:
        budget = MemoryPool(4 * SLOT_SIZE, timeout=1)
        for number in range(5):
            with await budget.acquire(SLOT_SIZE + number) as lease:
                lease.buffer()[0] = number + 1
        assert budget.cached == 3 * SLOT_SIZE + 2 + 3 + 4
        with (
            await budget.acquire(SLOT_SIZE + 1) as gone,
            await budget.acquire(SLOT_SIZE + 4) as kept,
        ):
            assert (gone.buffer()[0], kept.buffer()[0]) == (0, 5)

    run(test())


@pytest.mark.parametrize("seed", range(5))
def test_no_buffer_is_anybody_elses_and_none_is_kept_beyond_the_budget(seed: int) -> None:
    """Under random load, with views that outlive their lease as a connection's do."""

    async def test() -> None:
        chance = random.Random(seed)
        budget = MemoryPool(8 * SLOT_SIZE, timeout=5)
        views = dict[int, memoryview]()
        again = 0

        def stamped(view: memoryview, stamp: int) -> bool:
            return bytes(view[:8]) == bytes(view[-8:]) == stamp.to_bytes(8)

        async def client(first: int) -> None:
            nonlocal again
            for stamp in range(first, first + 20):
                with await budget.acquire(
                    chance.choice((SLOT_SIZE, SLOT_SIZE + 1, 2 * SLOT_SIZE, 100))
                ) as lease:
                    view = lease.buffer()
                    again += any(view[:8])
                    view[:8] = view[-8:] = stamp.to_bytes(8)
                    await turns(chance.randint(0, 3))
                    assert stamped(view, stamp)
                    if chance.random() < 0.3:
                        views[stamp] = view[:]
                    del view
                    lease.shrink(chance.choice((lease.size, lease.size // 2)))
                    assert budget.in_use + budget.cached <= budget.total
                assert budget.in_use + budget.cached <= budget.total
                if len(views) > 20:
                    del views[chance.choice(list(views))]
                assert all(stamped(view, stamp) for stamp, view in views.items())

        await asyncio.gather(*(client(1 + 1000 * number) for number in range(8)))
        assert again, "no pages were used again"
        assert budget.in_use == 0

    run(test())
