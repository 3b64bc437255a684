"""Timeouts for slow clients: a limit on each wait and a minimum average rate."""

import asyncio
from types import TracebackType
from typing import Self

MIN_RATE = 16 * 1024
"""Bytes per second that a client has to send or receive on average."""

GRACE_PERIOD = 10.0
"""Seconds of waiting for a client before the minimum rate applies."""

DISCARD_TIMEOUT = 2.0
"""Seconds for which the rest of a request is read and dropped after an early response."""


class ClientRate:
    """How fast the client of one transfer is. It may pause for `timeout` seconds at most.

    Only the time spent waiting for the client counts, not the time for S3 or for memory.
    """

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._waited = self._idle = 0.0
        self._transferred = 0

    def record(self, seconds: float, transferred: int) -> None:
        """Record a wait of `seconds`, in which `transferred` bytes were sent or received."""
        self._waited += seconds
        self._transferred += transferred
        self._idle = 0.0 if transferred else self._idle + seconds

    @property
    def time_left(self) -> float:
        """Seconds that the client has for its next byte. With 0 or less, it is too slow."""
        return min(
            self._timeout - self._idle,
            max(GRACE_PERIOD, self._transferred / MIN_RATE) - self._waited,
        )


class ClientTimeout:
    """A context for each wait for a client. Raises `TimeoutError` if the client is too slow.

    All waits of a transfer share one timer, which checks the time left when it fires. Using
    asyncio.timeout would set and cancel a timer for every chunk.
    """

    def __init__(self, rate: ClientRate) -> None:
        self._rate = rate
        self._loop = asyncio.get_running_loop()
        self._wait_started: float | None = None
        self._task: asyncio.Task[object] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._cancelling = 0
        self._timed_out = False

    def __enter__(self) -> Self:
        self._wait_started, self._task = self._loop.time(), asyncio.current_task()
        self._cancelling = 0 if self._task is None else self._task.cancelling()
        if self._timer is None:
            self._timer = self._loop.call_later(self._rate.time_left, self._check)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._wait_started = None
        if self._timed_out and self._task is not None:
            self._timed_out = False
            # If something else has cancelled the task too, the cancellation has to go on.
            if self._task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
                raise TimeoutError from error

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _check(self) -> None:
        """End the current wait if it took too long. Without a wait, the next one sets a timer."""
        self._timer = None
        if self._wait_started is None or self._task is None:
            return
        left = self._rate.time_left - (self._loop.time() - self._wait_started)
        if left > 0:
            self._timer = self._loop.call_later(left, self._check)
        else:
            self._timed_out = True
            self._task.cancel()
