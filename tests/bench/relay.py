"""A TCP relay to a store, which delays all bytes on their way to the store.

    python -m tests.bench.relay http://127.0.0.1:4566 0.02

The second argument is the delay in seconds. The relay prints its own URL and runs until its
standard input ends. It passes bytes on unchanged, and any number of them can be in flight, as in a
long cable. This costs less CPU time than a proxy that parses HTTP. A delay of 0 is allowed.
"""

import asyncio
import sys
from collections.abc import Callable
from urllib.parse import urlsplit

import uvloop


class Connection(asyncio.Protocol):
    """One of the two connections of a relay. It writes what it receives to its `peer`, delayed."""

    peer: "Connection"

    def __init__(self, delay: float) -> None:
        self._delay = delay
        self._loop = asyncio.get_running_loop()
        self.transport: asyncio.Transport | None = None
        self._unsent: list[bytes] = []

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.transport = transport
        transport.writelines(self._unsent)

    def data_received(self, data: bytes) -> None:
        self._run_delayed(lambda: self.peer.write(data))

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self._run_delayed(self.peer.close)

    def pause_writing(self) -> None:
        if self.peer.transport is not None:
            self.peer.transport.pause_reading()

    def resume_writing(self) -> None:
        if self.peer.transport is not None and not self.peer.transport.is_closing():
            self.peer.transport.resume_reading()

    def write(self, data: bytes) -> None:
        if self.transport is None:
            self._unsent.append(data)
        else:
            self.transport.write(data)

    def close(self) -> None:
        if self.transport is not None:
            self.transport.close()

    def _run_delayed(self, action: Callable[[], None]) -> None:
        if self._delay:
            self._loop.call_later(self._delay, action)
        else:
            action()


class ClientConnection(Connection):
    """The connection from a client. It opens the connection to the store."""

    def __init__(self, store_address: tuple[str, int], delay: float) -> None:
        super().__init__(delay)
        self._store_address = store_address

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        store_connection = Connection(0)
        store_connection.peer, self.peer = self, store_connection
        self._connecting = self._loop.create_task(
            self._loop.create_connection(lambda: store_connection, *self._store_address)
        )


async def run(store_url: str, delay: float) -> None:
    address = urlsplit(store_url)
    assert address.hostname is not None
    store_address = address.hostname, address.port or 80
    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        lambda: ClientConnection(store_address, delay), "127.0.0.1", 0
    )
    print("http://{}:{}".format(*server.sockets[0].getsockname()), flush=True)
    await loop.run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    uvloop.run(run(sys.argv[1], float(sys.argv[2])))
