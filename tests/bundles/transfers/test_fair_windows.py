"""Who gets the next window while windows are short: first come, first served, within a share."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from hypothesis import strategies as st

from service.bundles.limits import ANYONE, Caller, FairQueue
from service.bundles.memory import WINDOW_SIZE, Memory, Reservation
from tests.bench.costs.step_counter import count_lines
from tests.bundles.simulated_loop import let_tasks_run, simulate
from tests.support.fuzz import fuzz


def memory_with_40_windows() -> Memory:
    memory = Memory(80 * WINDOW_SIZE, part_size=4 * WINDOW_SIZE, timeout=10)
    assert memory.max_transfers == 40
    return memory


@pytest.mark.parametrize(
    ("held", "waiting", "expected"),
    [
        ({}, "aabca", "aabca"),  # first come, first served
        ({}, "a-b-a", "a-b-a"),  # although 40 of 40 windows are those of transfers without a token
        ({"a": 5}, "a-b-a", "-b-aa"),
        ({"a": 5}, "abcab", "bcbaa"),  # more than a tenth of 40
        ({"a": 4}, "abcab", "abcba"),  # a tenth, and more after the first
        ({"a": 8, "b": 7}, "abcab", "cbaba"),  # the one with fewer
        ({"a": 7, "b": 9, "c": 18}, "abcab", "aabbc"),
    ],
)
def test_caller_with_more_than_a_tenth_of_the_windows_waits_for_others(
    held: dict[str, int], waiting: str, expected: str
) -> None:
    async def test() -> None:
        memory = memory_with_40_windows()
        others = [await memory.window() for _ in range(40 - sum(held.values()))]
        for name, count in held.items():
            for _ in range(count):
                await memory.window(Caller(name))
        served = list[str]()

        async def wait(name: str) -> None:
            await memory.window(ANYONE if name == "-" else Caller(name))
            served.append(name)

        tasks = [asyncio.create_task(wait(name)) for name in waiting]
        await let_tasks_run()
        for reservation in others[:5]:
            reservation.release()
            await let_tasks_run()
        await asyncio.gather(*tasks)
        assert "".join(served) == expected

    simulate(test())


def test_uploads_of_many_callers_do_not_delay_downloads() -> None:
    """Two windows become free in every round, and three new callers come."""

    async def test() -> None:
        memory = memory_with_40_windows()
        held = [await memory.window() for _ in range(5)]
        held += [await memory.window(Caller("old", str(i))) for i in range(35)]
        downloads = [asyncio.create_task(memory.window()) for _ in range(5)]
        await let_tasks_run()
        uploads = list[asyncio.Task[Reservation]]()
        for number in range(3):
            new = (Caller("new", str(3 * number + i)) for i in range(3))
            uploads += [asyncio.create_task(memory.window(caller)) for caller in new]
            await let_tasks_run()
            held.pop().release()
            held.pop().release()
            await let_tasks_run()
        assert all(download.done() for download in downloads)
        assert [upload.done() for upload in uploads] == [True] + [False] * 8
        for upload in uploads:
            upload.cancel()
        await asyncio.gather(*uploads, return_exceptions=True)

    simulate(test())


@dataclass(eq=False)
class Waiter:
    caller: Caller


CALLERS = [ANYONE, *map(Caller, "abcd")]
OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(["come", "come", "serve", "serve", "release", "leave"]),
        st.integers(0, 1000),
    ),
    max_size=150,
)


@fuzz(OPERATIONS, examples=300)
def test_window_goes_to_the_first_that_is_not_passed_over(
    operations: list[tuple[str, int]],
) -> None:
    """The queue is compared to a list that is searched from its start."""
    queue, waiting, windows = FairQueue[Waiter](20), list[Waiter](), list[Caller]()

    def excess(waiter: Waiter) -> int:
        held = 0 if waiter.caller == ANYONE else windows.count(waiter.caller)
        return held if held > 2 else 0

    for operation, number in operations:
        if operation == "come":
            waiting.append(Waiter(CALLERS[number % len(CALLERS)]))
            queue.append(waiting[-1])
        elif operation == "release" and windows:
            queue.remove_window(windows.pop(number % len(windows)))
        elif operation == "leave" and waiting:
            waiter = waiting.pop(number % len(waiting))
            queue.remove(waiter)
            queue.remove(waiter)
        elif operation == "serve" and waiting and len(windows) < 20:
            assert queue.first() is min(waiting, key=excess)
            waiting.remove(waiter := queue.first())
            windows.append(waiter.caller)
            queue.add_window(waiter.caller)
            queue.remove(waiter)
        assert len(queue) == len(waiting)
        assert bool(queue) == bool(waiting)
    if waiting:
        assert queue.first() is min(waiting, key=excess)


CALLERS_OF_WAITERS = {
    "more than a tenth": lambda _: Caller("a"),
    "no token": lambda _: ANYONE,
    "many callers": lambda number: Caller("b", str(number)),
}


@pytest.mark.parametrize("last", ["a", "b"])
@pytest.mark.parametrize("caller", CALLERS_OF_WAITERS.values(), ids=CALLERS_OF_WAITERS)
@pytest.mark.parametrize("windows", [40, 5])
def test_serving_a_transfer_costs_the_same_however_many_wait(
    windows: int, caller: Callable[[int], Caller], last: str
) -> None:
    """Caller `a` has more than a tenth of the windows, with 5 of them until the release."""

    def lines(waiters: int) -> int:
        counts = list[int]()

        async def test() -> None:
            memory = memory_with_40_windows()
            held = [await memory.window(Caller("a")) for _ in range(windows)]
            for _ in range(memory.max_transfers - windows):
                await memory.window()
            callers = [*map(caller, range(waiters)), Caller(last)]
            waiting = [asyncio.create_task(memory.window(caller)) for caller in callers]
            await let_tasks_run()
            counts.append(count_lines(held[0].release))
            assert memory.windows.waiting == waiters
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)

        simulate(test())
        return counts[0]

    lines(1)  # Do everything that happens only once before counting.
    assert lines(2000) <= lines(20) + 20
