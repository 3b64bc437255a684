"""The memory budget: bounded, fair, and never stuck."""

import asyncio
import random
from collections.abc import Coroutine
from typing import Any

import pytest

from service.budget import Budget, Lease
from service.errors import Overloaded


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(test, 10))


async def turns(count: int = 5) -> None:
    """Let everybody who can go on do so."""
    for _ in range(count):
        await asyncio.sleep(0)


def test_what_is_given_back_can_be_taken_again() -> None:
    async def test() -> None:
        budget = Budget(10, timeout=1)
        with await budget.take(6), await budget.take(4):
            assert budget.in_use == 10
            assert budget.take_now(1) is None
        assert budget.in_use == 0
        lease = await budget.take(10)
        lease.shrink(3)
        lease.shrink(7)
        assert (budget.in_use, lease.size) == (3, 3)
        lease.release()
        lease.release()
        assert budget.in_use == 0

    run(test())


def test_first_come_first_served_also_the_large_ones() -> None:
    async def test() -> None:
        budget = Budget(10, timeout=1)
        first = await budget.take(8)
        served: list[int] = []

        async def wait(size: int) -> Lease:
            lease = await budget.take(size)
            served.append(size)
            return lease

        waiting = [asyncio.create_task(wait(size)) for size in (9, 1, 2)]
        await turns()
        assert budget.waiting == 3
        assert budget.take_now(1) is None, "nobody overtakes"
        first.release()
        await turns()
        assert served == [9, 1]
        (await waiting[0]).release()
        await asyncio.gather(*waiting)
        assert served == [9, 1, 2]

    run(test())


def test_waiting_is_bounded_and_leaves_nothing() -> None:
    async def test() -> None:
        budget = Budget(10, timeout=0.4)
        with await budget.take(8):
            large = asyncio.create_task(budget.take(10))
            await asyncio.sleep(0.2)
            behind = asyncio.create_task(budget.take(1))
            with pytest.raises(Overloaded):
                await large
            with await behind:
                assert (budget.in_use, budget.waiting) == (9, 0)
        assert budget.in_use == 0

    run(test())


def test_cancelled_at_every_point() -> None:
    async def test() -> None:
        for turn in range(6):
            budget = Budget(10, timeout=1)
            lease = await budget.take(10)
            waiting = asyncio.create_task(budget.take(10))
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
        budget = Budget(20, timeout=5)

        async def client() -> None:
            for _ in range(20):
                with await budget.take(chance.randint(1, 20)) as lease:
                    assert budget.in_use <= budget.total
                    await turns(chance.randint(0, 3))
                    lease.shrink(chance.randint(0, 20))
                    second = budget.take_now(chance.randint(1, 20))
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
