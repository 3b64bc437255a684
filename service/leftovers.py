"""What S3 would not remove when it was asked to: it is asked again until it does.

While S3 fails, it is asked one thing at a time, so that an outage costs next to nothing however
many uploads it broke; as soon as it does one, the others follow, more and more at once. What fails
goes to the end of the queue, so that it does not stand in the way of the rest.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any

from service.errors import StorageUnavailable

_log = logging.getLogger(__name__)

FIRST_PAUSE = 0.5
LONGEST_PAUSE = 2.0
"""Seconds before S3 is asked again: the pause doubles, and is short again once S3 answers."""

AT_ONCE = 16
"""How many removals run at a time, at most, beside everybody's first try."""

MOST = 10_000
"""How many removals are remembered; what there is beyond them, the bucket's lifecycle sweeps."""

Removal = Callable[[], Coroutine[Any, Any, None]]
"""A call that removes something, and may be repeated. It may raise `StorageUnavailable`."""


class Leftovers:
    """A queue of removals, worked off by whoever finds nobody else at it."""

    def __init__(self) -> None:
        self._queue: deque[Removal] = deque()
        self._at_work = False

    async def remove(self, removal: Removal) -> None:
        """Try this now, and later if that fails; it may then take until the queue is empty."""
        if await _done(removal):
            return
        if len(self._queue) == MOST:
            _log.warning("what is left of a failed upload is left to the bucket's lifecycle")
            return
        self._queue.append(removal)
        if self._at_work:
            return
        _log.warning("S3 did not remove what is left of a failed upload: it is asked until it does")
        self._at_work = True
        try:
            await self._work()
        finally:
            self._at_work = False
        _log.info("S3 has removed what was left of failed uploads")

    async def _work(self) -> None:
        pause, at_once = FIRST_PAUSE, 1
        await asyncio.sleep(pause)
        while self._queue:
            batch = [self._queue.popleft() for _ in range(min(at_once, len(self._queue)))]
            done = await asyncio.gather(*map(_done, batch))
            self._queue.extend(it for it, is_done in zip(batch, done, strict=True) if not is_done)
            if any(done):
                pause, at_once = FIRST_PAUSE, min(2 * at_once, AT_ONCE)
            else:
                pause, at_once = min(2 * pause, LONGEST_PAUSE), 1
                await asyncio.sleep(pause)


async def _done(removal: Removal) -> bool:
    try:
        await removal()
    except StorageUnavailable:
        return False
    return True
