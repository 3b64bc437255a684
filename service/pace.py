"""How slow a client may be: a bound on every wait for it, and on all of them together."""

import asyncio
from types import TracebackType
from typing import Self

RATE = 16 * 1024
"""Bytes a second that a client has to send or take on average."""

GRACE = 10.0
"""Seconds of waiting for a client before its average counts."""

LINGER = 2.0
"""Seconds for which the server reads and drops what a client still sends after an early answer."""


class Pace:
    """One transfer's client, who may take `patience` seconds over a byte.

    Only what is waited for the client counts: not S3's time, nor the queue for memory.
    """

    def __init__(self, patience: float) -> None:
        self._patience = patience
        self._waited = self._idle = 0.0
        self._moved = 0

    def waited(self, seconds: float, moved: int) -> None:
        """Note a wait, and how many bytes came or went in it."""
        self._waited += seconds
        self._moved += moved
        self._idle = 0.0 if moved else self._idle + seconds

    @property
    def left(self) -> float:
        """Seconds that the client has for its next byte; with 0 or less it has been too slow."""
        return min(
            self._patience - self._idle,
            max(GRACE, self._moved / RATE) - self._waited,
        )


class Patience:
    """Bounds waits for a client, each entered as a context, to what its pace leaves.

    `TimeoutError` where it was too slow. One timer serves them all and is looked at when it is due:
    asyncio.timeout would set and cancel one for every chunk.
    """

    def __init__(self, pace: Pace) -> None:
        self._pace = pace
        self._loop = asyncio.get_running_loop()
        self._began: float | None = None
        self._task: asyncio.Task[object] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._cancelling = 0
        self._lost = False

    def __enter__(self) -> Self:
        self._began, self._task = self._loop.time(), asyncio.current_task()
        self._cancelling = 0 if self._task is None else self._task.cancelling()
        if self._timer is None:
            self._timer = self._loop.call_later(self._pace.left, self._look)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._began = None
        if self._lost and self._task is not None:
            self._lost = False
            # Somebody else may have cancelled the task as well, and waits for its end.
            if self._task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
                raise TimeoutError from error

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _look(self) -> None:
        """See whether the wait that goes on is over its time; if none does, the next one asks."""
        self._timer = None
        if self._began is None or self._task is None:
            return
        left = self._pace.left - (self._loop.time() - self._began)
        if left > 0:
            self._timer = self._loop.call_later(left, self._look)
        else:
            self._lost = True
            self._task.cancel()
