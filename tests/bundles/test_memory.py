"""The memory limit: its rules, one by one."""

import asyncio

import pytest

from service.bundles import buffers
from service.bundles.buffers import PartBuffer, ReplayBuffer
from service.bundles.memory import WINDOW_SIZE, Memory, Reservation
from service.errors import Overloaded
from tests.bundles.simulated_loop import let_tasks_run, simulate

CHUNK = 64 * 1024
PART = 8 * CHUNK
OTHERS = PART - WINDOW_SIZE
"""What all buffers but the oldest part may hold in the smallest memory."""


def smallest_memory(timeout: float = 10) -> Memory:
    """Return a memory of two parts. It has four windows, of which buffers leave one free."""
    return Memory(2 * PART, part_size=PART, timeout=timeout)


def filled_part(memory: Memory, size: int) -> PartBuffer:
    part = memory.part()
    assert part.try_append(bytes(size))
    return part


def filled_replay(memory: Memory, size: int) -> ReplayBuffer:
    replay = memory.replay()
    replay.append(bytes(size))
    return replay


@pytest.mark.parametrize(
    ("total", "part_size", "windows"),
    [(2 * PART, PART, 4), (4 * PART, PART, 8), (4 * PART, 3 * PART, 4), (256 << 20, 8 << 20, 1024)],
)
def test_windows_take_at_most_half_of_the_memory_and_leave_room_for_a_part(
    total: int, part_size: int, windows: int
) -> None:
    async def test() -> None:
        memory = Memory(total, part_size=part_size, timeout=1)
        assert memory.max_transfers == windows
        taken = [await memory.window() for _ in range(windows)]
        assert memory.windows.in_use == memory.windows.total == windows * WINDOW_SIZE
        assert memory.part().try_append(bytes(part_size))
        with pytest.raises(Overloaded):
            await memory.window()
        taken[0].release()
        taken[0].release()
        with await memory.window():
            assert memory.windows.in_use == memory.windows.total

    simulate(test())


def test_windows_are_given_first_come_first_served() -> None:
    async def test() -> None:
        memory = smallest_memory()
        holders = [await memory.window() for _ in range(memory.max_transfers)]
        served: list[int] = []

        async def transfer(number: int) -> None:
            with await memory.window():
                served.append(number)
                await asyncio.sleep(number % 3)

        waiting = [asyncio.create_task(transfer(number)) for number in range(20)]
        await let_tasks_run()
        assert memory.windows.waiting == 20
        for holder in holders:
            holder.release()
        await asyncio.gather(*waiting)
        assert served == list(range(20))

    simulate(test())


def test_transfer_that_times_out_does_not_block_the_next_one() -> None:
    async def test() -> None:
        memory = smallest_memory(timeout=10)
        holders = [await memory.window() for _ in range(memory.max_transfers)]
        loop = asyncio.get_running_loop()
        first = asyncio.create_task(memory.window())
        await asyncio.sleep(1)
        second = asyncio.create_task(memory.window())
        with pytest.raises(Overloaded):
            await first
        assert loop.time() == 10
        assert memory.windows.waiting == 1
        holders[0].release()
        with await second:
            assert memory.windows.waiting == 0
        part = filled_part(memory, PART)
        with pytest.raises(Overloaded):
            await filled_part(memory, 1).append(bytes(OTHERS))
        assert loop.time() == 20
        assert memory.buffers.in_use == part.size + 1

    simulate(test())


def test_windows_wait_for_buffers_but_a_quarter_is_always_free() -> None:
    async def test() -> None:
        memory = smallest_memory()
        filled_part(memory, PART)
        others = filled_part(memory, OTHERS)
        with await memory.window():
            assert not others.try_append(b"1")
            waiting = asyncio.create_task(memory.window())
            await let_tasks_run()
            assert memory.windows.waiting == 1
            others.release()
            (await waiting).release()

    simulate(test())


def test_part_waits_for_memory_and_no_later_part_overtakes_it() -> None:
    async def test() -> None:
        memory = smallest_memory()
        first, second, third = (filled_part(memory, size) for size in (1, OTHERS, 0))
        waiting = asyncio.create_task(second.append(b"2" * CHUNK))
        await let_tasks_run()
        assert memory.buffers.waiting == 1
        assert not third.try_append(b"")
        assert memory.reserve(0) is None
        assert first.try_append(bytes(PART - 1))
        first.release()
        await waiting
        assert second.size == OTHERS + CHUNK
        assert third.try_append(b"3")
        assert b"".join(second) == bytes(OTHERS) + b"2" * CHUNK

    simulate(test())


def test_oldest_part_never_waits_behind_other_parts() -> None:
    """It is the only one that can always grow, so the others may depend on its end."""

    async def test() -> None:
        memory = smallest_memory()
        first, second, third = (filled_part(memory, size) for size in (1, 2, OTHERS - CHUNK))
        filled_part(memory, 3)
        ahead = asyncio.create_task(third.append(bytes(CHUNK)))
        await let_tasks_run()
        behind = asyncio.create_task(second.append(bytes(CHUNK)))
        await let_tasks_run()
        assert memory.buffers.waiting == 2
        first.release()
        await behind
        assert not ahead.done()
        await second.append(bytes(PART - second.size))
        second.release()
        await ahead

    simulate(test())


