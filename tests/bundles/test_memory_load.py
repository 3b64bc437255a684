"""The memory limit under random load, and the memory that chunks of any size take."""

import asyncio
import sys
from dataclasses import dataclass
from itertools import chain

import pytest
from hypothesis import strategies as st

from service.bundles.buffers import SMALL_CHUNK, PartBuffer, ReplayBuffer
from service.bundles.memory import Memory
from tests.bundles.simulated_loop import simulate
from tests.bundles.test_memory import CHUNK, PART, smallest_memory
from tests.support.fuzz import fuzz


@dataclass(frozen=True)
class Transfer:
    """A transfer of `size` bytes in chunks of `chunk` bytes, with `pause` seconds after each."""

    kind: str
    size: int
    chunk: int
    started_at: int
    pause: int
    cancelled_at: int


TRANSFERS = st.builds(
    Transfer,
    kind=st.sampled_from(["known length", "unknown length", "first download"]),
    size=st.integers(1, 3 * PART) | st.just(PART),
    chunk=st.sampled_from([CHUNK, CHUNK // 2, 20_000]),
    started_at=st.integers(0, 5),
    pause=st.integers(0, 3),
    cancelled_at=st.integers(0, 300),
)


class RandomLoad:
    """Transfers that use one memory, and the checks of its rules after each of their steps."""

    def __init__(self, memory: Memory) -> None:
        self.memory = memory
        self.buffers: dict[PartBuffer | ReplayBuffer, list[bytes]] = {}
        self.reserved = 0

    def check(self) -> None:
        memory = self.memory
        assert memory.windows.in_use + memory.buffers.in_use <= 2 * PART
        assert memory.windows.in_use <= memory.windows.total
        assert memory.buffers.in_use <= memory.buffers.total
        sizes = sum(buffer.size for buffer in self.buffers)
        assert sizes + self.reserved == memory.buffers.in_use
        # A part that has just got memory after waiting adds its chunk in its next step.
        assert all(sum(map(len, buffer)) <= buffer.size for buffer in self.buffers)

    async def run(self, transfer: Transfer) -> None:
        await asyncio.sleep(transfer.started_at)
        with await self.memory.window():
            self.check()
            if transfer.kind == "first download":
                await self._download(transfer)
            elif transfer.kind == "known length":
                await self._replay(transfer)
            else:
                await self._fill_parts(transfer)

    async def _download(self, transfer: Transfer) -> None:
        if reservation := self.memory.reserve(transfer.size):
            self.reserved += transfer.size
            try:
                self.check()
                await asyncio.sleep(transfer.pause)
            finally:
                reservation.release()
                self.reserved -= transfer.size
                self.check()

    async def _replay(self, transfer: Transfer) -> None:
        replay = self.memory.replay()
        chunks = self.buffers[replay] = []
        try:
            for number in range(transfer.size // transfer.chunk):
                chunks.append(bytes([number]) * transfer.chunk)
                replay.append(chunks[-1])
                self.check()
                await asyncio.sleep(transfer.pause)
                assert b"".join(replay) == b"".join(chunks if replay.complete else [])
        finally:
            replay.release()
            self.check()

    async def _fill_parts(self, transfer: Transfer) -> None:
        """Fill one part after the other. Each is sent, and then released, while the next fills."""
        loop = asyncio.get_running_loop()
        remaining = transfer.size
        while remaining:
            part = self.memory.part()
            chunks = self.buffers[part] = []
            try:
                while remaining and part.size < PART:
                    size = min(transfer.chunk, remaining, PART - part.size)
                    chunks.append(bytes([size % 256]) * size)
                    await part.append(chunks[-1])
                    remaining -= size
                    self.check()
                    await asyncio.sleep(transfer.pause)
                assert b"".join(part) == b"".join(chunks)
            finally:
                loop.call_later(3 * transfer.pause, part.release)


@fuzz(st.lists(TRANSFERS, min_size=1, max_size=12), examples=100)
def test_memory_is_never_exceeded_and_never_blocked(transfers: list[Transfer]) -> None:
    """With the smallest memory. Nothing times out, so a transfer that is stuck would deadlock."""

    async def test() -> None:
        load = RandomLoad(smallest_memory(timeout=1_000_000))
        loop = asyncio.get_running_loop()
        tasks = [asyncio.create_task(load.run(transfer)) for transfer in transfers]
        for task, transfer in zip(tasks, transfers, strict=True):
            if transfer.cancelled_at < 100:
                loop.call_later(transfer.cancelled_at, task.cancel)
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            assert result is None or isinstance(result, asyncio.CancelledError), result
        assert loop.time() < 100_000
        await asyncio.sleep(10)  # Until all parts have been sent.
        load.check()
        assert (load.memory.windows.in_use, load.memory.buffers.in_use) == (0, 0)
        assert load.memory.windows.waiting == load.memory.buffers.waiting == 0

    simulate(test())


CHUNK_SIZES = st.lists(
    st.tuples(st.integers(1, 100), st.sampled_from([1, 17, 1000, SMALL_CHUNK - 1, SMALL_CHUNK]))
    | st.tuples(st.just(1), st.integers(1, 4 * SMALL_CHUNK)),
    max_size=20,
)
"""How many chunks come one after the other, and their size."""


@fuzz(CHUNK_SIZES, examples=100)
def test_chunks_take_hardly_more_memory_than_their_bytes(chunks: list[tuple[int, int]]) -> None:
    """Small chunks are joined, even if a connection is sending the one before."""
    part = Memory(1 << 30, part_size=PART, timeout=1).part()
    sizes = list(chain.from_iterable([size] * count for count, size in chunks))
    sent = memoryview(b"")
    for number, size in enumerate(sizes):
        assert part.try_append(bytes([number % 256]) * size)
        if number % 50 == 0:
            sent = memoryview(list(part)[-1])
    assert b"".join(part) == b"".join(
        bytes([number % 256]) * size for number, size in enumerate(sizes)
    )
    del sent
    assert sum(map(sys.getsizeof, part)) <= 1.15 * part.size + 1000


def test_chunks_of_one_byte_take_hardly_more_memory_than_their_bytes() -> None:
    part = smallest_memory().part()
    for _ in range(PART // 4):
        assert part.try_append(b"1")
    assert part.size == PART // 4
    assert sum(map(sys.getsizeof, part)) <= 1.15 * part.size
    assert len(list(part)) == part.size / (4 * SMALL_CHUNK)


@pytest.mark.parametrize(
    ("transfers", "slow", "kib"),
    [(1, 0, 1024), (8, 0, 1024), (64, 0, 128), (512, 0, 32), (1024, 1000, 341), (99, 99, 1024)],
)
def test_chunk_size_depends_on_the_number_of_transfers(transfers: int, slow: int, kib: int) -> None:
    async def test() -> None:
        memory = Memory(256 << 20, part_size=8 << 20, timeout=1)
        for _ in range(transfers):
            await memory.window()
        memory.slow_transfers = slow
        assert memory.chunk_size() // 1024 == kib

    simulate(test())
