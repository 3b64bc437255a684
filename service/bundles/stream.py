"""The body of a PutObject that is sent while it arrives."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress

from service.bundles.buffers import ReplayBuffer

SILENCE = 5.0
"""Seconds without a chunk from the client, after which a piece of the last chunk is sent.

S3 drops a request whose body stops for about 20 s, but clients may pause for longer.
"""

PIECES = 16
"""How many pieces a chunk is divided into if it is sent during silence."""

MIN_HELD_BACK = 64
"""Bytes that are always held back, so that there is something to send during silence."""


class StreamBroken(Exception):
    """The stream cannot be sent any more, or not from its start."""


class UploadStream:
    """An upload of `size` bytes on its way from the client to S3.

    The newest chunk is held back until the next one arrives, and the last chunk until `finish`. So
    S3 cannot complete the object before all checks have passed.

    Iterating sends everything from the start: first the chunks in the replay buffer, then new ones.
    Only the newest iterator works; older ones, of requests that have failed, raise `StreamBroken`.
    """

    def __init__(self, size: int, replay: ReplayBuffer) -> None:
        self.size = size
        self._replay = replay
        self._held_back = b""
        self._ready = b""
        self._finished = False
        self._failed = False
        self._started = 0
        self._on_arrival: Callable[[int], None] | None = None
        self._changed = asyncio.Event()

    async def send(self, chunk: bytes) -> None:
        """Hold `chunk` back, and let the one before be sent, after those before that.

        Raises `StreamBroken` if the request to S3 has failed.
        """
        while self._ready and not self._failed:
            await self._changed.wait()
        if self._failed:
            raise StreamBroken
        if len(self._held_back) < MIN_HELD_BACK:
            self._held_back += chunk
            return
        self._ready, self._held_back = self._held_back, chunk
        self._notify()

    def finish(self) -> None:
        """Send the chunk that is held back, the last one."""
        self._finished = True
        if self._on_arrival is not None:
            self._on_arrival(self._unsent)
        self._notify()

    def on_arrival(self, callback: Callable[[int], None]) -> None:
        """Call back when `finish` is called, or at once if it has been called."""
        self._on_arrival = callback
        if self._finished:
            callback(self._unsent)

    def fail(self) -> None:
        """Stop everything that waits: the request to S3 has failed."""
        self._failed = True
        self._notify()

    def rewind(self) -> None:
        """Allow another iteration. Raises `StreamBroken` if the start is no longer in memory."""
        if self._started and not self._replay.complete:
            raise StreamBroken

    async def __aiter__(self) -> AsyncIterator[bytes | bytearray]:
        self._started = this = self._started + 1
        for chunk in self._replay:  # Ends early if the buffer is given up.
            self._check(this)
            yield chunk
        if not self._replay.complete:
            raise StreamBroken
        while True:
            self._check(this)
            if self._ready:
                chunk, self._ready = self._ready, b""
                self._notify()
            elif self._finished:
                chunk, self._held_back = self._held_back, b""
                if not chunk:
                    return
            else:
                changed = await self._wait()
                self._check(this)
                if changed or self._ready or self._finished:
                    continue
                chunk = self._cut()
            if chunk:
                self._replay.append(chunk)
                yield chunk

    @property
    def _unsent(self) -> int:
        """Bytes that may have to be sent from now on."""
        return self._replay.size + len(self._ready) + len(self._held_back)

    def _check(self, iteration: int) -> None:
        if self._failed or iteration != self._started:
            raise StreamBroken

    def _cut(self) -> bytes:
        """Take a small piece of the chunk that is held back, but not all of it."""
        size = min(max(len(self._held_back) // PIECES, 1), len(self._held_back) - 1)
        piece, self._held_back = self._held_back[:size], self._held_back[size:]
        return piece

    async def _wait(self) -> bool:
        """Wait for a change; return whether there was one before the silence became too long.

        A change at the very moment of the timeout goes unnoticed.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(SILENCE):
                await self._changed.wait()
            return True
        return False

    def _notify(self) -> None:
        """Wake everything that waits now."""
        self._changed.set()
        self._changed = asyncio.Event()