def test_replay_buffers_are_dropped_at_once_the_largest_first() -> None:
    async def test() -> None:
        memory = smallest_memory()
        small, large, middle = (filled_replay(memory, size) for size in (1000, CHUNK, 2000))
        memory.part()
        part = filled_part(memory, OTHERS - CHUNK)
        assert [small.complete, middle.complete, large.complete] == [True, True, False]
        assert (large.size, list(large)) == (0, [])
        assert memory.buffers.in_use == part.size + 3000
        large.append(b"ignored")
        large.release()
        assert memory.buffers.in_use == part.size + 3000
        assert memory.reserve(CHUNK - 1500)
        assert [small.complete, middle.complete] == [True, False]
        assert memory.buffers.in_use == OTHERS - 500

    simulate(test())


def test_window_drops_replay_buffers() -> None:
    async def test() -> None:
        memory = smallest_memory()
        replays = [filled_replay(memory, CHUNK + number) for number in range(5)]
        windows = [await memory.window() for _ in range(2)]
        assert [replay.complete for replay in replays] == [True] * 3 + [False] * 2
        windows += [await memory.window() for _ in range(2)]
        assert sum(replay.complete for replay in replays) == 0
        assert memory.buffers.in_use == 0

    simulate(test())


def test_replay_buffers_are_kept_if_dropping_them_all_is_not_enough() -> None:
    async def test() -> None:
        memory = smallest_memory()
        part, replay = filled_part(memory, PART), filled_replay(memory, CHUNK)
        assert memory.reserve(PART) is None
        others = filled_part(memory, OTHERS - CHUNK)
        assert not others.try_append(bytes(CHUNK + 1))
        with await memory.window():
            waiting = asyncio.create_task(memory.window())
            await let_tasks_run()
            assert memory.windows.waiting == 1
            assert replay.complete
            others.release()
            with await waiting:
                assert replay.complete
        part.release()

    simulate(test())


def test_replay_buffer_does_not_grow_while_a_part_waits() -> None:
    async def test() -> None:
        memory = smallest_memory()
        replay = filled_replay(memory, 10)
        memory.part()
        part = filled_part(memory, OTHERS - CHUNK)
        waiting = asyncio.create_task(part.append(bytes(2 * CHUNK)))
        await let_tasks_run()
        replay.append(b"1")
        assert not replay.complete
        waiting.cancel()
        await asyncio.wait([waiting])
        assert memory.buffers.in_use == part.size

    simulate(test())


def test_replay_buffer_grows_while_transfers_wait_for_windows_that_others_use() -> None:
    """These transfers do not need memory, but the end of another transfer."""

    async def test() -> None:
        memory = Memory(4 * PART, part_size=PART, timeout=1)
        replay = filled_replay(memory, 10)
        for _ in range(memory.max_transfers):
            await memory.window()
        waiting = asyncio.create_task(memory.window())
        await let_tasks_run()
        replay.append(bytes(CHUNK))
        assert replay.complete
        with pytest.raises(Overloaded):
            await waiting

    simulate(test())


def test_replay_buffer_is_dropped_beyond_its_largest_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buffers, "MAX_REPLAY_SIZE", 2 * CHUNK)
    memory = smallest_memory()
    replay = filled_replay(memory, CHUNK)
    replay.append(bytes(CHUNK))
    assert replay.complete
    replay.append(b"1")
    assert (replay.complete, replay.size, memory.buffers.in_use) == (False, 0, 0)


def test_bundle_is_reserved_only_if_its_memory_is_free_now() -> None:
    memory = smallest_memory()
    assert memory.reserve(OTHERS + 1) is None
    reservation = memory.reserve(OTHERS)
    assert reservation is not None
    assert memory.reserve(1) is None
    reservation.release()
    reservation.release()
    assert memory.buffers.in_use == 0
    with memory.reserve(OTHERS) or pytest.fail("the memory is free"):
        assert memory.buffers.in_use == OTHERS
    assert memory.buffers.in_use == 0


@pytest.mark.parametrize("released_first", [True, False])
@pytest.mark.parametrize("steps", range(5))
def test_transfer_cancelled_at_any_step_leaves_nothing_in_use(
    steps: int, *, released_first: bool
) -> None:
    """It is cancelled before, while or after it gets the memory that others release."""

    async def test() -> None:
        memory = smallest_memory()
        windows = [await memory.window() for _ in range(memory.max_transfers)]
        oldest, part = memory.part(), memory.part()
        waiting = [
            asyncio.create_task(memory.window()),
            asyncio.create_task(part.append(bytes(CHUNK))),
        ]
        await let_tasks_run(steps)
        if released_first:
            oldest.release()
            windows.pop().release()
        for task in waiting:
            task.cancel()
        if not released_first:
            oldest.release()
            windows.pop().release()
        for result in await asyncio.gather(*waiting, return_exceptions=True):
            if isinstance(result, Reservation):
                result.release()
        assert memory.windows.in_use == len(windows) * WINDOW_SIZE
        assert memory.buffers.in_use == part.size == sum(map(len, part))
        assert memory.windows.waiting == memory.buffers.waiting == 0

    simulate(test())
