"""How slow a client may be: a bound on every wait for it, and on all of them together. Pure."""

RATE = 16 * 1024
"""Bytes a second that a client has to send or take on average."""

GRACE = 10.0
"""Seconds of waiting for a client before its average counts."""


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
