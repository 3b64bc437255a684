"""A store that is further away: every byte on the way to it takes so many seconds longer.

    python -m tests.bench.delay http://127.0.0.1:4566 0.02

It prints its URL, and runs until its standard input ends. Bytes pass as they are and in any number
at a time, as on a long wire, which costs the machine less than any proxy that knows HTTP; with no
delay at all, it is a mere relay.
"""

import asyncio
import sys
from collections.abc import Callable
from urllib.parse import urlsplit

import uvloop


class Side(asyncio.Protocol):
    """One end of a connection through here; what comes is written to the `other`, later."""

    other: "Side"

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._loop = asyncio.get_running_loop()
        self.transport: asyncio.Transport | None = None
        self._early: list[bytes] = []

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.transport = transport
        transport.writelines(self._early)

    def data_received(self, data: bytes) -> None:
        self._later(lambda: self.other.write(data))

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self._later(self.other.close)

    def pause_writing(self) -> None:
        if self.other.transport is not None:
            self.other.transport.pause_reading()

    def resume_writing(self) -> None:
        if self.other.transport is not None and not self.other.transport.is_closing():
            self.other.transport.resume_reading()

    def write(self, data: bytes) -> None:
        if self.transport is None:
            self._early.append(data)
        else:
            self.transport.write(data)

    def close(self) -> None:
        if self.transport is not None:
            self.transport.close()

    def _later(self, act: Callable[[], None]) -> None:
        if self._seconds:
            self._loop.call_later(self._seconds, act)
        else:
            act()


class Entrance(Side):
    """The client's side, which dials the store."""

    def __init__(self, store: tuple[str, int], seconds: float) -> None:
        super().__init__(seconds)
        self._store = store

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        exit_ = Side(0)
        exit_.other, self.other = self, exit_
        self._dialling = self._loop.create_task(
            self._loop.create_connection(lambda: exit_, *self._store)
        )


async def run(url: str, seconds: float) -> None:
    address = urlsplit(url)
    assert address.hostname is not None
    store = address.hostname, address.port or 80
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Entrance(store, seconds), "127.0.0.1", 0)
    print("http://{}:{}".format(*server.sockets[0].getsockname()), flush=True)
    await loop.run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    uvloop.run(run(sys.argv[1], float(sys.argv[2])))
