"""The readiness check: this process is ready while its bucket responds, until it drains.

`routes` calls it for `GET /readyz`, and `service.app` once at the start.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable

from service.drain import Drain
from service.errors import Draining, StorageUnavailable

CACHE_SECONDS = 1.0
"""Seconds for which the result of a probe is used again."""


class Readiness:
    """The readiness check.

    `probe` asks the bucket, and raises `StorageUnavailable` within a few seconds if it is unusable.
    """

    def __init__(self, probe: Callable[[], Awaitable[None]], drain: Drain) -> None:
        self._probe = probe
        self._drain = drain
        self._last_probe: asyncio.Task[StorageUnavailable | None] | None = None
        self._valid_until = 0.0

    async def check(self) -> None:
        """Raise `Draining` or `StorageUnavailable`. Concurrent callers share one probe."""
        if self._drain.begun:
            raise Draining
        last = self._last_probe
        if last is None or (last.done() and time.monotonic() >= self._valid_until):
            self._last_probe = last = asyncio.create_task(self._run_probe())
        if error := await asyncio.shield(last):
            raise error

    async def _run_probe(self) -> StorageUnavailable | None:
        try:
            await self._probe()
        except StorageUnavailable as error:
            return error
        else:
            return None
        finally:
            self._valid_until = time.monotonic() + CACHE_SECONDS
