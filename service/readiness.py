"""Whether this process should be sent requests: while its bucket answers, until it drains."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from service.errors import Draining, StorageUnavailable

FRESH = 1.0
"""Seconds for which the bucket is not asked again."""


@dataclass
class Drain:
    """How far a process is on its way out. Its server sets it, every request sees it."""

    begun: bool = False
    """It is not ready any more, and answers end their connections."""

    refusing: bool = False
    """It takes on no new work."""


class Readiness:
    """`probe` asks the bucket, and soon raises `StorageUnavailable` where it cannot be used."""

    def __init__(self, probe: Callable[[], Awaitable[None]], drain: Drain) -> None:
        self._probe = probe
        self._drain = drain
        self._asked: asyncio.Task[StorageUnavailable | None] | None = None
        self._fresh_until = 0.0

    async def check(self) -> None:
        """Raise `Draining` or `StorageUnavailable`; many callers at a time ask the bucket once."""
        if self._drain.begun:
            raise Draining
        if self._asked is None or (self._asked.done() and time.monotonic() >= self._fresh_until):
            self._asked = asyncio.create_task(self._ask())
        if problem := await asyncio.shield(self._asked):
            raise problem

    async def _ask(self) -> StorageUnavailable | None:
        try:
            await self._probe()
        except StorageUnavailable as error:
            return error
        else:
            return None
        finally:
            self._fresh_until = time.monotonic() + FRESH
