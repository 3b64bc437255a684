"""Leftovers are removed when S3 is back: sparing while it is not, swift when it is."""

import asyncio
import time
from collections.abc import Callable
from functools import partial

import pytest

from service.bundles import background
from service.bundles.background import MAX_CONCURRENT_CLEANUPS, CleanupQueue
from service.errors import StorageUnavailable


class Shop:
    """Removes what it is asked to while it is open."""

    def __init__(self, goods: int) -> None:
        self.goods = set(range(goods))
        self.is_open: Callable[[int], bool] = lambda _: False
        self.answered = asyncio.Queue[int]()
        self.sold = asyncio.Queue[int]()
        self.running = self.most = 0

    async def remove(self, good: int) -> None:
        self.running += 1
        self.most = max(self.most, self.running)
        await asyncio.sleep(0.001)
        self.running -= 1
        self.answered.put_nowait(good)
        if not self.is_open(good):
            raise StorageUnavailable
        self.goods.discard(good)
        self.sold.put_nowait(good)


async def begin(shop: Shop, left: CleanupQueue) -> list[asyncio.Task[None]]:
    """Ask for everything once, all at the same time."""
    asked = [asyncio.create_task(left.run(partial(shop.remove, good))) for good in shop.goods]
    for _ in asked:
        await asyncio.wait_for(shop.answered.get(), 5)
    shop.most = 0
    return asked


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "MIN_BACKOFF", 0.02)
    monkeypatch.setattr(background, "MAX_BACKOFF", 0.05)


def test_one_at_a_time_while_s3_fails_and_many_when_it_is_back(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def test() -> None:
        shop, left = Shop(1000), CleanupQueue()
        asked = await begin(shop, left)
        while not shop.answered.empty():
            shop.answered.get_nowait()
        began = time.monotonic()
        for _ in range(6):
            await asyncio.wait_for(shop.answered.get(), 5)
        assert time.monotonic() - began >= 4 * background.MAX_BACKOFF
        assert shop.most == 1
        assert sum(not task.done() for task in asked) == 1
        shop.is_open = lambda _: True
        await asyncio.wait_for(asyncio.gather(*asked), 5)
        assert not shop.goods
        assert shop.most == MAX_CONCURRENT_CLEANUPS

    asyncio.run(test())
    assert caplog.text.count("WARNING") == 1


def test_what_fails_for_ever_does_not_stand_in_the_way() -> None:
    async def test() -> None:
        shop, left = Shop(30), CleanupQueue()
        asked = await begin(shop, left)
        shop.is_open = lambda good: good % 2 == 1
        for _ in range(15):
            await asyncio.wait_for(shop.sold.get(), 5)
        shop.is_open = lambda _: True
        await asyncio.wait_for(asyncio.gather(*asked), 5)
        assert not shop.goods

    asyncio.run(test())


def test_what_comes_later_finds_somebody_at_work_or_goes_to_work_itself() -> None:
    async def test() -> None:
        shop, left = Shop(3), CleanupQueue()
        for good in range(3):
            shop.is_open = lambda _: False
            asked = asyncio.create_task(left.run(partial(shop.remove, good)))
            await asyncio.sleep(0.03)
            shop.is_open = lambda _: True
            await asyncio.wait_for(asked, 5)
        assert not shop.goods

    asyncio.run(test())


def test_no_more_are_remembered_than_there_is_room_for(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(background, "MAX_QUEUED_CLEANUPS", 2)

    async def test() -> None:
        shop, left = Shop(5), CleanupQueue()
        asked = await begin(shop, left)
        shop.is_open = lambda _: True
        await asyncio.wait_for(asyncio.gather(*asked), 5)
        assert len(shop.goods) == 3

    asyncio.run(test())
    assert caplog.text.count("to the bucket's lifecycle") == 3
