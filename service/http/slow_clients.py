"""When a client is too slow, and how long a request is read on after an early response.

`ClientRate` limits the time without a byte, and the average rate after a grace period. `routes`
applies it to uploads, and `server.connection` to responses. `middleware` and `server.connection`
use `DISCARD_TIMEOUT`.
"""

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
