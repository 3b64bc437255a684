"""The cleanup queue: slow while S3 fails, fast afterwards, and limited in size."""

import asyncio
import time
from collections.abc import Callable
from functools import partial
from typing import Any
from uuid import UUID, uuid4

import pytest

from service.bundles import background
from service.bundles import upload as upload_module
from service.bundles.background import MAX_CONCURRENT_CLEANUPS, CleanupQueue
from service.errors import StorageUnavailable
from service.telemetry import timing
from tests.bundles.simulated_loop import let_tasks_run, simulate


class FakeStore:
    """A store with numbered uploads. It removes an upload if it `is_available` for it."""

    def __init__(self, count: int) -> None:
        self.uploads = set(range(count))
        self.is_available: Callable[[int], bool] = lambda _: False
        self.attempts = asyncio.Queue[int]()
        self.removals = asyncio.Queue[int]()
        self.running = self.max_running = 0

    async def remove(self, upload: int) -> None:
        self.running += 1
        self.max_running = max(self.max_running, self.running)
        await asyncio.sleep(0.001)
        self.running -= 1
        self.attempts.put_nowait(upload)
        if not self.is_available(upload):
            raise StorageUnavailable
        self.uploads.discard(upload)
        self.removals.put_nowait(upload)


async def start_cleanups(store: FakeStore, queue: CleanupQueue) -> list[asyncio.Task[None]]:
    """Start a cleanup of every upload at the same time, and wait for their first attempts."""
    cleanups = [
        asyncio.create_task(queue.run(partial(store.remove, upload))) for upload in store.uploads
    ]
    for _ in cleanups:
        await asyncio.wait_for(store.attempts.get(), 5)
    store.max_running = 0
    return cleanups


@pytest.fixture(autouse=True)
def _short_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "MIN_BACKOFF", 0.02)
    monkeypatch.setattr(background, "MAX_BACKOFF", 0.05)


def test_cleanups_run_one_at_a_time_while_s3_fails_and_concurrently_afterwards(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def test() -> None:
        store, queue = FakeStore(1000), CleanupQueue()
        cleanups = await start_cleanups(store, queue)
        while not store.attempts.empty():
            store.attempts.get_nowait()
        started = time.monotonic()
        for _ in range(6):
            await asyncio.wait_for(store.attempts.get(), 5)
        assert time.monotonic() - started >= 4 * background.MAX_BACKOFF
        assert store.max_running == 1
        assert sum(not cleanup.done() for cleanup in cleanups) == 1
        store.is_available = lambda _: True
        await asyncio.wait_for(asyncio.gather(*cleanups), 5)
        assert not store.uploads
        assert store.max_running == MAX_CONCURRENT_CLEANUPS

    asyncio.run(test())
    assert caplog.text.count("WARNING") == 1


def test_cleanup_that_keeps_failing_does_not_block_the_others() -> None:
    async def test() -> None:
        store, queue = FakeStore(30), CleanupQueue()
        cleanups = await start_cleanups(store, queue)
        store.is_available = lambda upload: upload % 2 == 1
        for _ in range(15):
            await asyncio.wait_for(store.removals.get(), 5)
        store.is_available = lambda _: True
        await asyncio.wait_for(asyncio.gather(*cleanups), 5)
        assert not store.uploads

    asyncio.run(test())


def test_cleanup_with_an_unexpected_error_is_dropped_and_does_not_stop_the_others(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def test() -> None:
        store, queue = FakeStore(30), CleanupQueue()
        cleanups = await start_cleanups(store, queue)

        def is_available(upload: int) -> bool:
            if upload == 10:
                raise ArithmeticError
            return True

        store.is_available = is_available
        await asyncio.wait_for(asyncio.gather(*cleanups), 5)
        assert store.uploads == {10}

    asyncio.run(test())
    assert caplog.text.count("leaving an upload to the bucket's lifecycle") == 1
    assert "ArithmeticError" in caplog.text


def test_queue_does_not_belong_to_the_request_that_processes_it() -> None:
    """The first attempt belongs to each request, and the others to none."""
    request_ids: list[str | None] = []

    async def remove() -> None:
        request_ids.append(timing.request_id())
        if len(request_ids) < 6:
            raise StorageUnavailable

    async def request(queue: CleanupQueue, request_id: str) -> None:
        timing.start(request_id)
        await queue.run(remove)

    async def test() -> None:
        queue = CleanupQueue()
        await asyncio.gather(request(queue, "first"), request(queue, "second"))

    simulate(test())
    assert request_ids[:2] == ["first", "second"]
    assert set(request_ids[2:]) == {None}


def test_queue_starts_again_after_it_was_empty() -> None:
    async def test() -> None:
        store, queue = FakeStore(3), CleanupQueue()
        for upload in range(3):
            store.is_available = lambda _: False
            cleanup = asyncio.create_task(queue.run(partial(store.remove, upload)))
            await asyncio.sleep(0.03)
            store.is_available = lambda _: True
            await asyncio.wait_for(cleanup, 5)
        assert not store.uploads

    asyncio.run(test())


def test_cleanups_that_do_not_fit_in_the_queue_are_left_to_the_lifecycle(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(background, "MAX_QUEUED_CLEANUPS", 2)

    async def test() -> None:
        store, queue = FakeStore(5), CleanupQueue()
        cleanups = await start_cleanups(store, queue)
        store.is_available = lambda _: True
        await asyncio.wait_for(asyncio.gather(*cleanups), 5)
        assert len(store.uploads) == 3

    asyncio.run(test())
    assert caplog.text.count("to the bucket's lifecycle") == 3


def test_removal_that_is_cancelled_sends_no_more_requests() -> None:
    """At the end of a shutdown without S3, a DeleteObject would take another 30 s."""
    calls: list[str] = []

    class Storage:
        async def abort_uploads(self, _: UUID) -> None:
            calls.append("abort")
            await asyncio.Event().wait()

        async def delete(self, _: UUID) -> None:
            calls.append("delete")

    async def test() -> None:
        storage: Any = Storage()
        removal = asyncio.create_task(upload_module._remove(storage, uuid4(), multipart=True))  # noqa: SLF001
        await let_tasks_run()
        removal.cancel()
        await asyncio.wait([removal])

    simulate(test())
    assert calls == ["abort"]
