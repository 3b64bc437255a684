"""When a client is slow or too slow, and how long a request is read on after an early response.

`ClientRate` limits the time without a byte, and the average rate after a grace period. `routes`
applies it to uploads, and `server.connection` to responses. `middleware` and `server.connection`
use `DISCARD_TIMEOUT`.
"""

import math

MIN_RATE = 16 * 1024
"""Bytes per second that a client has to send or receive on average."""

GRACE_PERIOD = 10.0
"""Seconds of waiting for a client before the minimum rate applies."""

SLOW_RATE = 256 * 1024
"""Bytes per second below which a client counts as slow, after `SLOW_AFTER`."""

SLOW_AFTER = 5.0
"""Seconds of waiting for a client before it can count as slow."""

EXPECTED_READ = 28 * 1024
"""Bytes that should have arrived before a slow client is read again, less than `memory.MIN_CHUNK`.

On the way, a body is divided into packets of about 1.4 KB. Reading each of them by itself, a
thousand slow clients would need more than one processor: a chunk takes 0.2 ms, whatever its size.
"""

MAX_READ_DELAY = 2.0
"""Seconds after which a slow client is read again in any case."""

SMALL_READ = 64 * 1024
"""Bytes. An upload holds its last two reads, which its window covers if they are no larger."""

MAX_HALVINGS = 10
"""How often the delay before a read is halved at most."""

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
        self._full_reads = 0  # one after the other
        self._last_reads = 0, 0

    def record(self, seconds: float, transferred: int, limit: float = math.inf) -> None:
        """Record a wait of `seconds`, in which `transferred` bytes were sent or received.

        If they are nearly as many as the `limit` of a read, the kernel probably holds more.
        """
        self._waited += seconds
        self._transferred += transferred
        self._idle = 0.0 if transferred else self._idle + seconds
        full = 8 * transferred >= 7 * limit
        self._full_reads = min(self._full_reads + 1, MAX_HALVINGS) if full else 0
        self._last_reads = self._last_reads[1], transferred

    @property
    def read_delay(self) -> float:
        """Seconds to wait before the next read, if the client is slow; otherwise 0.

        This is at most half of the `time_left`, of which it is a part. While more waits in the
        kernel, each delay is half as long as the one before. So a client that has become faster is
        soon read as fast as it sends.
        """
        if self._waited <= max(SLOW_AFTER, self._transferred / SLOW_RATE):
            return 0
        expected = EXPECTED_READ * self._waited / max(self._transferred, 1)
        delay = min(MAX_READ_DELAY, expected) / (1 << self._full_reads)
        return max(min(delay, self.time_left / 2), 0)

    @property
    def reads_little(self) -> bool:
        """Whether the last two reads were small. A slow client may also send large bursts."""
        return max(self._last_reads) <= SMALL_READ

    @property
    def time_left(self) -> float:
        """Seconds that the client has for its next byte. With 0 or less, it is too slow."""
        return min(
            self._timeout - self._idle,
            max(GRACE_PERIOD, self._transferred / MIN_RATE) - self._waited,
        )
