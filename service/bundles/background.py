"""Work that outlives its request: cleanup after failed uploads, and receipts.

The cleanup queue retries what S3 did not remove at once. While S3 fails, the queue tries one
cleanup at a time, so an outage costs almost nothing, however many uploads it interrupted. Once a
cleanup succeeds, the queue runs more and more of them at once. A cleanup that fails goes to the
end of the queue, so it does not block the others. If S3 refuses it for good, it is still tried
every two seconds, because an operator may correct the permissions.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from contextvars import Context
from typing import Any

from service.errors import StorageUnavailable
from service.telemetry import timing, tracing

_log = logging.getLogger(__name__)

CLOSE_TIMEOUT = 5.0
"""Seconds that `BackgroundTasks.close` waits. The bucket's lifecycle removes what is left then."""

MIN_BACKOFF = 0.5
MAX_BACKOFF = 2.0
"""Seconds between retries of the cleanup queue. They double, and start again after a success."""

MAX_CONCURRENT_CLEANUPS = 16
"""How many queued cleanups run at once. The first attempts of new cleanups come on top."""

MAX_QUEUED_CLEANUPS = 10_000
"""How many cleanups are queued. The bucket's lifecycle removes what does not fit in the queue."""

Cleanup = Callable[[], Coroutine[Any, Any, None]]
"""A call that removes something from S3 and may be repeated. May raise `StorageUnavailable`."""


class BackgroundTasks:
    """Tasks that are not cancelled together with the request that started them."""

    def __init__(self) -> None:
        self._started: set[asyncio.Task[Any]] = set()
        self._included: set[asyncio.Task[Any]] = set()

    def start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run `work` to its end, whatever happens to the request."""
        task = asyncio.create_task(work, context=timing.detached())
        self._started.add(task)
        task.add_done_callback(self._started.discard)
        return task

    @contextmanager
    def include_current_task(self) -> Iterator[None]:
        """Make `close` wait for the current task too: it may still start background work."""
        task = asyncio.current_task()
        assert task is not None
        self._included.add(task)
        try:
            yield
        finally:
            self._included.discard(task)

    async def close(self) -> None:
        """Wait for all tasks, for `CLOSE_TIMEOUT` at most; then cancel what is still running."""
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_TIMEOUT):
                while running := self._included | self._started:
                    await asyncio.wait(running)
        if not self._started:
            return
        _log.warning("shutdown: leaving the rest of failed uploads to the bucket's lifecycle")
        for task in self._started:
            task.cancel()
        await asyncio.wait(self._started)


class CleanupQueue:
    """A queue of cleanups that S3 did not accept at once.

    The first caller that has to wait processes the queue for all.
    """

    def __init__(self) -> None:
        self._queue: deque[Cleanup] = deque()
        self._processing = False

    async def run(self, cleanup: Cleanup) -> None:
        """Run a cleanup now, and retry it later if it fails.

        Returns after the queue is empty, or at once if another caller is processing the queue.
        """
        if await _is_done(cleanup):
            return
        if len(self._queue) == MAX_QUEUED_CLEANUPS:
            _log.warning("the cleanup queue is full: leaving an upload to the bucket's lifecycle")
            return
        self._queue.append(cleanup)
        if self._processing:
            return
        _log.warning("S3 did not remove a failed upload: retrying until it does")
        self._processing = True
        tracing.enter(None)  # What follows can take hours.
        try:
            # The queue is work for many requests, so its log lines have the id of none.
            await asyncio.create_task(self._process(), context=Context())
        finally:
            self._processing = False
        _log.info("S3 has removed all failed uploads")

    async def _process(self) -> None:
        backoff, concurrency = MIN_BACKOFF, 1
        await asyncio.sleep(backoff)
        while self._queue:
            batch = [self._queue.popleft() for _ in range(min(concurrency, len(self._queue)))]
            results = await asyncio.gather(*map(_is_done, batch))
            self._queue.extend(
                cleanup for cleanup, done in zip(batch, results, strict=True) if not done
            )
            if any(results):
                backoff, concurrency = MIN_BACKOFF, min(2 * concurrency, MAX_CONCURRENT_CLEANUPS)
            else:
                backoff, concurrency = min(2 * backoff, MAX_BACKOFF), 1
                await asyncio.sleep(backoff)


async def _is_done(cleanup: Cleanup) -> bool:
    """Run a cleanup; return false if S3 failed, so that it has to be tried again."""
    try:
        await cleanup()
    except StorageUnavailable:
        return False
    except Exception:  # noqa: BLE001 - an error in this program; it must not stop the queue
        _log.exception("a cleanup failed: leaving an upload to the bucket's lifecycle")
    return True
