"""The sizes of the parts of multipart uploads, in an event loop in which time passes at once."""

import asyncio
from typing import Any, cast
from uuid import UUID, uuid4

import pytest

from service.bundles.memory import Memory
from service.bundles.record import BundleRecord
from service.bundles.upload import Body, BufferedUpload
from service.settings import MAX_PARTS, MIN_PART_SIZE
from tests.bundles.simulated_loop import simulate

MIB = 1 << 20
CHUNK = 64 * 1024
PART = 8 * MIB


RECORD = BundleRecord(expires_at=1)


class RecordingStorage:
    """Takes the time of 20 MiB/s for each part, and records its size."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    async def create_upload(self, *_: Any) -> str:
        return "upload"

    async def upload_part(self, _: UUID, __: str, number: int, body: Body) -> str:
        assert number == len(self.sizes) + 1
        self.sizes.append(body.size)
        await asyncio.sleep(body.size / (20 * MIB))
        return str(number)

    async def complete_upload(self, *_: Any) -> None: ...


async def upload(
    memory: Memory, size: int, *, rate: int, start: float = 0, max_size: int = 100 * MIB
) -> list[int]:
    """Upload `size` bytes with `rate` bytes per second; return the sizes of the parts."""
    storage = RecordingStorage()
    await asyncio.sleep(start)
    with await memory.window():
        bundle = BufferedUpload(cast("Any", storage), memory, uuid4(), max_size, RECORD)
        for _ in range(size // CHUNK):
            await asyncio.sleep(CHUNK / rate)
            await bundle.write(bytes(CHUNK))
        await bundle.complete()
    assert sum(storage.sizes) == size
    return storage.sizes


@pytest.mark.parametrize(
    ("budget", "uploads", "max_size", "part"),
    [
        (256, 1, 100 * MIB, PART),
        (256, 28, 100 * MIB, PART),
        (256, 32, 100 * MIB, MIN_PART_SIZE),
        (32, 4, 100 * MIB, MIN_PART_SIZE),
        (32, 4, MAX_PARTS * 6 * MIB, 6 * MIB),
        (32, 4, MAX_PARTS * PART, PART),
    ],
)
def test_all_parts_have_one_size_of_which_there_are_enough_for_the_largest_bundle(
    budget: int, uploads: int, max_size: int, part: int
) -> None:
    """The parts are whole if so many of them fit."""

    async def test() -> None:
        memory = Memory(budget * MIB, part_size=PART, timeout=60)
        size = 30 * MIB
        all_sizes = await asyncio.gather(
            *(upload(memory, size, rate=MIB, max_size=max_size) for _ in range(uploads))
        )
        assert all_sizes == [[part] * (size // part) + [size % part] * (size % part > 0)] * uploads
        assert memory.buffers.in_use == 0

    simulate(test())


@pytest.mark.parametrize("start", [0, 10, 100])
def test_upload_does_not_wait_for_a_slow_one_with_the_smallest_memory(start: float) -> None:
    """The slow upload has the oldest part, so the other one cannot get memory for a whole part."""

    async def test() -> None:
        memory = Memory(2 * PART, part_size=PART, timeout=10)
        slow = asyncio.create_task(upload(memory, 12 * MIB, rate=20 * 1024))
        assert len(await upload(memory, 30 * MIB, rate=2 * MIB, start=start)) == 6
        assert not slow.done()
        await slow

    simulate(test())


def test_upload_keeps_its_part_size_when_memory_becomes_short() -> None:
    async def test() -> None:
        memory = Memory(32 * MIB, part_size=PART, timeout=60)
        first, *others = await asyncio.gather(
            upload(memory, 30 * MIB, rate=MIB),
            *(upload(memory, 30 * MIB, rate=2 * MIB, start=6) for _ in range(4)),
        )
        assert first == [PART] * 3 + [6 * MIB]
        assert others == [[MIN_PART_SIZE] * 6] * 4

    simulate(test())
