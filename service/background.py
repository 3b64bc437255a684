"""Work that goes on when its request has ended; the end of the process waits for it."""

import asyncio
import logging
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from service import trace

_log = logging.getLogger(__name__)

CLEANUP_TIMEOUT = 5.0
"""Seconds that `Background.close` waits; what is left then, the bucket's lifecycle sweeps."""


class Background:
    """Tasks that are not cancelled with the requests they belong to."""

    def __init__(self) -> None:
        self._started: set[asyncio.Task[Any]] = set()
        self._awaited: set[asyncio.Task[Any]] = set()

    def start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run this to its end, beside the request."""
        task = asyncio.create_task(work, context=trace.apart())
        self._started.add(task)
        task.add_done_callback(self._started.discard)
        return task

    @contextmanager
    def awaited(self) -> Iterator[None]:
        """Have `close` wait for the current task as well: it may yet start something."""
        task = asyncio.current_task()
        assert task is not None
        self._awaited.add(task)
        try:
            yield
        finally:
            self._awaited.discard(task)

    async def close(self) -> None:
        """Wait for `CLEANUP_TIMEOUT` at most; what still goes on then is cancelled."""
        with suppress(TimeoutError):
            async with asyncio.timeout(CLEANUP_TIMEOUT):
                while running := self._awaited | self._started:
                    await asyncio.wait(running)
        if not self._started:
            return
        _log.warning("what is left of failed uploads is left to the bucket's lifecycle")
        for task in self._started:
            task.cancel()
        await asyncio.wait(self._started)
